"""Tables on a terminal, in a file or pipe (aligned, never folded), and as Markdown."""

from collections.abc import Collection, Mapping, Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

Rows = Sequence[Sequence[str]]

STYLES = {
    "finished": "green",
    "running": "bold cyan",
    "failed": "bold red",
    "killed": "bold red",
    "interrupted": "yellow",
    "unstarted": "dim",
}
"""Of a run's states, for eyes that see colour; the word is always there."""


def print_table(
    heads: Sequence[str],
    rows: Rows,
    *,
    right: Collection[int] = (),
    whole: Collection[int] = (),
    markdown: bool = False,
    console: Console | None = None,
) -> None:
    """One table to stdout.

    Args:
        right: columns of numbers.
        whole: columns that a narrow terminal may not fold.
    """
    console = console or Console()
    if markdown or not console.is_terminal:
        lines = markdown_lines(heads, rows, right) if markdown else plain_lines(heads, rows, right)
        print("\n".join(lines), file=console.file)
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", show_edge=False)
    for i, head in enumerate(heads):
        table.add_column(
            Text(head), justify="right" if i in right else "left", no_wrap=i in whole, overflow="fold", vertical="top"
        )
    for row in rows:
        table.add_row(*(Text(text, style=STYLES.get(text, "")) for text in row))
    console.print(table)


def plain_lines(heads: Sequence[str], rows: Rows, right: Collection[int] = ()) -> list[str]:
    """Columns two blanks apart, as wide as their longest text."""
    lines = [list(heads), *(list(row) for row in rows)]
    widths = [max(cell_len(line[i]) for line in lines) for i in range(len(heads))]

    def place(text: str, i: int) -> str:
        blanks = " " * (widths[i] - cell_len(text))
        return blanks + text if i in right else text + blanks

    return ["  ".join(place(text, i) for i, text in enumerate(line)).rstrip() for line in lines]


def markdown_lines(heads: Sequence[str], rows: Rows, right: Collection[int] = ()) -> list[str]:
    rule = ["---:" if i in right else "---" for i in range(len(heads))]
    safe = [[text.replace("|", "\\|") for text in line] for line in (heads, *rows)]
    return [f"| {' | '.join(line)} |" for line in (safe[0], rule, *safe[1:])]


def notice(*lines: str) -> None:
    """Lines beside a table, on stderr: stdout has the table alone."""
    console = Console(stderr=True)
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def aligned(pairs: Mapping[str, str], indent: int = 2) -> list[str]:
    """`name  value` lines with the values below each other."""
    width = max((cell_len(name) for name in pairs), default=0)
    return [f"{' ' * indent}{name}{' ' * (width - cell_len(name))}  {value}".rstrip() for name, value in pairs.items()]


def number(value: float | None, places: int = 4) -> str:
    """Four significant digits; `-` for none."""
    return "-" if value is None else f"{value:.{places}g}"


def seconds_text(seconds: float) -> str:
    """`45 s`, `12 min`, `3.4 h`, `2 d`: as coarse as one reads it."""
    seconds = max(0.0, seconds)
    for limit, size, unit in ((90, 1, "s"), (90 * 60, 60, "min"), (36 * 3600, 3600, "h")):
        if seconds < limit:
            value = seconds / size
            return f"{value:.1f} {unit}" if unit == "h" and value < 10 else f"{value:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"
