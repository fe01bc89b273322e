"""What one metric costs in another, and in parameters, multiply-adds and minutes: the cells that no other one beats."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from mtlcar.metrics.direction import lower_is_better as is_lower
from mtlcar.report.comparison import Cell, Comparison
from mtlcar.report.cost_numbers import GMACS, costs, shown
from mtlcar.report.intervals import Estimate
from mtlcar.report.pareto_figure import LISTED, planes_figure
from mtlcar.report.ranking import known, main_metric
from mtlcar.report.scales import implied
from mtlcar.report.section import Drawing, Row, Section, Sheet
from mtlcar.report.table import heading, text
from mtlcar.report.varied import NONE

COSTS = ("parameters", GMACS, "minutes")
ALIKE = 1.01
"""Costs of which the largest is not so many times the least are not worth a figure."""


@dataclass
class Plane:
    """Two numbers of each cell that has both.

    Attributes:
        x, y: their names; `points` are (index of the cell in the comparison, x, y).
        front: positions in `points` of those that no other beats in both, along the front.
        hollow: indices of cells whose coarse class is implied, not predicted.
    """

    x: str
    y: str
    points: list[tuple[int, Estimate, Estimate]]
    front: list[int]
    hollow: set[int]

    @property
    def members(self) -> list[int]:
        """Indices of the cells on the front, along it."""
        return [self.points[i][0] for i in self.front]


def pareto_front(points: Sequence[tuple[float, float]], lower_is_better: tuple[bool, bool]) -> list[int]:
    """The points that no other point beats: none is as good in both numbers and better in one.

    Equal points are all in or all out; points with a NaN are out and beat nothing. O(n log n).

    Returns:
        Their indices by the first number, the best first; ties in the order of `points`.
    """
    signs = [1.0 if lower else -1.0 for lower in lower_is_better]
    costs = [(signs[0] * x, signs[1] * y, i) for i, (x, y) in enumerate(points) if x == x and y == y]
    found: list[int] = []
    least, last = float("inf"), None
    for x, y, i in sorted(costs):
        if not found or y < least or (x, y) == last:
            found.append(i)
            least, last = y, (x, y)
    return found


def section(comparison: Comparison) -> Section | None:
    """The front of two test metrics, and of the main one and what it costs; None with fewer than three cells."""
    pairs = [plane for plane in (_plane(comparison, x, y) for x, y in objectives(comparison)) if plane is not None]
    against = [_plane(comparison, cost, main_metric(comparison)) for cost in COSTS]
    priced = [plane for plane in against if plane is not None and _differ(plane)]
    if not pairs and not priced:
        return None
    found = Section("Trade-offs")
    common = (
        "One mark a cell, means over seeds; bars: 95 % intervals, cut at the frame. Black with a number: the Pareto "
        "front of the means, cells that no other beats in both; stairs: what it beats. A cell whose interval reaches "
        "beyond the stairs may belong to it."
    )
    drawn = [(f"pareto_{p.x.replace('/', '_')}_{p.y.replace('/', '_')}", [p]) for p in pairs]
    drawn += [("pareto_cost", priced)] if priced else []
    for name, planes in drawn:
        what = " and ".join(f"{heading(p.y)} against {heading(p.x)}" for p in planes)
        caption = f"{comparison.name}: {what}. {common}"
        if any(p.hollow for p in planes):
            caption += " Hollow: its coarse class is implied by the finer one, not predicted."
        left_out = len(comparison.cells) - max(len(p.points) for p in planes)
        if left_out:
            caption += f" {left_out} cells have only one of the two."
        if max(len(p.front) for p in planes) > LISTED:
            caption += f" Only the first {LISTED} of the front are named; the table has all."
        if any(p.x == "minutes" for p in planes):
            caption += " Minutes compare only on one machine under one load; their bars: least to most over seeds."
        found.drawings.append(Drawing(name, caption, planes_figure(comparison, planes)))
    flat = [heading(p.x) for p in against if p is not None and not _differ(p)]
    if flat:
        found.paragraphs.append(f"Within 1 % of each other in all cells, so not drawn: {'; '.join(flat)}.")
    found.sheets.append(_sheet(comparison, [*pairs, *priced]))
    return found


def objectives(comparison: Comparison) -> list[tuple[str, str]]:
    """Pairs of test metrics to set against each other: the coarsest level and the finest, the finest class and the
    mean error of the first value; else the first two classes or values."""
    runs = [run.tasks for run in comparison.runs]
    if not runs:
        return []
    tasks = max(runs, key=len)
    classes = [f"{task.name}/accuracy" for task in tasks.classification]
    values = [f"{task.name}/mae" for task in tasks.regression]
    if not classes:
        return [(values[0], values[1])] if len(values) > 1 else []
    finest = f"{tasks.finest().name}/accuracy"
    above = [f"{name}/accuracy" for name in tasks.ancestors(tasks.finest().name)]
    coarse = above[-1:] or [metric for metric in classes if metric != finest][:1]
    return [*((metric, finest) for metric in coarse), *((value, finest) for value in values[:1])]


def _numbers(cell: Cell, metric: str) -> Estimate | None:
    if metric == GMACS:
        return costs(cell).get(GMACS)
    return cell.numbers[metric] if known(cell, metric) else None


def _plane(comparison: Comparison, x: str, y: str) -> Plane | None:
    """None with fewer than three cells that have both numbers: two have no front worth a figure."""
    both = [(i, _numbers(cell, x), _numbers(cell, y)) for i, cell in enumerate(comparison.cells)]
    points = [(i, a, b) for i, a, b in both if a is not None and b is not None]
    if len(points) < 3:
        return None
    lower = (x == GMACS or is_lower(x), is_lower(y))
    front = pareto_front([(a.mean, b.mean) for _, a, b in points], lower)
    hollow = {i for i, _, _ in points if implied(comparison.cells[i], x) or implied(comparison.cells[i], y)}
    return Plane(x, y, points, front, hollow)


def _differ(plane: Plane) -> bool:
    means = [a.mean for _, a, _ in plane.points]
    return max(means) > ALIKE * min(means)


def _sheet(comparison: Comparison, planes: Sequence[Plane]) -> Sheet:
    """The cells on any front, with the numbers of all planes and the fronts they are on."""
    metrics = list(dict.fromkeys(name for plane in planes for name in (plane.y, plane.x)))
    units = comparison.units
    lines: list[Row] = []
    records = []
    for i, cell in enumerate(comparison.cells):
        on = [i in plane.members for plane in planes]
        numbers = {metric: _numbers(cell, metric) for metric in metrics}
        record: dict[str, object] = {"cell": cell.label, "n": len(cell.runs)}
        for metric, e in numbers.items():
            record |= {metric: None if e is None else e.mean}
            if e is not None and e.has_interval:
                record |= {f"{metric}/low": e.low, f"{metric}/high": e.high}
        records.append(record | {f"front {p.x} {p.y}": member for p, member in zip(planes, on, strict=True)})
        if any(on):
            texts = [NONE if e is None else _text(metric, e) for metric, e in numbers.items()]
            marks = ["yes" if member else "no" for member in on]
            lines.append([(t, False) for t in (str(i + 1), cell.label, *texts, *marks)])
    heads = [heading(metric, units.get(metric.rpartition("/")[0], "")) for metric in metrics]
    fronts = [f"front of {heading(plane.y).removesuffix(' %')}, {_short(plane.x)}" for plane in planes]
    note = (
        "Cells on the Pareto front of at least one pair of numbers, by their means; no.: the number in the figures, "
        "which is the place in the table of all cells."
    )
    return Sheet("pareto", "Pareto fronts", ["no.", "cell", *heads, *fronts], lines, pd.DataFrame(records), note)


def _short(metric: str) -> str:
    return {"minutes": "minutes", "parameters": "parameters"}.get(metric, heading(metric).removesuffix(" %"))


def _text(metric: str, e: Estimate) -> str:
    return shown(metric, e.mean) if metric in COSTS else text(metric, e)
