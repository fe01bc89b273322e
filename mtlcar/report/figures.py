"""Figures of a comparison. Grey levels, markers and line styles carry the meaning, so that they print in black."""

import math
import textwrap

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from mtlcar.report.comparison import Cell, Comparison, label
from mtlcar.report.epochs import curve
from mtlcar.report.ranking import best_cells
from mtlcar.report.table import axis_label, percent

MARKERS = "osD^vPX*<>"
STYLES = ("-", "--", ":", "-.", (0, (5, 1)), (0, (1, 3)), (0, (6, 2, 1, 2, 1, 2)), (0, (8, 3)))
PANELS = 9
"""Most panels of learning curves; the settings with the best last value get one."""
LEGEND_ROW = 0.24
"""Inches of one more row of a legend."""
ROOM = 0.045
"""Share of an axis that is left beyond 0 and 100 %."""
FAR = 8.0
"""Errors of which one is so many times another are drawn on a log axis: a failed cell must not hide the others."""
SHOWN_CELLS = 40
"""Most cells in the figure of test results: more cannot be read."""

FONTS = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 9,
}


def test_figure(comparison: Comparison) -> Figure | None:
    """Test accuracies (and errors) per cell with 95 % intervals: one panel a metric, one line a cell,
    at most `SHOWN_CELLS`, the best by `main_metric`.

    Filled points are means, hollow ones single seeds. None when no metric is there."""
    metrics = [m for m in comparison.metrics if m not in ("parameters", "minutes") and not m.endswith("/mse")]
    if not metrics:
        return None
    cells = best_cells(comparison, comparison.cells, SHOWN_CELLS)
    labels = [textwrap.shorten(cell.label, 60, placeholder="…") for cell in cells]
    across = min(len(metrics), 3)
    down = math.ceil(len(metrics) / across)
    margin = 0.075 * max(len(label) for label in labels) + 0.4
    size = (margin + 2.5 * across, down * (0.27 * len(labels) + 1.15))
    with sns.axes_style("whitegrid"), sns.plotting_context("notebook", rc=FONTS):
        figure = Figure(figsize=size, dpi=120, layout="constrained")
        axes = figure.subplots(down, across, sharey=True, squeeze=False).ravel()
        for ax, metric in zip(axes, metrics, strict=False):
            _points(ax, comparison, cells, metric)
        for ax in axes[len(metrics) :]:
            ax.remove()
        for ax in axes[: len(metrics)]:
            ax.set_yticks(range(len(labels)), labels)
            ax.set_ylim(len(labels) - 0.5, -0.5)
    return figure


def _points(ax: Axes, comparison: Comparison, cells: list[Cell], metric: str) -> None:
    scale = 100.0 if percent(metric) else 1.0
    first = list(dict.fromkeys(cell.values[:1] for cell in comparison.cells))
    found = (cell.numbers[metric].mean for cell in cells if metric in cell.numbers)
    means = [mean for mean in found if not math.isnan(mean)]
    log = not percent(metric) and min(means, default=0) > 0 and max(means) > FAR * min(means)
    least = 0.0 if percent(metric) else 0.5 * min(means) if log else -math.inf
    for row, cell in enumerate(cells):
        e = cell.numbers.get(metric)
        if e is None:
            continue
        if e.has_interval:  # a t interval of few seeds may leave the possible range, its line does not
            ends = np.clip([e.low, e.high], least, 1.0 if percent(metric) else math.inf)
            ax.plot(scale * ends, [row, row], color="0.45", lw=2.2, solid_capstyle="butt")
        if e.n > 1:
            x = [scale * v for v in e.values]
            ax.scatter(x, [row] * e.n, s=16, facecolor="white", edgecolor="0.3", zorder=3, clip_on=False)
        marker = MARKERS[first.index(cell.values[:1]) % len(MARKERS)]
        ax.scatter([scale * e.mean], [row], s=38, color="black", marker=marker, zorder=4, clip_on=False)
    words = axis_label(metric, comparison.units.get(metric.rpartition("/")[0], ""))
    ax.set_title(f"test {words}{' (log axis)' if log else ''}")
    if percent(metric):  # little more than the possible range, but room for a whole marker at its ends
        left, right = ax.get_xlim()
        room = ROOM * (right - left)
        ax.set_xlim(max(left, -room), min(right, 100 + room))
    if log:
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter("")
    else:
        ax.locator_params(axis="x", nbins=5)
    ax.grid(axis="y", alpha=0.4)


def curve_metrics(comparison: Comparison) -> list[str]:
    """The validation metrics whose curves are drawn: accuracy of the finest class task, first value's mae."""
    tasks = {task.name: run.tasks for run in comparison.runs for task in run.tasks}
    there = {column for run in comparison.runs for column in run.history.columns}
    finest = [f"val/{t.finest().name}/accuracy" for t in tasks.values() if t.classification]
    errors = [f"val/{t.regression[0].name}/mae" for t in tasks.values() if t.regression]
    wanted = [*dict.fromkeys(finest), *list(dict.fromkeys(errors))[:1]]
    if not any(metric in there for metric in wanted):
        wanted = [str(run.metrics.get("best", {}).get("monitor")) for run in comparison.runs][:1]
    return [metric for metric in wanted if metric in there]


def curves_figure(comparison: Comparison, metric: str) -> Figure | None:
    """A validation metric by epoch: one line style per architecture (or whatever varied first), a panel for each
    combination of the other groups' settings; the line is the mean over seeds, the band their range."""
    first = comparison.keys[0].split(".")[0] if comparison.keys else ""
    by = [key.split(".")[0] == first for key in comparison.keys]
    curves: dict[tuple[str, str], pd.DataFrame] = {}
    for cell in comparison.cells:
        found = curve(cell, metric)
        if not found.empty:
            line, panel = (_part(comparison, cell, [b is own for b in by]) for own in (True, False))
            curves[line, panel if False in by else ""] = found
    if not curves:
        return None
    lines = list(dict.fromkeys(line for line, _ in curves))
    panels = list(dict.fromkeys(panel for _, panel in curves))
    if len(panels) > PANELS:
        sign = -1 if percent(metric) else 1
        last = {p: min(sign * c["mean"].iloc[-1] for (_, q), c in curves.items() if q == p) for p in panels}
        panels = sorted(sorted(panels, key=lambda p: last[p])[:PANELS], key=panels.index)
    across = min(len(panels), 3)
    down = math.ceil(len(panels) / across)
    scale = 100.0 if percent(metric) else 1.0
    greys = np.linspace(0.0, 0.55, len(lines))
    with sns.axes_style("whitegrid"), sns.plotting_context("notebook", rc=FONTS):
        height = 2.5 * down + 0.7 + LEGEND_ROW * (math.ceil(len(lines) / 4) - 1)
        figure = Figure(figsize=(max(3.1 * across, 5.0), height), dpi=120, layout="constrained")
        axes = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
        for ax, panel in zip(axes, panels, strict=False):
            for i, line in enumerate(lines):
                if (line, panel) not in curves:
                    continue
                means = curves[line, panel]
                style = {"color": str(greys[i]), "linestyle": STYLES[i % len(STYLES)], "marker": MARKERS[i % 10]}
                x = means.index.to_numpy()
                ax.plot(x, scale * means["mean"], lw=1.6, ms=3.5, **style)
                ax.fill_between(x, scale * means["min"], scale * means["max"], color=str(greys[i]), alpha=0.15, lw=0)
            ax.set_title("\n".join(textwrap.wrap(panel, 40)))
            ax.xaxis.get_major_locator().set_params(integer=True)
        for ax in axes[len(panels) :]:
            ax.remove()
        for ax in axes[max(len(panels) - across, 0) : len(panels)]:
            ax.tick_params(labelbottom=True)  # also where the panel below was removed
        figure.supxlabel("epoch", fontsize=9)
        owner = metric.removeprefix("val/").rpartition("/")[0]
        named = axis_label(metric.removeprefix("val/"), comparison.units.get(owner, ""))
        figure.supylabel(f"validation {named}", fontsize=9)
        handles = [
            Line2D([], [], color=str(greys[i]), ls=STYLES[i % len(STYLES)], marker=MARKERS[i % 10], ms=4, label=line)
            for i, line in enumerate(lines)
        ]
        if len(lines) > 1:
            figure.legend(handles=handles, loc="outside upper center", ncols=min(len(lines), 4), frameon=False)
    return figure


def _part(comparison: Comparison, cell: Cell, chosen: list[bool]) -> str:
    """The cell's label of the chosen columns alone."""
    columns = [i for i, wanted in enumerate(chosen) if wanted]
    return label([comparison.titles[i] for i in columns], [cell.values[i] for i in columns])
