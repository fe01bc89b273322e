"""What the runs of a cell cost, as their metrics.json say."""

import math
from collections.abc import Mapping
from typing import Any

from mtlcar.report.collect import Run
from mtlcar.report.comparison import Cell
from mtlcar.report.intervals import Estimate

GMACS = "forward GMACs"
LATENCY = "latency"


def costs(cell: Cell) -> dict[str, Estimate]:
    """Number -> mean over the runs that have it (`values` has each one's), without an interval.

    `parameters` and `shared parameters` are counts; `forward GMACs` 1e9 multiply-adds an image; `latency/<task>` and
    `latency/all` milliseconds for one image; `minutes` of training; `images/s` while training; `step ms` the median
    time of a batch; `epochs`.
    """
    found: dict[str, list[float]] = {}
    for run in cell.runs:
        for name, value in _of(run).items():
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                found.setdefault(name, []).append(float(value))
    return {
        name: Estimate(sum(values) / len(values), math.nan, math.nan, len(values), tuple(values))
        for name, values in found.items()
    }


def shown(name: str, value: float) -> str:
    """One of these numbers as the tables show it: parameters in millions, times with three digits."""
    if value == 0:
        return "0"
    if name in ("parameters", "shared parameters"):
        return f"{value / 1e6:.{4 if value < 1e6 else 3}f}"
    if name == "minutes":
        return f"{value:.1f}" if value >= 1 else f"{value:.2g}"
    if name == "epochs":
        return f"{value:g}" if value == int(value) else f"{value:.1f}"
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def device(run: Run) -> str:
    """Where the run was tested and, as a rule, trained; empty in files of before this was written down."""
    return str(run.metrics.get("cost", {}).get("latency_device") or "")


def fit_hours(run: Run) -> float:
    """Hours of training, with those of a search before it; NaN where the file does not say."""
    seconds = _mapping(run.metrics.get("timing")).get("fit_seconds")
    return seconds / 3600 if isinstance(seconds, int | float) else math.nan


def _of(run: Run) -> dict[str, Any]:
    cost, timing = _mapping(run.metrics.get("cost")), _mapping(run.metrics.get("timing"))
    return {
        "parameters": cost.get("parameters"),
        "shared parameters": cost.get("shared_parameters"),
        GMACS: cost.get("forward_gmacs"),
        **{f"{LATENCY}/{task}": ms for task, ms in _mapping(cost.get("latency_ms")).items()},
        "minutes": 60 * fit_hours(run),
        "images/s": timing.get("train_images_per_second") or None,  # 0: nothing was measured
        "step ms": timing.get("step_ms_median") or None,
        "epochs": timing.get("epochs"),
    }


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
