"""What happened during training: each task's weight, loss and gradient norm, and how gradients conflict, by epoch."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mtlcar.report.comparison import Cell, Comparison
from mtlcar.report.epochs import curve
from mtlcar.report.figures import FONTS, LEGEND_ROW, MARKERS, STYLES
from mtlcar.report.ranking import best_cells, main_metric
from mtlcar.report.scales import short, wide
from mtlcar.report.section import Drawing, Row, Section, Sheet
from mtlcar.report.table import heading
from mtlcar.report.varied import NONE

LINES = 12
"""Most cells in one panel: more lines cannot be told apart."""
SAME = 1e-6
"""Weights that differ by less, as a share, do not move."""
KINDS = {
    "weight": ("task weights", "weight of the task", "what multiplied the task's gradient, as means over an epoch"),
    "loss": ("losses", "loss", "unweighted; train: mean over the epoch's steps, val: at its end"),
    "gradient_norm": (
        "gradient norms",
        "gradient norm",
        "of the gradients that the weighting compared, before weights",
    ),
    "cosine": (
        "cosines between gradients",
        "cosine",
        "of the angle between two tasks' gradients; below 0 they conflict",
    ),
    "conflict": ("conflicting steps", "steps in conflict, %", "share of the steps in which the cosine is negative"),
}
"""Last word of a column of history.csv -> (the figure in words, its axis, what it is)."""


def section(comparison: Comparison) -> Section | None:
    """A figure for each kind of number in the runs' history.csv, and the last epoch's numbers as a table."""
    found = Section("Training, epoch by epoch")
    cells = best_cells(comparison, comparison.cells, LINES)
    drawn: list[str] = []
    for kind, (title, _, what) in KINDS.items():
        names = columns(comparison, kind)
        curves = {(i, name): c for i, cell in enumerate(cells) for name in names if not (c := curve(cell, name)).empty}
        names = [name for name in names if any((i, name) in curves for i in range(len(cells)))]
        if not names:
            continue
        drawn += names
        caption = (
            f"{comparison.name}: {title} by epoch ({what}), a panel for each of them. Line: mean over seeds; band: "
            "their range."
        )
        if len(cells) < len(comparison.cells):
            by = heading(main_metric(comparison))
            caption += f" Only the best {LINES} of {len(comparison.cells)} cells by test {by}."
        if kind == "weight":
            caption += " Weights that are the same in all cells and epochs are left out."
        found.drawings.append(Drawing(f"trajectories_{kind}", caption, _figure(cells, kind, names, curves)))
    if not drawn:
        return None
    found.sheets.append(_sheet(comparison, drawn))
    return found


def columns(comparison: Comparison, kind: str) -> list[str]:
    """The columns `train/<task or pair>/<kind>` (and `val/` for losses) of any run, tasks in their order; of weights
    only those that move, or that differ between cells."""
    there = [str(name) for run in comparison.runs for name in run.history.columns]
    sets = ("train", "val") if kind == "loss" else ("train",)
    found = [name for name in dict.fromkeys(there) if name.count("/") == 2 and name.rpartition("/")[2] == kind]
    tasks = list(dict.fromkeys(name for run in comparison.runs for name in run.tasks.names))

    def order(name: str) -> tuple[int, int]:
        owner = name.split("/")[1]
        return sets.index(name.split("/")[0]), tasks.index(owner) if owner in tasks else len(tasks)

    found = sorted((name for name in found if name.split("/")[0] in sets), key=order)
    return [name for name in found if kind != "weight" or _moves(comparison, name)]


def _moves(comparison: Comparison, name: str) -> bool:
    parts = [run.history[name].dropna().to_numpy(float) for run in comparison.runs if name in run.history]
    values = np.concatenate(parts) if parts else np.empty(0)
    return len(values) > 0 and bool(np.ptp(values) > SAME * np.abs(values).max())


def _figure(
    cells: Sequence[Cell], kind: str, names: Sequence[str], curves: dict[tuple[int, str], pd.DataFrame]
) -> Figure:
    lines = sorted({i for i, _ in curves})
    greys = dict(zip(lines, np.linspace(0.0, 0.55, max(len(lines), 1)), strict=True))
    labels = {i: short(cells[i].label, 60) for i in lines}
    across = min(len(names), 2 if len(names) in (2, 4) else 3)
    down = math.ceil(len(names) / across)
    width = max(3.1 * across, 5.0)
    per_row = max(1, min(4, int(width / 0.075 / (max(map(len, labels.values())) + 7))))
    height = 2.3 * down + 0.5 + LEGEND_ROW * (math.ceil(len(lines) / per_row) if len(lines) > 1 else 0)
    with sns.axes_style("whitegrid", {"grid.color": "0.9"}), sns.plotting_context("notebook", rc=FONTS):
        figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
        axes = figure.subplots(down, across, sharex=True, squeeze=False).ravel()
        for ax, name in zip(axes, names, strict=False):
            _panel(ax, kind, name, {i: curves[i, name] for i in lines if (i, name) in curves}, greys)
        for ax in axes[len(names) :]:
            ax.remove()
        for ax in axes[max(len(names) - across, 0) : len(names)]:
            ax.tick_params(labelbottom=True)
        figure.supxlabel("epoch", fontsize=9)
        figure.supylabel(KINDS[kind][1], fontsize=9)
        handles = [
            Line2D([], [], color=str(greys[i]), ls=STYLES[i % 8], marker=MARKERS[i % 10], ms=4, label=labels[i])
            for i in lines
        ]
        if len(lines) > 1:
            figure.legend(handles=handles, loc="outside upper center", ncols=min(len(lines), per_row), frameon=False)
    return figure


def _panel(ax: Axes, kind: str, name: str, curves: dict[int, pd.DataFrame], greys: dict[int, float]) -> None:
    scale = 100.0 if kind == "conflict" else 1.0
    longest = max(len(c) for c in curves.values())
    every = max(1, longest // 12)
    for i, c in curves.items():
        shade, start = str(greys[i]), i % every if len(c) > i % every else 0
        (line,) = ax.plot(c.index, scale * c["mean"], lw=1.5, ms=4, color=shade, ls=STYLES[i % 8])
        line.set(marker=MARKERS[i % 10], markevery=(start, every))
        ax.fill_between(c.index, scale * c["min"], scale * c["max"], color=shade, alpha=0.13, lw=0)
    means = [float(v) for c in curves.values() for v in c["mean"]]
    log = kind in ("weight", "gradient_norm", "loss") and wide(means)
    if log:
        ax.set_yscale("log")
    if kind == "cosine":
        ax.axhline(0, color="0.2", lw=0.8, zorder=1)
    which, owner, _ = name.split("/")
    called = owner.replace("-", " and ")
    ax.set_title(f"{called}, {which}" if kind == "loss" else called)
    if log:
        ax.set_title(f"{ax.get_title()} (log axis)")
    ax.locator_params(axis="x", integer=True)


def _sheet(comparison: Comparison, names: Sequence[str]) -> Sheet:
    """The means over seeds in each cell's last epoch; all epochs in the file."""
    lines: list[Row] = []
    parts = []
    for cell in comparison.cells:
        row = [(cell.label, False)]
        ends = []
        for name in names:
            c = curve(cell, name)
            scale = 100.0 if name.endswith("/conflict") else 1.0
            row.append((f"{scale * c['mean'].iloc[-1]:.3g}" if len(c) else NONE, False))
            if len(c):
                ends.append(int(c.index[-1]))
                parts.append(c.reset_index().assign(cell=cell.label, column=name))
        lines.append([row[0], (str(max(ends)) if ends else NONE, False), *row[1:]])
    table = pd.concat(parts).rename(columns={"count": "n"})
    data = table[["cell", "column", "epoch", "mean", "min", "max", "n"]]
    heads = [name.replace("_", " ").replace("/", " ").replace(" conflict", " conflict, % of steps") for name in names]
    note = "Means over seeds in the last epoch (counted from 1), which need not be the epoch of the checkpoint tested."
    return Sheet("trajectories", "The last epoch", ["cell", "epoch", *heads], lines, data, note)
