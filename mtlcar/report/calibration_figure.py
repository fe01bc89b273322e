"""Reliability diagrams: accuracy against confidence, a panel a cell."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mtlcar.report.figures import FONTS

FEW = 10
"""A bin with fewer images is hollow: its accuracy says little."""


@dataclass(frozen=True)
class Panel:
    """One cell: its label, `mtlcar.report.calibration.by_bin` of its seeds, and its mean ECE (a fraction)."""

    label: str
    bins: pd.DataFrame
    ece: float


def reliability_figure(panels: Sequence[Panel], bins: int) -> Figure:
    """Above, a dot a bin at its mean confidence and accuracy, a line between `low` and `high`, and the diagonal;
    below, the share of images in each of the `bins` equally wide bins. At least one panel."""
    across = min(len(panels), 3)
    down = math.ceil(len(panels) / across)
    titles = [textwrap.wrap(panel.label, 34) for panel in panels]
    lines = max(len(title) for title in titles)
    size = (max(2.7 * across, 3.4) + 0.3, down * (3.2 + 0.17 * lines) + 0.3)
    with sns.axes_style("whitegrid"), sns.plotting_context("notebook", rc=FONTS):
        figure = Figure(figsize=size, dpi=120, layout="constrained")
        axes = figure.subplots(2 * down, across, sharex=True, squeeze=False, height_ratios=[4, 1] * down)
        most = max(float((panel.bins["images"] / panel.bins["images"].sum()).max()) for panel in panels)
        for i in range(down * across):
            above, below = axes[2 * (i // across)][i % across], axes[2 * (i // across) + 1][i % across]
            if i >= len(panels):
                above.remove()
                below.remove()
                continue
            _accuracies(above, panels[i])
            above.set_title("\n".join(titles[i]), parse_math=False)
            _shares(below, panels[i], bins, most)
            if i % across:
                above.tick_params(labelleft=False)
                below.tick_params(labelleft=False)
            else:
                above.set_ylabel("accuracy, %")
                below.set_ylabel("images, %")
            if i + across >= len(panels):
                below.set_xlabel("confidence, %")
                below.tick_params(labelbottom=True)  # also where the panel below was removed
    return figure


def _accuracies(ax: Axes, panel: Panel) -> None:
    table = 100 * panel.bins[["confidence", "accuracy", "low", "high"]]
    few = (panel.bins["images"] < FEW).to_numpy()
    ax.plot([0, 100], [0, 100], color="0.2", lw=0.9, ls="--", zorder=1)
    ax.plot(table["confidence"], table["accuracy"], color="0.6", lw=1.0, zorder=2)
    ax.vlines(table["confidence"], table["low"], table["high"], color="0.45", lw=1.8, zorder=3)
    fill = np.where(few, "white", "black").tolist()
    ax.scatter(table["confidence"], table["accuracy"], s=20, c=fill, edgecolor="black", lw=0.9, zorder=4, clip_on=False)
    ax.text(4, 95, f"ECE {100 * panel.ece:.1f} %", va="top", fontsize=FONTS["legend.fontsize"])
    ax.set_xlim(0, 100)
    ax.set_ylim(0, 100)
    ax.set_xticks(range(0, 101, 20))
    ax.set_yticks(range(0, 101, 20))


def _shares(ax: Axes, panel: Panel, bins: int, most: float) -> None:
    width = 100 / bins
    shares = 100 * panel.bins["images"] / panel.bins["images"].sum()
    left = width * panel.bins.index.to_numpy(float)
    ax.bar(left, shares.to_numpy(), width=width, align="edge", color="0.6", edgecolor="white", lw=0.5)
    ax.set_ylim(0, 108 * most)
    ax.locator_params(axis="y", nbins=3)
    ax.grid(axis="x", visible=False)
