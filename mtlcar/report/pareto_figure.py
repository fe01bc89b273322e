"""Cells in the plane of two numbers, with the front of those that no other beats."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator

from mtlcar.metrics.direction import lower_is_better
from mtlcar.report.comparison import Comparison
from mtlcar.report.cost_numbers import GMACS
from mtlcar.report.figures import FONTS, LEGEND_ROW, MARKERS
from mtlcar.report.intervals import Estimate
from mtlcar.report.scales import limits, scale, short, wide, words

if TYPE_CHECKING:
    from mtlcar.report.pareto import Plane

LISTED = 16
"""Most cells of a front that are named beside the figure."""
BARS = 40
"""Most cells with intervals; of more, only the front has them."""
MARK, LETTER = 3.0, 10.0
"""Half a mark's width and a number's height, in points."""
OFFSETS = [
    (dx, dy)
    for far in (8.0, 14.0, 21.0)
    for dx, dy in (
        *((far, far), (-far, far), (far, -far), (-far, -far)),
        *((0.0, far + 2), (far + 2, 0.0), (0.0, -far - 2), (-far - 2, 0.0)),
    )
]
"""Places of a number beside its mark, in points; the first are liked best."""
COST_LABELS = {
    "parameters": "parameters, millions",
    GMACS: "multiply-adds of one image, 1e9",
    "minutes": "training, minutes",
}


def planes_figure(comparison: Comparison, planes: Sequence["Plane"]) -> Figure:
    """A panel for each plane, side by side; they have the same y. The front's cells are named below by number."""
    members = list(dict.fromkeys(i for plane in planes for i in plane.members[:LISTED]))
    names = [f"{i + 1}  {short(comparison.cells[i].label, 70)}" for i in sorted(members)]
    kinds = list(dict.fromkeys(cell.values[:1] for cell in comparison.cells))
    marked = comparison.keys and 1 < len(kinds) <= len(MARKERS)
    across = len(planes)
    width = max(3.3 * across + 0.6, 5.6)
    longest = max((len(short(str(kind[0]), 40)) for kind in kinds if kind), default=0)
    beside = max(1, min(len(kinds), 4, int(width / (0.55 + 0.075 * longest))))  # entries of the legend in a row
    legend = LEGEND_ROW * (math.ceil(len(kinds) / beside) + 0.5) if marked else 0.1
    columns = max(1, min(3, len(names), int(width / 0.062 / (max(map(len, names)) + 3))))
    rows = math.ceil(len(names) / columns)
    below = 0.148 * rows + 0.2
    size = (width, 3.4 + legend + below)
    with sns.axes_style("whitegrid", {"grid.color": "0.93"}), sns.plotting_context("notebook", rc=FONTS):
        figure = Figure(figsize=size, dpi=120)
        figure.set_layout_engine("constrained", rect=(0, below / size[1], 1, 1 - below / size[1]))
        axes = figure.subplots(1, across, sharey=True, squeeze=False).ravel()
        for ax, plane in zip(axes, planes, strict=True):
            _plane(ax, comparison, plane, kinds if marked else [], (width - 0.6) / across)
        axes[0].set_ylabel(words(comparison, planes[0].y))
        if marked:
            handles = [
                Line2D([], [], ls="", marker=MARKERS[i], color="0.25", ms=6, label=short(str(kind[0]), 40))
                for i, kind in enumerate(kinds)
            ]
            figure.legend(handles=handles, loc="outside upper center", ncols=beside, frameon=False)
        for column in range(columns):
            some = names[column * rows : (column + 1) * rows]
            x, y = 0.02 + column * 0.98 / columns, (below - 0.08) / size[1]
            figure.text(x, y, "\n".join(some), va="top", fontsize=8, linespacing=1.3).set_in_layout(False)
    return figure


def _scale(metric: str) -> float:
    return 1e-6 if metric == "parameters" else scale(metric)


def _plane(ax: Axes, comparison: Comparison, plane: "Plane", kinds: Sequence[tuple[str, ...]], width: float) -> None:
    cost = plane.x in COST_LABELS
    fx, fy = _scale(plane.x), _scale(plane.y)
    bars = len(plane.points) <= BARS
    for position, (i, x, y) in enumerate(plane.points):
        on = position in plane.front
        shade = "black" if on else "0.5"
        kind = comparison.cells[i].values[:1]
        marker = MARKERS[kinds.index(kind)] if kinds else "o"
        if bars or on:
            if y.has_interval:
                ax.plot([fx * x.mean] * 2, [fy * y.low, fy * y.high], color="0.6", lw=0.9, zorder=2)
            if plane.x == "minutes" and len(x.values) > 1:
                ax.plot([min(x.values), max(x.values)], [fy * y.mean] * 2, color="0.6", lw=0.9, zorder=2)
            elif x.has_interval:
                ax.plot([fx * x.low, fx * x.high], [fy * y.mean] * 2, color="0.6", lw=0.9, zorder=2)
        face = "white" if i in plane.hollow else shade
        size = 34 if on else 24 if bars else 9
        above = 4 if on else 3
        ax.scatter([fx * x.mean], [fy * y.mean], s=size, marker=marker, facecolor=face, edgecolor=shade, zorder=above)
    ax.set_ylim(limits(plane.y, [y for _, _, y in plane.points]))
    means = [fx * value for _, x, _ in plane.points for value in (x.values if plane.x == "minutes" else (x.mean,))]
    if not cost:
        ax.set_xlim(limits(plane.x, [x for _, x, _ in plane.points]))
    elif wide(means):
        ax.set_xscale("log")
        ax.set_xlim(min(means) / 1.25, max(means) * 1.25)
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(means) < 100 * min(means) else (1,)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter("")
    else:
        room = 0.1 * (max(means) - min(means))
        ax.set_xlim(min(means) - room, max(means) + room)
        ax.locator_params(axis="x", nbins=5)
    label = COST_LABELS.get(plane.x) or words(comparison, plane.x)
    ax.set_xlabel(f"{label} (log axis)" if ax.get_xscale() == "log" else label)
    _stairs(ax, plane)
    _numbers(ax, plane, 72 * width, 72 * 2.9)


def _stairs(ax: Axes, plane: "Plane") -> None:
    """From member to member through the corner that both beat, and on to the frame."""
    lower = plane.x in COST_LABELS or lower_is_better(plane.x)
    points = [
        (_scale(plane.x) * plane.points[i][1].mean, _scale(plane.y) * plane.points[i][2].mean) for i in plane.front
    ]
    if not points:
        return
    xs, ys = ax.get_xlim(), ax.get_ylim()
    worst_y = ys[1] if lower_is_better(plane.y) else ys[0]
    worst_x = xs[1] if lower else xs[0]
    path = [(points[0][0], worst_y), points[0]]
    for (_, y0), (x1, y1) in pairwise(points):
        path += [(x1, y0), (x1, y1)]
    path.append((worst_x, points[-1][1]))
    ax.plot(*zip(*path, strict=True), color="black", lw=1.3, ls="--", zorder=2.5)
    ax.set_xlim(xs)
    ax.set_ylim(ys)


def _numbers(ax: Axes, plane: "Plane", width: float, height: float) -> None:
    """The number of each member beside its mark, where it covers no mark and no other number as far as possible.

    Args:
        width, height: of the panel in points, about: it is not laid out yet.
    """
    xs, ys = np.array(ax.get_xlim()), np.array(ax.get_ylim())

    def place(x: Estimate, y: Estimate) -> tuple[float, float]:
        value, ends = _scale(plane.x) * x.mean, xs
        if ax.get_xscale() == "log":
            value, ends = math.log(value), np.log(xs)
        up = (_scale(plane.y) * y.mean - ys[0]) / (ys[1] - ys[0])
        return width * float((value - ends[0]) / (ends[1] - ends[0])), height * float(up)

    members = plane.front[:LISTED]
    shown = [str(plane.points[position][0] + 1) for position in members]
    marks = [place(x, y) for _, x, y in plane.points]
    offsets = free_offsets(marks, members, [6.5 * len(text) for text in shown], width, height)
    for position, text, offset in zip(members, shown, offsets, strict=True):
        _, x, y = plane.points[position]
        ax.annotate(
            text,
            (_scale(plane.x) * x.mean, _scale(plane.y) * y.mean),
            xytext=offset,
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8,
            fontweight="bold",
            zorder=5,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
            arrowprops={"arrowstyle": "-", "lw": 0.6, "color": "0.4", "shrinkB": 3}
            if max(map(abs, offset)) > 12
            else None,
        )


def free_offsets(
    marks: Sequence[tuple[float, float]],
    labelled: Sequence[int],
    widths: Sequence[float],
    width: float,
    height: float,
) -> list[tuple[float, float]]:
    """Where the middle of each label goes, from its mark: one label after the other takes the place near its mark
    where it covers the least of the marks and of the labels before it, and stays in the frame. All in points.

    Args:
        marks: middles of all marks.
        labelled: which of them get a label, of these `widths`.
        width, height: of the frame, whose corner is (0, 0).
    """
    taken = [(x - MARK, y - MARK, x + MARK, y + MARK, 1.0) for x, y in marks]
    found = []
    for index, wide_ in zip(labelled, widths, strict=True):
        x, y = marks[index]
        best, least = (0.0, 0.0), math.inf
        for dx, dy in OFFSETS:
            a = (x + dx - wide_ / 2, y + dy - LETTER / 2, x + dx + wide_ / 2, y + dy + LETTER / 2)
            outside = a[0] < 0 or a[1] < 0 or a[2] > width or a[3] > height
            covered = 1e4 * outside + sum(
                weight * max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
                for *b, weight in taken
            )
            if covered < least:
                best, least, box = (dx, dy), covered, a
        taken.append((*box, 10.0))  # another label is worse to cover than a mark
        found.append(best)
    return found
