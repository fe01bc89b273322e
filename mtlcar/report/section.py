"""A part of a report: what a file of figures or tables hands over, before anything is drawn or written."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pandas as pd
from matplotlib.figure import Figure

Row = Sequence[tuple[str, bool]]
"""Cells of a table: (text, is the best of its column)."""


@dataclass
class Drawing:
    """A figure, written as PNG and SVG.

    Attributes:
        name: file name without ending, unique within the comparison, such as `heatmap_model_accuracy`.
        caption: what it shows, in full sentences: axes, what a mark or a colour means, how many images or seeds.
    """

    name: str
    caption: str
    figure: Figure


@dataclass
class Sheet:
    """A table, shown as text and written as CSV (full precision) and LaTeX (as shown).

    Attributes:
        name: file name without ending, unique within the comparison.
        title: its heading.
        heads, rows: as shown.
        data: the same numbers in full, tidy; None: what is shown.
        note: what a reader has to know: how numbers and intervals came about.
    """

    name: str
    title: str
    heads: list[str]
    rows: Sequence[Row]
    data: pd.DataFrame | None = None
    note: str = ""


@dataclass
class Section:
    """What one question to the runs gave.

    Attributes:
        title: its heading.
        paragraphs: plain sentences, above tables and figures.
        folded: behind a line to click on: what few readers want.
    """

    title: str
    paragraphs: list[str] = field(default_factory=list)
    drawings: list[Drawing] = field(default_factory=list)
    sheets: list[Sheet] = field(default_factory=list)
    folded: bool = False


def is_number(text: str) -> bool:
    """Whether a cell is set as a number, to the right; an empty one and the sign for none are."""
    return text[:1].isdigit() or text[:1] in ("", "-", "+", "\N{MINUS SIGN}", "<", "[") or text == "nan"
