"""Finished runs that exist in memory alone, for tests of what a report makes of them."""

from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pandas as pd

from mtlcar.report.collect import Run
from mtlcar.report.comparison import Comparison, compare
from mtlcar.tasks import TaskSet
from tests.run_dirs import CARS, config

_finished = count()


def made(
    architecture: str = "parallel",
    seed: int = 0,
    *,
    test: Mapping[str, float] | None = None,
    val: float | None = None,
    monitor: str = "val/model/accuracy",
    cost: Mapping[str, Any] | None = None,
    timing: Mapping[str, Any] | None = None,
    history: pd.DataFrame | None = None,
    tasks: TaskSet = CARS,
    **overrides: Any,
) -> Run:
    """A run with these numbers in its metrics.json; `overrides` as for `tests.run_dirs.config`."""
    trained = ["model"] if architecture == "single" else list(tasks.names)
    number = next(_finished)
    metrics: dict[str, Any] = {
        "fingerprint": f"{number:012x}",
        "status": "finished",
        "best": {"epoch": 1, "step": 10, "monitor": monitor, "value": val},
        "test": {**(test or {}), **{f"{name}/loss": 1.0 for name in trained}},
        "cost": dict(cost or {}),
        "timing": dict(timing or {}),
    }
    run = Run(Path(f"/nowhere/s/{number:012x}"), config(architecture, seed, **overrides), metrics, tasks, float(number))
    run.__dict__["history"] = pd.DataFrame() if history is None else history
    run.__dict__["predictions"] = None
    return run


def comparison_of(runs: Sequence[Run]) -> Comparison:
    """Their only comparison."""
    (only,) = compare(runs)
    return only
