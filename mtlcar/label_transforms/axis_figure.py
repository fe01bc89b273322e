"""The picture of FastCAR: ranges of a value, the intervals they become, and what was predicted on that axis."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon, Rectangle
from torch import Tensor

from mtlcar.tasks import Task

WIDTH = 9.0
"""Inches of the figure."""
CHARACTER = 0.075
"""Inches of one character at the size of the names."""
FEW = 12
"""Most classes whose move on the axis gets an arrow."""
NAMED = 40
"""Most classes whose names are written beside the predictions."""
GREYS = ("0.35", "0.6")
"""Of classes that are neighbours on the axis."""
BAR = 0.34
"""Half the height of a range."""
LANE = 1.35
"""From one lane of ranges to the next."""
DASHES = (0, (4, 3))
"""Of the lines where the class changes."""
MARKED = 3000
"""Most labels that are drawn one by one."""


def axis_figure(
    task: Task, value: Task, constants: Mapping[str, Any], labels: tuple[Tensor, Tensor], predictions: pd.DataFrame
) -> Figure:
    """Above: each class's range of the value in training, and below it the interval it becomes by adding a constant.
    Below, on the same axis: the predicted positions, a row for each true class; crosses are decoded as a wrong class.

    Args:
        constants: of `FastCAR.constants`, classes in the order of the axis.
        labels: training classes int64 [n] and values float64 [n].
        predictions: predictions.parquet; rows without a class label or a finite position are left out.
    """
    names = [str(name) for name in constants["classes"]]
    low, high, offset = (np.array(constants[key], dtype=float) for key in ("low", "high", "offset"))
    rank = np.array([names.index(name) for name in task.classes])
    k = len(names)
    lanes = _lanes(low - offset, high - offset)
    height = 2.0 + 0.38 * min(lanes.max(), 8), float(np.clip(0.26 * k + 1.1, 2.0, 5.0))
    figure = Figure(figsize=(WIDTH, sum(height)), dpi=120, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=height)
    ends = min(low.min(), (low - offset).min()), max(high.max(), (high - offset).max())
    room = 0.05 * (ends[1] - ends[0])
    above.set_xlim(ends[0] - room, ends[1] + room)

    _draw_move(above, names, low, high, offset, lanes, (rank[labels[0].numpy()], labels[1].numpy()))
    unit = f" ({value.unit})" if value.unit else ""
    above.set_title(_story(task, value, names, low, high, offset), fontsize=10, loc="left")
    upper = above.secondary_xaxis("top")
    upper.set_xlabel(f"{value.name}{unit}, as labelled", fontsize=9)
    upper.tick_params(labelsize=8)

    _draw_predictions(below, task, predictions, rank, low, high)
    figure.legend(handles=_legend(below), loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    below.set_title(_outcome(task, predictions), fontsize=10, loc="left")
    below.set_xlabel(f"position on the axis = {value.name} + the constant of its class{unit}", fontsize=9)
    if k <= NAMED:
        below.set_yticks(range(k), names)
    below.set_ylabel(f"true {task.name}" + ("" if k <= NAMED else " (in the axis's order)"), fontsize=9)

    for ax in (above, below):
        ax.tick_params(labelsize=8)
        ax.spines[["top", "right"]].set_visible(False)
        ends_of_line = (-BAR - 0.1, 0.5) if ax is above else below.get_ylim()
        for x in (high[:-1] + low[1:]) / 2:
            ax.plot([x, x], ends_of_line, color="black", lw=0.8 if k <= NAMED else 0.2, ls=DASHES, zorder=1)
    above.tick_params(axis="x", labelbottom=False)
    below.tick_params(axis="y", labelsize=8 if k <= 20 else 6)
    return figure


def _lanes(start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """[K] from 0: ranges that meet are in different lanes, as few as there can be."""
    taken: list[float] = []
    lanes = np.zeros(len(start), dtype=int)
    for c in np.argsort(start, kind="stable"):
        free = [i for i, end in enumerate(taken) if end < start[c]]
        lanes[c] = free[0] if free else len(taken)
        taken[lanes[c] : lanes[c] + 1] = [stop[c]]
    return lanes


def _draw_move(
    ax: Axes,
    names: list[str],
    low: np.ndarray,
    high: np.ndarray,
    offset: np.ndarray,
    lanes: np.ndarray,
    labels: tuple[np.ndarray, np.ndarray],
) -> None:
    """The intervals at height 0, the ranges they were in lanes above, and what leads from one to the other."""
    k = len(names)
    heights = 2.0 + LANE * lanes
    per_inch = np.ptp(ax.get_xlim()) / (WIDTH - 1)
    start, stop = low - offset, high - offset
    edge = 1.2 if k <= NAMED else 0.4
    bands = []
    for c in range(k):
        bottom, top = heights[c] - BAR, BAR
        bands.append(Polygon([(start[c], bottom), (stop[c], bottom), (high[c], top), (low[c], top)]))
    colours = [GREYS[c % 2] for c in range(k)]
    ax.add_collection(PatchCollection(bands, facecolor=colours, edgecolor=colours, lw=edge / 2, alpha=0.22, zorder=1))
    for left, right, y in ((start, stop, heights), (low, high, np.zeros(k))):
        bars = [Rectangle((left[c], y[c] - BAR), right[c] - left[c], 2 * BAR) for c in range(k)]
        ax.add_collection(PatchCollection(bars, facecolor=colours, edgecolor=colours, lw=edge, zorder=2))
    pairs = np.unique(np.stack([labels[0].astype(float), labels[1]], axis=1), axis=0)
    if k <= NAMED and len(pairs) <= MARKED:  # where labels are in their range
        pairs = pairs[(stop > start)[pairs[:, 0].astype(int)]]
        c, y = pairs[:, 0].astype(int), pairs[:, 1]
        for x, at in ((y, heights[c]), (y + offset[c], np.zeros(len(c)))):
            marks = [((xi, yi - 0.5 * BAR), (xi, yi + 0.5 * BAR)) for xi, yi in zip(x, at, strict=True)]
            ax.add_collection(LineCollection(marks, colors="white", linewidths=0.5, zorder=3))
    if k <= FEW:
        for c in range(k):
            ends = ((start[c] + stop[c]) / 2, heights[c] - BAR), ((low[c] + high[c]) / 2, BAR)
            style = {"arrowstyle": "-|>", "color": "black", "lw": 1.6 if offset[c] else 0.6, "shrinkA": 0, "shrinkB": 1}
            ax.annotate("", ends[1], ends[0], arrowprops=style, zorder=4)
            if offset[c]:
                at = (ends[0][0] + ends[1][0]) / 2, (ends[0][1] + ends[1][1]) / 2
                box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
                ax.text(*at, f"{offset[c]:+.4g}", fontsize=8.5, ha="center", va="center", bbox=box, zorder=5)
    for left, right, y, side in ((low, high, np.zeros(k), "top"), (start, stop, heights, "bottom")):
        spots = [((left[c] + right[c]) / 2, y[c] + (BAR + 0.1) * (-1 if side == "top" else 1)) for c in range(k)]
        if k <= NAMED and _fit(names, spots, CHARACTER * per_inch, ax.get_xlim()):
            for name, spot in zip(names, spots, strict=True):
                ax.text(*spot, name, fontsize=9, ha="center", va=side)
    ax.set_ylim(-1.15, heights.max() + 1)
    ax.set_yticks([0, (2 + heights.max()) / 2], ["intervals", "labels"])
    ax.tick_params(axis="y", length=0)


def _fit(names: list[str], spots: list[tuple[float, float]], character: float, limits: tuple[float, float]) -> bool:
    """Whether names of this width per character, centred on their spots, neither touch nor leave the picture."""
    half = [0.5 * character * (len(name) + 1) for name in names]
    spans = sorted((y, x - h, x + h) for (x, y), h in zip(spots, half, strict=True))
    apart = all(b[1] >= a[2] for a, b in pairwise(spans) if a[0] == b[0])
    return apart and all(limits[0] <= a and b <= limits[1] for _, a, b in spans)


def _legend(ax: Axes) -> list[Artist]:
    """What is on the lower panel, and what its lines and shades mean."""
    dashed = Line2D(
        [], [], color="black", lw=0.8, ls=DASHES, label="where the class changes, half-way between intervals"
    )
    shade = Rectangle((0, 0), 1, 1, facecolor="0.87", label="the true class's interval")
    return [*ax.get_legend_handles_labels()[0], shade, dashed]


def _draw_predictions(
    ax: Axes, task: Task, predictions: pd.DataFrame, rank: np.ndarray, low: np.ndarray, high: np.ndarray
) -> None:
    """A row for each true class, its interval shaded; dots are right, crosses wrong, triangles beyond the picture."""
    k = len(rank)
    rows = [Rectangle((low[c], c - 0.46), high[c] - low[c], 0.92) for c in range(k)]
    edge = 1.2 if k <= NAMED else 0.4
    ax.add_collection(PatchCollection(rows, facecolor="0.87", edgecolor="0.87", lw=edge, zorder=0))
    ax.set_ylim(-0.6, k - 0.4)
    target, right, x = _placed(task, predictions)
    if not len(x):
        ax.text(0.5, 0.5, "no predictions with a position", ha="center", va="center", transform=ax.transAxes)
        return
    y = rank[target] + 0.7 * (np.arange(len(x)) * 0.618034 % 1 - 0.5)
    left, end = ax.get_xlim()
    inside = (x >= left) & (x <= end)
    size = 9.0 if len(x) <= 2000 and k <= NAMED else 3.0
    styles: list[tuple[np.ndarray, dict[str, Any]]] = [
        (inside & right, {"marker": "o", "s": size, "color": "0.25", "alpha": 0.45, "lw": 0, "label": "right class"}),
        (inside & ~right, {"marker": "x", "s": 3 * size, "color": "black", "lw": 1.1, "label": "wrong class"}),
        (x < left, {"marker": "<", "s": 3 * size, "color": "black", "label": "further left", "clip_on": False}),
        (x > end, {"marker": ">", "s": 3 * size, "color": "black", "label": "further right", "clip_on": False}),
    ]
    for chosen, style in styles:
        if chosen.any():
            ax.scatter(np.clip(x[chosen], left, end), y[chosen], zorder=3, **style)


def _placed(task: Task, predictions: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True classes, whether each is predicted, and positions, of the rows that have both."""
    target = predictions[f"{task.name}/target"].fillna(-1).to_numpy(dtype=int)
    guess = predictions[f"{task.name}/prediction"].fillna(-1).to_numpy(dtype=int)
    x = predictions["axis/position"].to_numpy(dtype=float)
    seen = (target >= 0) & np.isfinite(x)
    return target[seen], (target == guess)[seen], x[seen]


def _story(task: Task, value: Task, names: list[str], low: np.ndarray, high: np.ndarray, offset: np.ndarray) -> str:
    """What the upper panel shows, in a sentence."""
    order = np.argsort(low - offset, kind="stable")
    reach = np.maximum.accumulate((high - offset)[order])
    meet = int((((low - offset)[order])[1:] <= reach[:-1]).sum())
    ranges = f"Each {task.name}'s range of {value.name} in training" + ("" if meet else ": no two of them meet")
    moved = int((offset != 0).sum())
    return f"{ranges}; a constant for each {task.name} makes disjoint intervals ({moved} of {len(names)} move)"


def _outcome(task: Task, predictions: pd.DataFrame) -> str:
    """What the lower panel shows, in numbers."""
    right, x = _placed(task, predictions)[1:]
    if not len(x):
        return "Predicted positions"
    flags = predictions["axis/flag"].to_numpy()[predictions[f"{task.name}/target"].to_numpy() >= 0]
    shares = [
        f"{100 * np.mean(flags == flag):.1f} % {where}" for flag, where in enumerate(("in an interval", "in a gap"))
    ]
    shares += [f"{100 * np.mean(flags == 2):.1f} % beyond the ends"]
    lost = f", {np.sum(flags == 3)} not finite" if (flags == 3).any() else ""
    return f"{len(x)} predictions: {100 * right.mean():.1f} % of classes right; {', '.join(shares)}{lost}"
