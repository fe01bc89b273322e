"""Every number of a report that is about test images follows from predictions.parquet, by `tests.recompute`."""

import json
from pathlib import Path

import pandas as pd
import pytest

from mtlcar.report.build import build
from tests.recompute import Recomputed
from tests.run_dirs import config, steel, write_run, write_steel

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for architecture, skill in (("parallel", 0.6), ("cascade", 0.7), ("single", 0.65)):
        for seed in (0, 1):
            write_run(folder / "s", config(architecture, seed), skill)
    build([folder / "s"], folder / "report")
    return folder


def test_every_number_of_cars_is_recomputed(runs: Path) -> None:
    checked = Recomputed(runs / "report" / "tables", runs).all()
    files = {file.stem for file in (runs / "report" / "tables").glob("*.csv")}
    assert {"results", "decodings", "pairs", "delta_m", "calibration", "confusions", "pareto"} == set(checked)
    assert {"results", "decodings", "delta_m", "pairs_model_accuracy", "pairs_weight_mae"} <= files
    assert checked["results"] >= 3 * 9
    assert checked["decodings"] >= 2 * 4 * 5


def test_a_number_that_is_off_is_found(runs: Path, tmp_path: Path) -> None:
    tables = tmp_path / "tables"
    tables.mkdir()
    for file in (runs / "report" / "tables").glob("*.csv"):
        (tables / file.name).write_bytes(file.read_bytes())
    for name, column in (("results", "model/accuracy"), ("decodings", "mean"), ("calibration_model", "mean")):
        kept = (tables / f"{name}.csv").read_bytes()
        table = pd.read_csv(tables / f"{name}.csv")
        table.loc[0, column] += 0.001
        table.to_csv(tables / f"{name}.csv", index=False)
        with pytest.raises(AssertionError, match=name.partition("_")[0]):
            Recomputed(tables, runs).all()
        (tables / f"{name}.csv").write_bytes(kept)


def test_every_number_of_steels_is_recomputed(tmp_path: Path) -> None:
    for method, error in (("FastCAR", 10.0), ("two heads", 40.0)):
        for seed in (0, 1):
            write_steel(tmp_path / "s", steel(error, seed, wrong=2 + seed), method=method, seed=seed)
    build([tmp_path / "s"], tmp_path / "report")
    checked = Recomputed(tmp_path / "report" / "tables", tmp_path).all()
    assert checked["results"] >= 2 * 5
    assert checked["pairs"] >= 2


def test_the_html_shows_the_numbers_of_the_csv(runs: Path) -> None:
    page = (runs / "report" / "report.html").read_text()
    table = pd.read_csv(runs / "report" / "tables" / "results.csv")
    for value, high in zip(table["model/accuracy"], table["model/accuracy/high"], strict=True):
        assert f"{100 * value:.1f} ± {100 * (high - value):.1f}" in page
    stored = json.loads(next((runs / "s").glob("*/metrics.json")).read_text())["test"]
    assert any(abs(stored["model/accuracy"] - value) < 0.2 for value in table["model/accuracy"])
