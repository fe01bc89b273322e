"""True against predicted value of each specimen, a panel a cell."""

import math
import textwrap

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from mtlcar.report.comparison import Cell, Comparison
from mtlcar.report.figures import FONTS, PANELS
from mtlcar.report.per_image import WITHIN
from mtlcar.report.specimens import by_specimen


def drawn(comparison: Comparison) -> list[tuple[Cell, pd.DataFrame]]:
    """The cells with specimens, those of all seeds together: at most `PANELS`, those with the least mean error."""
    if comparison.pair is None:
        return []
    found = []
    for cell in comparison.cells:
        frames = [run.predictions for run in cell.runs if run.groups is not None]
        specimens = by_specimen(pd.concat(frames, ignore_index=True), *comparison.pair) if frames else None
        if specimens is not None:
            found.append((cell, specimens))
    kept = sorted(found, key=lambda item: math.inf if math.isnan(m := item[1]["mae"].mean()) else m)[:PANELS]
    return [item for item in found if any(item is other for other in kept)]


def specimen_figure(comparison: Comparison, panels: list[tuple[Cell, pd.DataFrame]]) -> Figure | None:
    """One dot a specimen: its true value, and the mean prediction over its tiles (and seeds) with their 10-90 % range.

    Grey band: within 8 % of the true value; a dot outside it is hollow. None without panels (of `drawn`)."""
    if comparison.pair is None or not panels:
        return None
    value = comparison.pair[1]
    unit = comparison.units.get(value, "")
    across = min(len(panels), 3)
    down = math.ceil(len(panels) / across)
    titles = [textwrap.wrap(cell.label, 38) for cell, _ in panels]
    lines = max(len(title) for title in titles)
    with sns.axes_style("whitegrid"), sns.plotting_context("notebook", rc=FONTS):
        figure = Figure(
            figsize=(max(3.0 * across, 4.5), down * (2.75 + 0.17 * lines) + 0.6), dpi=120, layout="constrained"
        )
        axes = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).ravel()
        ends = _range(panels)
        for ax, (_, specimens), title in zip(axes, panels, titles, strict=False):
            _panel(ax, specimens, ends)
            ax.set_title("\n".join(title))
        for ax in axes[len(panels) :]:
            ax.remove()
        for ax in axes[max(len(panels) - across, 0) : len(panels)]:
            ax.tick_params(labelbottom=True)  # also where the panel below was removed
        suffix = f", {unit}" if unit else ""
        figure.supxlabel(f"true {value}{suffix}", fontsize=9)
        figure.supylabel(f"predicted {value}{suffix}", fontsize=9)
        handles = [
            Line2D([], [], color="black", marker="o", ms=4, ls="", label="specimen, mean of its tiles"),
            Line2D([], [], color="black", marker="o", mfc="white", ms=4, ls="", label="more than 8 % off"),
            Line2D([], [], color="0.45", lw=1.4, label="10-90 % of its tiles"),
            Line2D([], [], color="0.2", lw=0.9, ls="--", label="predicted = true"),
            Patch(color="0.9", label="within 8 %"),
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=5 if across > 2 else 2, frameon=False)
    return figure


def _range(panels: list[tuple[Cell, pd.DataFrame]]) -> np.ndarray:
    """The true values' range [2] with a little room: the identity line goes from one end to the other."""
    true = np.concatenate([specimens["true"].to_numpy() for _, specimens in panels])
    room = 0.05 * (true.max() - true.min()) or 1.0
    return np.array([true.min() - room, true.max() + room])


def _panel(ax: Axes, specimens: pd.DataFrame, ends: np.ndarray) -> None:
    band = WITHIN * np.abs(ends)
    ax.fill_between(ends, ends - band, ends + band, color="0.9", lw=0, zorder=0)
    ax.plot(ends, ends, color="0.2", lw=0.9, ls="--", zorder=1)
    x, y = specimens["true"].to_numpy(), specimens["predicted"].to_numpy()
    fill = np.where(np.abs(y - x) <= WITHIN * np.abs(x), "black", "white").tolist()
    ax.vlines(x, specimens["low"].to_numpy(), specimens["high"].to_numpy(), color="0.45", lw=1.4, zorder=2)
    ax.scatter(x, y, s=15, c=fill, edgecolor="black", lw=0.8, zorder=3)
    ax.set_xlim(*ends)
    ax.locator_params(nbins=6)
