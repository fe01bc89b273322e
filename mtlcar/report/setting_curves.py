"""Test metrics against a setting that is a number: dropout, a learning rate, the share of a task's loss weight."""

import math
from collections.abc import Sequence

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator
from matplotlib.transforms import ScaledTranslation

from mtlcar.report.comparison import Comparison
from mtlcar.report.curve_axes import CurveAxes, curve_axes
from mtlcar.report.figures import FONTS, LEGEND_ROW, MARKERS, STYLES
from mtlcar.report.ranking import compared_metrics, known
from mtlcar.report.scales import implied, limits, scale, short, words
from mtlcar.report.section import Drawing, Row, Section, Sheet
from mtlcar.report.table import heading, text
from mtlcar.report.varied import NONE

METRICS = 4
"""Most metrics, each a row of panels."""
DODGE = 2.5
"""Points by which the lines' marks stand apart, so that intervals at one value do not cover each other."""
LOG = 20.0
"""A setting that ranges over so many times its least value is on a log axis."""


def section(comparison: Comparison) -> Section | None:
    """A figure for each numeric setting with three values or more; None where there is no such setting."""
    found = Section("Settings that are numbers")
    metrics = compared_metrics(comparison)[:METRICS]
    for axes in curve_axes(comparison) if metrics else []:
        caption = (
            f"{comparison.name}: test results by {axes.title}"
            + (f", a line for each {axes.line_title}" if len(axes.lines) > 1 else "")
            + (f", a column of panels for each {axes.panel_title}" if len(axes.panels) > 1 else "")
            + ". Means over seeds; bars: 95 % intervals, cut at the frame; marks at one value stand a little apart."
        )
        if any(implied(cell, metric) for _, _, _, cell in axes.points for metric in metrics):
            caption += " Hollow: implied by the finer class, not predicted."
        caption = f"{caption} {axes.note}".strip()
        name = axes.key.replace(".", "_")
        found.drawings.append(Drawing(f"curve_{name}", caption, _figure(comparison, axes, metrics)))
        found.sheets.append(_sheet(comparison, axes, metrics, name))
    return found if found.drawings else None


def _figure(comparison: Comparison, axes: CurveAxes, metrics: Sequence[str]) -> Figure:
    """Rows are metrics, columns the values of the other settings; of one panel each, metrics stand two in a row."""
    alone = len(axes.panels) == 1
    across = min(len(metrics), 2) if alone else len(axes.panels)
    down = math.ceil(len(metrics) / across) if alone else len(metrics)
    labels = [short(line, 50) for line in axes.lines]
    width = max((3.1 if alone else 2.7) * across + 0.5, 4.6)
    per_row = max(1, min(4, int(width / 0.075 / (max(map(len, labels)) + 7))))
    legend = LEGEND_ROW * (math.ceil(len(labels) / per_row) + 0.8) if len(labels) > 1 else 0
    with sns.axes_style("whitegrid", {"grid.color": "0.9"}), sns.plotting_context("notebook", rc=FONTS):
        figure = Figure(figsize=(width, 2.1 * down + 0.6 + legend), dpi=120, layout="constrained")
        grid = figure.subplots(down, across, sharex=True, sharey=False if alone else "row", squeeze=False)
        used = 0
        for i, metric in enumerate(metrics):
            shown = [cell.numbers[metric] for _, _, _, cell in axes.points if known(cell, metric)]
            for column, panel in enumerate(axes.panels):
                ax = grid.ravel()[i] if alone else grid[i, column]
                used += 1
                _panel(ax, axes, metric, panel)
                if shown:
                    ax.set_ylim(limits(metric, shown))
                if column == 0:
                    ax.set_ylabel(words(comparison, metric))
                    ax.locator_params(axis="y", nbins=5)
                if i == 0 and not alone:
                    named = f"{axes.panel_title} {panel}" if panel[:1].isdigit() else panel
                    ax.set_title(short(named, 40))
        for ax in grid.ravel()[used:]:
            ax.remove()
        for ax in grid.ravel()[max(used - across, 0) : used]:
            ax.tick_params(labelbottom=True)
        log = grid[0, 0].get_xscale() == "log"
        figure.supxlabel(f"{axes.title} (log axis)" if log else axes.title, fontsize=9)
        handles = [
            Line2D([], [], color=_grey(i, len(labels)), ls=STYLES[i % 8], marker=MARKERS[i % 10], ms=5, label=label)
            for i, label in enumerate(labels)
        ]
        if len(labels) > 1:
            figure.legend(
                handles=handles,
                title=axes.line_title,
                loc="outside upper center",
                ncols=min(len(labels), per_row),
                frameon=False,
                title_fontsize=9,
            )
    return figure


def _grey(i: int, count: int) -> str:
    return f"{0.55 * i / max(count - 1, 1):.3f}"


def _panel(ax: Axes, axes: CurveAxes, metric: str, panel: str) -> None:
    all_x = sorted({x for x, _, _, _ in axes.points})
    log = all_x[0] > 0 and all_x[-1] > LOG * all_x[0]
    if log:
        ax.set_xscale("log")
        ax.set_xlim(all_x[0] / 1.3, all_x[-1] * 1.3)
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter("")
    else:
        room = 0.08 * (all_x[-1] - all_x[0])
        ax.set_xlim(all_x[0] - room, all_x[-1] + room)
        if len(all_x) <= 6:
            ax.set_xticks(all_x, [f"{x:.3g}" for x in all_x])
    figure = ax.get_figure()
    for i, line in enumerate(axes.lines):
        points = [(x, cell) for x, *at, cell in axes.points if at == [line, panel] and known(cell, metric)]
        if not points or figure is None:
            continue
        points.sort(key=lambda point: point[0])
        shift = DODGE * (i - (len(axes.lines) - 1) / 2) / 72
        at = ax.transData + ScaledTranslation(shift, 0, figure.dpi_scale_trans)
        grey, factor = _grey(i, len(axes.lines)), scale(metric)
        xs = [x for x, _ in points]
        means = [factor * c.numbers[metric].mean for _, c in points]
        ax.plot(xs, means, color=grey, ls=STYLES[i % 8], lw=1.4, transform=at)
        for x, cell in points:
            e = cell.numbers[metric]
            if e.has_interval:
                ax.plot([x, x], [factor * e.low, factor * e.high], color=grey, lw=0.9, alpha=0.7, transform=at)
            face = "white" if implied(cell, metric) else grey
            ax.plot([x], [factor * e.mean], ls="", marker=MARKERS[i % 10], ms=5, mfc=face, mec=grey, transform=at)


def _sheet(comparison: Comparison, axes: CurveAxes, metrics: Sequence[str], name: str) -> Sheet:
    """One line for each point."""
    titles = [t for t in (axes.panel_title, axes.line_title) if t]
    lines: list[Row] = []
    records = []
    units = comparison.units
    for x, line, panel, cell in axes.points:
        named = [v for t, v in ((axes.panel_title, panel), (axes.line_title, line)) if t]
        numbers = [text(metric, cell.numbers[metric]) if known(cell, metric) else NONE for metric in metrics]
        lines.append([(v, False) for v in (*named, f"{x:g}", str(len(cell.runs)), *numbers)])
        for metric in metrics:
            if known(cell, metric):
                e = cell.numbers[metric]
                record: dict[str, object] = {"metric": metric, **dict(zip(titles, named, strict=True)), axes.title: x}
                records.append(record | {"n": e.n, "mean": e.mean, "low": e.low, "high": e.high})
    heads = [heading(metric, units.get(metric.rpartition("/")[0], "")) for metric in metrics]
    title = f"Results by {axes.title}"
    return Sheet(f"curve_{name}", title, [*titles, axes.title, "n", *heads], lines, pd.DataFrame(records), axes.note)
