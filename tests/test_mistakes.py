"""What users get wrong: every mistake is named with its remedy and status 2, before anything is started or written."""

import shutil
from pathlib import Path

import pytest

from mtlcar import cli
from tests.mistakes import COMMANDS, SEVERAL, SWEEPS, SYNTHETIC, TRAINING

LINES = 25


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with some wrong files; pictures of the small cars are drawn once."""
    place = tmp_path_factory.mktemp("mistakes")
    (place / "empty").mkdir()
    (place / "text.pth").write_text("no weights")
    (place / "file").write_text("a file, no folder")
    (place / "broken").mkdir()
    (place / "broken" / "config.yaml").write_text("data: [unclosed")
    return place


@pytest.fixture(autouse=True)
def nothing_starts(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: object, **__: object) -> None:
        pytest.exit("a mistake was not found before training")

    monkeypatch.chdir(place)
    monkeypatch.setenv("MTLCAR_CACHE", str(place / "cache"))
    monkeypatch.setattr("mtlcar.sweeps.launch.carry_out", started)
    monkeypatch.setattr("mtlcar.sweeps.launch.run_cell", started)
    monkeypatch.setattr("mtlcar.sweeps.spare.SPARE.expect", lambda *_, **__: None)  # imports for a second, in vain


def said(argv: list[str], place: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command says that ends with status 2, in the bounds of every message, leaving nothing behind."""
    before = files(place)
    try:
        status = cli.main(argv)
    except SystemExit as end:  # argparse's own
        status = int(end.code or 0)
    text = capsys.readouterr().err
    assert status == 2, text
    assert "Traceback" not in text
    assert "unexpected" not in text
    assert 1 <= len(text.splitlines()) <= LINES
    assert files(place) == before
    return text


def files(place: Path) -> set[str]:
    return {str(p.relative_to(place)) for p in place.rglob("*") if "cache" not in p.relative_to(place).parts}


@pytest.mark.parametrize(("words", "says"), [*TRAINING, *SWEEPS], ids=lambda v: v if isinstance(v, str) else None)
def test_a_mistake_of_a_training_is_named_before_anything_starts(
    words: str, says: tuple[str, ...], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a sweep, most of one cell: the same checks as of one run, all of them in this process."""
    small = () if "data=" in words else SYNTHETIC
    text = said(["train", "-m", "trainer=cpu", "logger=none", *small, *words.split(" ")], place, capsys)
    for part in says:
        assert part in text


@pytest.mark.parametrize(("words", "says"), SEVERAL, ids=lambda v: v if isinstance(v, str) else None)
def test_several_mistakes_are_told_at_once(
    words: str, says: tuple[str, ...], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = said(["train", "-m", "trainer=cpu", "logger=none", *SYNTHETIC, *words.split(" ")], place, capsys)
    assert text.startswith(f"mtlcar: error: {len(says)} mistakes:\n")
    for part in says:
        assert part in text


@pytest.mark.parametrize(("words", "says"), COMMANDS, ids=lambda v: v if isinstance(v, str) else None)
def test_a_mistake_of_another_command_is_named(
    words: str, says: tuple[str, ...], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = said(words.split(" "), place, capsys)
    for part in says:
        assert part in text


def test_there_are_eighty_mistakes_and_more_each_once() -> None:
    rows = [words for words, _ in (*TRAINING, *SWEEPS, *SEVERAL, *COMMANDS)]
    assert len(set(rows)) == len(rows) >= 80


def test_two_kinds_of_mistake_in_one_run_are_told_at_once_without_a_directory(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that the command finds without building anything, and one that building the parts finds."""
    words = ["trainer=cpu", "logger=none", *SYNTHETIC, "head.dropout=2", "architecture=mmoe", "architecture.experts=1"]
    text = said(["train", *words], place, capsys)
    assert "head.dropout should be" in text
    assert "architecture.experts should be" in text


def test_a_full_disk_is_foreseen(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(place)
    monkeypatch.setattr("mtlcar.checks.machine.shutil.disk_usage", lambda _: usage._replace(free=1000))
    text = said(["train", "-m", "trainer=cpu", "logger=none", *SYNTHETIC], place, capsys)
    assert "paths.cache=" in text
    assert "1e-06 GB" in text
