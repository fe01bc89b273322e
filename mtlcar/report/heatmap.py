"""Heat maps: two settings against each other, a shade and a number for each combination of their values."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mtlcar.metrics.direction import lower_is_better
from mtlcar.report.comparison import Comparison
from mtlcar.report.crossing import Grid, Place, crossed
from mtlcar.report.figures import FONTS
from mtlcar.report.ranking import compared_metrics
from mtlcar.report.scales import implied, scale, short, words
from mtlcar.report.section import Drawing, Section, Sheet
from mtlcar.report.table import digits, heading, plain, text
from mtlcar.report.varied import NONE

FAR = 1.5
"""How many interquartile ranges beyond the quartiles the shades end: a cell that failed must not make all others alike
(Tukey 1977, the whiskers of a box plot)."""
SHADES = LinearSegmentedColormap.from_list("shades", ["1.0", "0.55"])
"""White to a grey on which black numbers can still be read."""


def section(comparison: Comparison) -> Section | None:
    """Heat maps of the metrics that cells are compared by; None where no two settings were crossed."""
    grid = crossed(comparison)
    metrics = compared_metrics(comparison)
    if grid is None or not metrics:
        return None
    rows, columns, panels = grid.titles
    found = Section(f"{rows} and {columns}".capitalize())
    for metric in metrics:
        if not any(math.isfinite(e.mean) for e in grid.estimates(metric).values()):
            continue
        caption = (
            f"{comparison.name}: {words(comparison, metric)} by {rows} (rows) and {columns} (columns)"
            + (f", a panel for each {panels}" if len(grid.panels) > 1 else "")
            + ". Means over seeds; the darker, the better; the best is bold and framed; hatched: no result."
        )
        if any(implied(cell, metric) for cells in grid.places.values() for cell in cells):
            caption += " †: implied by the finer class, not predicted; it does not compete for the best."
        name = f"heatmap_{metric.replace('/', '_')}"
        found.drawings.append(Drawing(name, f"{caption} {grid.note}".strip(), heatmap(comparison, grid, metric)))
    found.sheets.append(_sheet(comparison, grid, metrics))
    return found


def heatmap(comparison: Comparison, grid: Grid, metric: str) -> Figure:
    """One metric: a panel for each value of the grid's third setting, all on one scale of shades."""
    estimates = grid.estimates(metric)
    small = len(grid.columns) <= 8 and len(grid.rows) <= 15
    spread = small and any(e.n > 1 and e.has_interval for e in estimates.values())
    wide, high = (0.68, 0.42) if spread else (0.58, 0.27)
    left = 0.075 * max(len(short(name, 40)) for name in grid.rows) + 0.5
    below = 0.055 * max(len(short(name, 30)) for name in grid.columns) + 0.5
    panel = max(wide * len(grid.columns), 1.6)
    across = max(1, min(len(grid.panels), int((12 - left) // (panel + 0.15))))
    down = math.ceil(len(grid.panels) / across)
    shown = [scale(metric) * e.mean for e in estimates.values() if math.isfinite(e.mean)]
    norm = _norm(metric, shown)
    size = (left + across * (panel + 0.15) + 1.0, down * (high * len(grid.rows) + 0.35) + below + 0.2)
    best = grid.best(metric)
    with sns.axes_style("white"), sns.plotting_context("notebook", rc=FONTS):
        figure = Figure(figsize=(max(size[0], 4.2), max(size[1], 2.4)), dpi=120, layout="constrained")
        axes = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
        for ax, name in zip(axes, grid.panels, strict=False):
            _panel(ax, grid, metric, name, norm, best, spread=spread)
        used = axes[: len(grid.panels)]
        for ax in axes[len(grid.panels) :]:
            ax.remove()
        for ax in used[max(len(grid.panels) - across, 0) :]:
            ax.tick_params(labelbottom=True)
        figure.supylabel(grid.titles[0], fontsize=9)
        figure.supxlabel(grid.titles[1], fontsize=9)
        shades = ScalarMappable(norm, SHADES.reversed() if lower_is_better(metric) else SHADES)
        beyond = "max" if max(shown) > (norm.vmax or 0.0) else "min" if min(shown) < (norm.vmin or 0.0) else "neither"
        bar = figure.colorbar(
            shades, ax=list(used), label=words(comparison, metric), fraction=0.05, shrink=0.9, extend=beyond
        )
        bar.ax.tick_params(labelsize=8)
    return figure


def _norm(metric: str, values: Sequence[float]) -> Normalize:
    """From the worst value that is no outlier to the best."""
    low, high = min(values), max(values)
    first, third = np.quantile(values, [0.25, 0.75])
    if lower_is_better(metric):
        high = min(high, float(third + FAR * (third - first))) if third > first else high
    else:
        low = max(low, float(first - FAR * (third - first))) if third > first else low
    return Normalize(low, high if high > low else low + max(abs(low), 1.0) * 0.01, clip=True)


def _panel(
    ax: Axes,
    grid: Grid,
    metric: str,
    panel: str,
    norm: Normalize,
    best: set[Place],
    *,
    spread: bool,
) -> None:
    estimates = grid.estimates(metric)
    shades = SHADES.reversed() if lower_is_better(metric) else SHADES
    size = 8 if len(grid.columns) <= 10 else 7
    for y, row in enumerate(grid.rows):
        for x, column in enumerate(grid.columns):
            place, corner = (row, column, panel), (x - 0.5, y - 0.5)
            e = estimates.get(place)
            if e is None or not math.isfinite(e.mean):
                ax.add_patch(Rectangle(corner, 1, 1, facecolor="white", edgecolor="0.7", hatch="////", lw=0))
                if e is not None:
                    ax.text(x, y, "nan", ha="center", va="center", fontsize=size, backgroundcolor="white")
                continue
            shade = shades(norm(scale(metric) * e.mean))
            ax.add_patch(Rectangle(corner, 1, 1, facecolor=shade, edgecolor="none"))
            shown = plain(metric, e.mean) + ("†" if any(implied(c, metric) for c in grid.places[place]) else "")
            if spread and e.n > 1 and e.has_interval:
                shown += f"\n±{scale(metric) * (e.high - e.mean):.{digits(metric, e.mean)}f}"
            weight = "bold" if place in best else "normal"
            ax.text(x, y, shown, ha="center", va="center", fontsize=size, fontweight=weight, linespacing=1.1)
    for y, row in enumerate(grid.rows):
        for x, column in enumerate(grid.columns):
            if (row, column, panel) in best:
                ax.add_patch(Rectangle((x - 0.47, y - 0.46), 0.94, 0.92, fill=False, edgecolor="black", lw=1.6))
    longest = max(len(short(name, 30)) for name in grid.columns)
    turned = longest > (9 if spread else 7)
    ax.set_xticks(
        range(len(grid.columns)),
        [short(name, 30) for name in grid.columns],
        rotation=40 if turned else 0,
        ha="right" if turned else "center",
        rotation_mode="anchor" if turned else None,
    )
    ax.set_yticks(range(len(grid.rows)), [short(name, 40) for name in grid.rows])
    ax.set_xlim(-0.5, len(grid.columns) - 0.5)
    ax.set_ylim(len(grid.rows) - 0.5, -0.5)
    ax.tick_params(length=0)
    ax.vlines(np.arange(1, len(grid.columns)) - 0.5, -0.5, len(grid.rows) - 0.5, color="white", lw=1.2)
    ax.hlines(np.arange(1, len(grid.rows)) - 0.5, -0.5, len(grid.columns) - 0.5, color="white", lw=1.2)
    named = f"{grid.titles[2]} {panel}" if panel[:1].isdigit() else panel
    ax.set_title(short(named, 45) if len(grid.panels) > 1 else "")


def _sheet(comparison: Comparison, grid: Grid, metrics: Sequence[str]) -> Sheet:
    """One line for each place, with what is in it."""
    titles = [title for title in grid.titles if title]
    best = {metric: grid.best(metric) for metric in metrics}
    numbers = {metric: grid.estimates(metric) for metric in metrics}
    units = comparison.units
    lines, records = [], []
    for place, cells in grid.places.items():
        named = dict(zip(grid.titles, place, strict=True))
        n = sum(len(cell.runs) for cell in cells)
        shown = [
            (text(metric, numbers[metric][place]), place in best[metric]) if place in numbers[metric] else (NONE, False)
            for metric in metrics
        ]
        lines.append([*((named[title], False) for title in titles), (str(n), False), *shown])
        for metric in metrics:
            e = numbers[metric].get(place)
            if e is None:
                continue
            record = {"metric": metric, **{title: named[title] for title in titles}, "n": n}
            record |= {"mean": e.mean, "low": e.low, "high": e.high, "cells": "; ".join(c.label for c in cells)}
            records.append(record)
    heads = [*titles, "n", *(heading(metric, units.get(metric.rpartition("/")[0], "")) for metric in metrics)]
    note = f"n: runs. {grid.note}".strip()
    return Sheet("heatmap", "Numbers of the heat maps", heads, lines, pd.DataFrame(records), note)
