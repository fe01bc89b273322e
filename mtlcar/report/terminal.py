"""A comparison's table on the terminal."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mtlcar.report.comparison import Comparison
from mtlcar.report.matching import unmatched
from mtlcar.report.table import headings, rows

LABEL = 30
"""Most letters of a label on one line; longer ones go on in the next."""
BORDER = 3
"""Letters between two columns."""


def print_comparison(console: Console, comparison: Comparison) -> None:
    """The table, best values bold and without bootstrap intervals, for its width; and what is not matched.

    On a narrow terminal the last columns are left out and named: a number folded over three lines cannot be read."""
    heads = headings(comparison)
    table = rows(comparison, short=True)
    labels = len(comparison.titles) or 1
    widths = [_least(head, [row[i][0] for row in table], i < labels) for i, head in enumerate(heads)]
    shown = len(heads)
    while shown > labels + 2 and sum(widths[:shown]) + BORDER * shown + 1 > console.width:
        shown -= 1
    grid = Table(title=comparison.name, title_justify="left", header_style="")
    natural = [max(len(head), *(len(row[i][0]) for row in table)) for i, head in enumerate(heads)]
    tight = sum(natural[:shown]) + BORDER * shown + 1 > console.width
    for i, head in enumerate(heads[:shown]):
        grid.add_column(Text(head), justify="left" if i < labels else "right", width=widths[i] if tight else None)
    for row in table:
        grid.add_row(*(Text(text, style="bold" if bold else "") for text, bold in row[:shown]))
    console.print(grid)
    if shown < len(heads):
        said = f"Too wide for this terminal, but in the report: {'; '.join(heads[shown:])}."
        console.print(said, markup=False, highlight=False, soft_wrap=True)
    for sentence in [*unmatched(comparison), *comparison.disagree]:
        console.print(f"Not matched: {sentence}", markup=False, highlight=False, soft_wrap=True)


def _least(head: str, cells: list[str], label: bool) -> int:
    """The width a column needs: numbers stay on one line, headings break between words."""
    words = max(len(word) for word in head.split())
    widest = max(len(cell) for cell in cells)
    return max(words, min(widest, LABEL) if label else widest)
