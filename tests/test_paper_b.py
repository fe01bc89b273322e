"""The small form of paper B's grid runs from the command line as the user would type it."""

from pathlib import Path

import pandas as pd
import pytest

from mtlcar.runs.files import read_json
from tests.cli import mtlcar


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("narrowed", "cells", "branching"),
    [
        # a cell is a process of its own, and most of its seconds are imports
        (("architecture=parallel,mmoe,ltb", "weighting=cagrad", "head=mlp"), 3, 1),
        pytest.param((), 24, 4, marks=pytest.mark.slow),
    ],
)
def test_the_small_grid_of_paper_b_is_one_multirun_and_one_report(
    tmp_path: Path, narrowed: tuple[str, ...], cells: int, branching: int
) -> None:
    words = ("trainer=cpu", "threads=1", f"paths.runs={tmp_path / 'runs'}", f"paths.cache={tmp_path / 'cache'}")
    mtlcar("train", "-m", "experiment=paper_b/small", *narrowed, *words)
    sweep = tmp_path / "runs" / "paper_b_small"
    found = [read_json(path) for path in sorted(sweep.glob("*/metrics.json"))]
    assert len(found) == len(list(sweep.glob("*/DONE"))) == cells
    for metrics in found:
        assert metrics["status"] == "finished"
        assert metrics["cost"]["shared_parameters"] > 0
        assert set(metrics["cost"]["task_gmacs"]) == {"make", "model"}
    trees = [metrics["findings"]["tree"] for metrics in found if "tree" in metrics["findings"]]
    assert len(trees) == branching
    for tree in trees:  # a branch in each of the three stages that ltb does not share; the last is the task's own
        assert {task: path[-1] for task, path in tree.items()} == {"make": 0, "model": 1}
        assert all(len(path) == 3 and set(path) <= {0, 1} for path in tree.values())
    mtlcar("report", str(sweep))
    table = pd.read_csv(sweep / "report" / "table.csv")
    assert len(table) == cells
