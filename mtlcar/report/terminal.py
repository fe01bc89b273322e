"""A comparison's table on the terminal."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mtlcar.report.comparison import Comparison
from mtlcar.report.matching import unmatched
from mtlcar.report.table import headings, rows


def print_comparison(console: Console, comparison: Comparison) -> None:
    """The table, best values bold and without bootstrap intervals, for its width; and what is not matched."""
    table = Table(title=comparison.name, title_justify="left", header_style="")
    labels = len(comparison.titles) or 1
    for i, head in enumerate(headings(comparison)):
        table.add_column(Text(head), justify="left" if i < labels else "right")
    for row in rows(comparison, short=True):
        table.add_row(*(Text(text, style="bold" if bold else "") for text, bold in row))
    console.print(table)
    for sentence in [*unmatched(comparison), *comparison.disagree]:
        console.print(f"Not matched: {sentence}", markup=False, highlight=False, soft_wrap=True)
