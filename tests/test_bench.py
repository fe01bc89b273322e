"""`mtlcar bench weightings`: every weighting and level has its row, mistakes are named. No time is asserted."""

import json
import math
from collections.abc import Iterator
from functools import partial

import pytest
import torch
from hydra.utils import get_class
from omegaconf import OmegaConf

from mtlcar.bench import weightings
from mtlcar.bench.timing import each_ms, interleave
from mtlcar.cli import main
from mtlcar.config import conf_dir, groups
from mtlcar.weightings.base import LossWeighting

SMALL = ["backbone=tiny", "data.image_size=32", "data.batch_size=4", "threads=1", "trainer=cpu"]
ADAPTERS = {"callable", "torchjd"}


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(weightings, "WARM_UP_EPOCHS", 1)
    monkeypatch.setattr(weightings, "each_ms", partial(each_ms, calls=3, samples=3))  # of solvers that take long
    before = torch_settings()  # whatever the tests before have left
    yield
    assert torch_settings() == before, "the command put back what it set"


def torch_settings() -> tuple[object, ...]:
    return (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
        torch.get_float32_matmul_precision(),
    )


def rows(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, object]]:
    assert main(["bench", "weightings", "--json", "--rounds", "2", *words, *SMALL]) == 0
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, list)
    return found


def levels(name: str) -> tuple[str, ...]:
    cls = get_class(OmegaConf.load(conf_dir() / "weighting" / f"{name}.yaml")._target_)
    return ("loss",) if issubclass(cls, LossWeighting) else cls.levels  # type: ignore[attr-defined]


def test_every_weighting_is_measured_at_every_level(capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(capsys, "--tasks", "2")
    expected = {(n, level) for n in groups()["weighting"] if n not in ADAPTERS for level in levels(n)}
    assert {(r["name"], r["level"]) for r in found if r["name"] not in ADAPTERS} == expected
    for row in found:
        assert row["tasks"] == 2
        for key in ("step_ms", "ratio_to_equal"):
            value = row[key]
            assert isinstance(value, float)
            assert math.isfinite(value)
            assert value > 0


def test_several_numbers_of_tasks_in_one_table(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--only", "fixed", "pcgrad", "--tasks", "2", "3", *SMALL, "--rounds", "2"]
    assert main(["bench", "weightings", *words]) == 0  # overrides right after the numbers
    out = capsys.readouterr().out
    table = [line.split("|")[1:-1] for line in out.splitlines() if line.startswith("|")]
    assert [line[0].strip() for line in table[2:]] == ["fixed", "pcgrad", "pcgrad"]
    assert {len(line) for line in table} == {8}
    assert "1 threads" in out


def test_own_keys_reach_the_weightings_that_have_them(capsys: pytest.CaptureFixture[str]) -> None:
    found = rows(capsys, "--only", "callable", "equal", "weighting.function=torch.diagonal", "--tasks", "2")
    assert [(r["name"], r["level"]) for r in found] == [
        ("equal", "loss"),
        ("callable", "parameters"),
        ("callable", "representation"),
    ]
    assert found[0]["solve_ms"] is None
    assert isinstance(found[1]["solve_ms"], float)


def test_weights_reach_only_those_that_read_them(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--only", "fixed", "equal", "gls", "weighting.weights={make:1,model:2}", "--tasks", "2"]
    assert [r["name"] for r in rows(capsys, *words)] == ["equal", "fixed", "gls"]


def test_a_level_leaves_the_rows_of_that_level_and_of_the_losses(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--only", "equal", "pcgrad", "graddrop", "moco", "--tasks", "2", "--rounds", "2", *SMALL]
    for level, left, out in (("representation", "graddrop", "moco"), ("parameters", "moco", "graddrop")):
        assert main(["bench", "weightings", "--json", *words, f"weighting.level={level}"]) == 0
        captured = capsys.readouterr()
        found = {(r["name"], r["level"]) for r in json.loads(captured.out)}
        assert found == {("equal", "loss"), ("pcgrad", level), (left, level)}
        assert f"left out: {out}" in captured.err


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_settings_of_whoever_calls_come_back(
    deterministic: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    was = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(deterministic)
    before = torch_settings()
    try:
        rows(capsys, "--only", "equal", "--tasks", "2")
        assert torch_settings() == before
    finally:
        torch.use_deterministic_algorithms(was[0], warn_only=was[1])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "equal", "weighting.weights={make:1}"], "none of equal reads weights"),
        (["--only", "equal", "weighting.level=parameter"], "Did you mean 'parameters'"),
        (["--only", "graddrop", "weighting.level=parameters"], "nothing to measure"),
        (["--only", "pcgard"], "Did you mean 'pcgrad'"),
        (["--only", "equal", "weighting.functoin=x"], "weighting.functoin=x: none of equal has this key"),
        (["weighting=pcgrad"], "--only pcgrad"),
        (["--tasks", "1"], "at least 2"),
        (["--tasks", "two"], "'two'"),
        (["--rounds", "0"], "at least 1"),
        (["backbone=tinny"], "'tiny'"),
        (["backbone=tiny,resnet18"], "one setting"),
        (["--only", "callable"], "needs weighting.function"),
        (["--only", "equal", "architecture=single"], "1 of 2 tasks"),
        (["--only", "equal", "trainer.precision=17"], "trainer"),
    ],
)
def test_mistakes_are_named(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    taken = {w.split("=")[0] for w in words}
    small = [o for o in SMALL if o.split("=")[0] not in taken]
    assert main(["bench", "weightings", *words, *small]) == 2
    assert message in capsys.readouterr().err


def test_every_run_of_a_candidate_stands_next_to_one_of_the_baseline() -> None:
    said: list[str] = []

    def runs(name: str) -> object:
        return lambda: said.append(name)

    candidates = [runs("a"), runs("b"), runs("c")]
    found = interleave(candidates, runs("base"), rounds=4, seed=1)  # type: ignore[arg-type]
    pairs = [set(said[i : i + 2]) for i in range(0, len(said), 2)]
    assert all(len(p) == 2 and "base" in p for p in pairs)
    assert [sum(name in p for p in pairs) for name in "abc"] == [4, 4, 4]
    assert [len(p.ratios) for p in found] == [4, 4, 4]
    first = [said[i] == "base" for i in range(0, len(said), 2)]
    assert sum(first) == len(first) / 2  # who goes first takes turns


def test_short_runs_are_timed_many_at_once() -> None:
    said: list[int] = []
    assert each_ms(lambda: said.append(1), calls=5, samples=3) > 0
    assert len(said) == 20
