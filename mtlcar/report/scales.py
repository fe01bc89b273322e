"""What the figures of settings and cost have in common: how metrics are shown, and between which limits."""

import textwrap
from collections.abc import Sequence

from mtlcar.report.comparison import Cell, Comparison
from mtlcar.report.figures import FAR
from mtlcar.report.intervals import Estimate
from mtlcar.report.table import axis_label, percent


def implied(cell: Cell, metric: str) -> bool:
    """Whether a metric is of a coarse class that the network does not predict itself."""
    return any(metric == f"{name}/accuracy" for run in cell.runs for name in run.implied)


def scale(metric: str) -> float:
    """What a number is multiplied by to be shown: fractions are shown in %."""
    return 100.0 if percent(metric) else 1.0


def words(comparison: Comparison, metric: str) -> str:
    """A test metric as an axis is labelled, with its unit."""
    return "test " + axis_label(metric, comparison.units.get(metric.rpartition("/")[0], ""))


def wide(values: Sequence[float], factor: float = FAR) -> bool:
    """Whether positive values range so far that an axis has to be logarithmic."""
    return bool(values) and min(values) > 0 and max(values) > factor * min(values)


def limits(metric: str, estimates: Sequence[Estimate]) -> tuple[float, float]:
    """Ends of an axis, in the unit shown: all means, and intervals as far as they do not squeeze the means together.

    The t interval of two seeds can be ten times as wide as all means are apart."""
    factor = scale(metric)
    means = [factor * e.mean for e in estimates]
    low, high = min(means), max(means)
    spread = max(high - low, 0.02 * max(abs(low), abs(high)), 1e-9)
    ends = [factor * end for e in estimates if e.has_interval for end in (e.low, e.high)]
    low = min([low, *(max(end, low - spread) for end in ends)]) - 0.08 * spread
    high = max([high, *(min(end, high + spread) for end in ends)]) + 0.08 * spread
    room = 0.03 * (high - low)
    return (max(low, -room), min(high, 100 + room)) if percent(metric) else (max(low, -room), high)


def short(text: str, width: int = 60) -> str:
    """`text` of at most so many letters."""
    return textwrap.shorten(text, width, placeholder="…")
