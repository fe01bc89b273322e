"""Run directories that are not as they should be cost the report a section at most, and leave nothing stale behind."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from mtlcar.report import build as builder
from mtlcar.report.build import build
from mtlcar.report.comparison import Comparison
from mtlcar.report.section import Section
from tests.run_dirs import config, write_run

pytestmark = pytest.mark.usefixtures("laid_out")


def without(*names: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        file = run / "predictions.parquet"
        pd.read_parquet(file).drop(columns=list(names)).to_parquet(file)

    return change


def nothing_in(block: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        metrics = json.loads((run / "metrics.json").read_text())
        (run / "metrics.json").write_text(json.dumps({**metrics, block: None}))

    return change


def history(text: str) -> Callable[[Path], None]:
    return lambda run: (run / "history.csv").write_text(text) and None


@pytest.mark.parametrize(
    "changes",
    [
        [without("index", "path")],
        [without("model/target")],
        [without("make/scores", "model/scores", "make/confidence", "model/confidence")],
        [nothing_in("test")],
        # each of what no section reads together
        [nothing_in("best"), nothing_in("cost"), history("step,val/model/accuracy\n1,0.5\n")],
        [
            nothing_in("timing"),
            nothing_in("versions"),
            history("epoch,train/make/loss,val/model/accuracy\n0,torn,0.5\n1,0.3,x\n"),
        ],
    ],
    ids=["no index", "no target", "no scores", "test", "best cost no epoch", "timing versions text"],
)
def test_an_odd_run_beside_a_good_one_is_reported(tmp_path: Path, changes: list[Callable[[Path], None]]) -> None:
    good = write_run(tmp_path / "s", config("parallel"), 0.6)
    odd = write_run(tmp_path / "s", config("cascade"), 0.7)
    for change in changes:
        change(odd)
    page, (comparison,), _ = build([tmp_path / "s"], tmp_path / "out")
    assert good in [run.directory for run in comparison.runs]
    assert "model %" in page.read_text()


def broken(comparison: Comparison) -> Section | None:
    raise ValueError(f"odd: {comparison.name}")


def test_a_section_that_cannot_be_made_is_a_sentence_of_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "s", config("parallel"), 0.6)
    monkeypatch.setattr(builder, "SECTIONS", (builder.SECTIONS[0], broken))
    with pytest.raises(ValueError, match="odd"):
        build([tmp_path / "s"], tmp_path / "out")
    monkeypatch.delenv(builder.STRICT)
    page, _, _ = build([tmp_path / "s"], tmp_path / "out")
    assert "It could not be made (ValueError: odd: synthetic_cars)" in page.read_text()


def test_nothing_of_an_earlier_report_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "s", config("parallel"), 0.6)
    page = build([tmp_path / "s"], tmp_path / "out")[0]
    old = [page.parent / "tables" / "delta_m.csv", page.parent / "figures" / "gone.svg"]
    kept = page.parent / "figures" / "notes.txt"
    for file in (*old, kept):
        file.write_text("x")
    monkeypatch.setattr(builder, "SECTIONS", builder.SECTIONS[:1])
    build([tmp_path / "s"], tmp_path / "out")
    assert not any(file.exists() for file in old)
    assert kept.exists()
    assert {file.stem for file in (page.parent / "tables").iterdir()} == {"results"}
