"""Confusion matrices, and pictures of the pairs of classes that are confused most often."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from mtlcar.report.figures import FONTS

DARK = 0.4
"""Share of a row from which its number is white: the grey there is darker than the middle."""
WIDTH = 26
"""Characters of a class name in a line above a picture."""
SIDE, LINE = 1.9, 0.17
"""Inches of a picture and of a line of text."""


@dataclass(frozen=True)
class Example:
    """A test image: its class, a line of text below it, its file, and uint8 [S, S, 3] or None where it is missing."""

    name: str
    words: str
    path: str
    image: np.ndarray | None


def matrix_figure(matrix: np.ndarray, names: Sequence[str], task: str, *, annotate: bool) -> Figure:
    """Heat map of a confusion matrix int [C, C + 1], rows normalised; its last column is drawn where it is not empty.

    Args:
        names: C classes.
        annotate: write the counts.
    """
    if not matrix[:, -1].any():
        matrix = matrix[:, :-1]
    images = matrix.sum(axis=1)
    shares = 100 * matrix / np.maximum(images, 1)[:, None]
    short = [textwrap.shorten(name, 32, placeholder="…") for name in names]
    labels = [f"{name} ({n:,})" for name, n in zip(short, images, strict=True)]
    columns = [*short, "no class"][: shares.shape[1]]
    points, step = (8.0, 0.32) if annotate else (6.5, 0.17)
    left, below = (0.6 + 0.0085 * points * max(map(len, texts)) for texts in (labels, columns))
    size = (max(left + step * len(columns) + 1.1, 3.6), max(below + step * len(names), 2.4))
    with sns.axes_style("white"), sns.plotting_context("notebook", rc=FONTS):
        figure = Figure(figsize=size, dpi=120, layout="constrained")
        ax = figure.subplots()
        shown = ax.imshow(
            shares, cmap="Greys", norm=PowerNorm(0.5, 0, 100), aspect="auto"
        )  # square by the figure's size
        turned = 90 if max(map(len, columns)) > 3 else 0
        ax.set_xticks(range(len(columns)), columns, rotation=turned, fontsize=points, parse_math=False)
        ax.set_yticks(range(len(labels)), labels, fontsize=points, parse_math=False)
        ax.set_xlabel(f"predicted {task}")
        ax.set_ylabel(f"true {task} (images)")
        ax.set_xticks(np.arange(-0.5, len(columns)), minor=True)
        ax.set_yticks(np.arange(-0.5, len(labels)), minor=True)
        ax.grid(which="minor", color="0.85", lw=0.4)
        bar = figure.colorbar(shown, ax=ax, shrink=0.6, aspect=18, pad=0.02, ticks=[0, 1, 5, 10, 25, 50, 100])
        bar.set_label("share of the row, %")
        if annotate:
            for row, column in np.argwhere(matrix):
                colour = "white" if shares[row, column] > 100 * DARK else "black"
                ax.text(column, row, f"{matrix[row, column]}", ha="center", va="center", color=colour, fontsize=7)
    return figure


def pairs_figure(columns: Sequence[tuple[str, Sequence[tuple[Example, Example]]]]) -> Figure:
    """Pairs of pictures, (confused, of the class that it was taken for), one below the other.

    Args:
        columns: heading ("" for none) and at least one pair; one column alone is spread over two.
    """
    if len(columns) == 1:
        title, pairs = columns[0]
        half = (len(pairs) + 1) // 2
        columns = [(title, pairs[:half]), ("", pairs[half:])] if len(pairs) > 1 else columns
    down = max(len(pairs) for _, pairs in columns)
    rows = [[example for _, pairs in columns for pair in pairs[i : i + 1] for example in pair] for i in range(down)]
    lines = [max(len(_lines(example.name)) for example in row) for row in rows]
    height = sum(SIDE + LINE * (n + 2) + 0.25 for n in lines) + 0.35
    with sns.axes_style("white"), sns.plotting_context("notebook", rc=FONTS):
        figure = Figure(figsize=(len(columns) * (2 * SIDE + 0.4), height), dpi=120, layout="constrained")
        parts = figure.subfigures(1, len(columns), squeeze=False, wspace=0.04)[0]
        for part, (title, pairs) in zip(parts, columns, strict=True):
            if any(heading for heading, _ in columns):
                part.suptitle(title or " ", fontweight="bold", fontsize=FONTS["axes.titlesize"])
            axes = part.subplots(down, 2, squeeze=False)
            for i, row in enumerate(axes):
                for ax, example in zip(row, pairs[i] if i < len(pairs) else (None, None), strict=True):
                    _picture(ax, example, lines[i])
    return figure


def _lines(name: str) -> list[str]:
    return textwrap.wrap(name, WIDTH, max_lines=3, placeholder="…") or [""]


def _picture(ax: Axes, example: Example | None, lines: int) -> None:
    """`lines` of text above and two below, so that the pictures of a row are in line and no row runs into the next."""
    ax.set_xticks([])
    ax.set_yticks([])
    if example is None:
        ax.set_axis_off()
        return
    if example.image is None:
        ax.imshow(np.full((1, 1, 3), 200, np.uint8))
        name = "\n".join(textwrap.wrap(example.path.rpartition("/")[2], 22)[:4])
        ax.text(0, 0, name or "no picture", ha="center", va="center", fontsize=7, parse_math=False)
    else:
        ax.imshow(example.image)
    title = _lines(example.name)
    ax.set_title("\n".join([" "] * (lines - len(title)) + title), fontsize=9, parse_math=False)
    below = example.words.split("\n")
    ax.set_xlabel("\n".join(below + [" "] * (2 - len(below))), fontsize=FONTS["xtick.labelsize"])
