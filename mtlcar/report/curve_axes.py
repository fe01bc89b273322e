"""Which settings of a comparison are numbers, and how its cells lie along one of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mtlcar.report.comparison import Cell, Comparison, label
from mtlcar.report.figures import STYLES
from mtlcar.report.ranking import ranked
from mtlcar.report.varied import NONE

POINTS = 3
"""Least values of a setting that make a curve."""
FIGURES = 3
"""Most settings with a figure, those with the most values."""
LINES, PANELS = len(STYLES), 4
"""Most lines in a panel and most panels side by side; the best are kept."""


@dataclass
class CurveAxes:
    """Cells as points of curves.

    Attributes:
        key: the setting along x, dotted; `title` is its name there.
        points: (value, line, panel, cell), by panel, line and value.
        lines, panels: values of the other settings; one empty name where there are none.
        note: what was left out.
    """

    key: str
    title: str
    points: list[tuple[float, str, str, Cell]]
    line_title: str = ""
    panel_title: str = ""
    lines: list[str] = field(default_factory=list)
    panels: list[str] = field(default_factory=list)
    note: str = ""


def curve_axes(comparison: Comparison) -> list[CurveAxes]:
    """One for each varied setting with at least `POINTS` numbers on some line; those with the most first."""
    found = []
    for key in comparison.keys:
        values = {id(cell): number(cell, key) for cell in comparison.cells}
        if len({v for v in values.values() if v is not None}) >= POINTS:
            axes = _axes(comparison, key, values)
            if axes is not None:
                found.append(axes)
    return sorted(found, key=lambda axes: -len({x for x, *_ in axes.points}))[:FIGURES]


def number(cell: Cell, key: str) -> float | None:
    """A cell's value of a setting: a number, or of numbers by task the finest class task's share of their sum (of other
    tasks: the first one's). None for anything else."""
    node: Any = cell.runs[0].config
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return None
        node = node[part]
    if isinstance(node, bool):
        return None
    if isinstance(node, int | float):
        return float(node) if math.isfinite(node) else None
    task = _task(cell)
    if not isinstance(node, Mapping) or task not in node or not set(node) <= set(cell.runs[0].tasks.names):
        return None
    parts = [v for v in node.values() if isinstance(v, int | float) and not isinstance(v, bool)]
    total = sum(parts)
    return float(node[task]) / total if len(parts) == len(node) > 1 and min(parts) >= 0 and total > 0 else None


def _task(cell: Cell) -> str:
    return cell.runs[0].tasks.finest().name


def _by_task(cell: Cell, key: str) -> bool:
    """Whether `number` gives a share."""
    group, _, rest = key.partition(".")
    node = cell.runs[0].config.get(group)
    for part in rest.split(".") if rest else []:
        node = node.get(part) if isinstance(node, Mapping) else None
    return isinstance(node, Mapping)


def _axes(comparison: Comparison, key: str, values: Mapping[int, float | None]) -> CurveAxes | None:
    cells = [cell for cell in comparison.cells if values[id(cell)] is not None]
    own = comparison.keys.index(key)
    others = [i for i in range(len(comparison.keys)) if i != own and len({cell.values[i] for cell in cells}) > 1]
    lines = _line_columns(comparison, cells, others)
    panels = [i for i in others if i not in lines]
    share = any(_by_task(cell, key) for cell in cells)
    title = f"share of {_task(cells[0])} in {comparison.titles[own]}" if share else comparison.titles[own]
    points: dict[tuple[str, str, float], Cell] = {}
    clashes = 0
    for cell in cells:
        place = (_name(comparison, cell, panels), _name(comparison, cell, lines), values[id(cell)] or 0.0)
        if place in points:  # weights in other units with the same share: the one that the table has first
            clashes += 1
        else:
            points[place] = cell
    counts: dict[tuple[str, str], int] = {}
    for panel, line, _ in points:
        counts[panel, line] = counts.get((panel, line), 0) + 1
    if max(counts.values(), default=0) < POINTS:
        return None
    axes = CurveAxes(key, title, [])
    axes.line_title = ", ".join(comparison.titles[i] for i in lines)
    axes.panel_title = ", ".join(comparison.titles[i] for i in panels)
    named_panels = [(panel, cell) for (panel, _, _), cell in points.items()]
    named_lines = [(line, cell) for (_, line, _), cell in points.items()]
    axes.panels = _best(comparison, named_panels, PANELS)
    axes.lines = _best(comparison, [(line, c) for (p, line, _), c in points.items() if p in axes.panels], LINES)
    axes.points = [
        (x, line, panel, cell)
        for (panel, line, x), cell in points.items()
        if panel in axes.panels and line in axes.lines
    ]
    axes.points.sort(key=lambda p: (axes.panels.index(p[2]), axes.lines.index(p[1]), p[0]))
    missing = len(comparison.cells) - len(cells)
    notes = []
    if missing:
        notes.append(f"{missing} cells without a number for it are left out.")
    if clashes:
        notes.append(f"{clashes} cells are left out that have the share of another one, but not its weights.")
    for what, kept, all_of in (("panels", axes.panels, named_panels), ("lines", axes.lines, named_lines)):
        if len(kept) < (total := len({name for name, _ in all_of})):
            notes.append(f"Only the best {len(kept)} of {total} {what}.")
    axes.note = " ".join(notes)
    return axes


def _line_columns(comparison: Comparison, cells: Sequence[Cell], others: Sequence[int]) -> list[int]:
    """The other numeric setting with the most values where there is one, else the first group of settings."""
    numeric = {
        i: len(found)
        for i in others
        if len(found := {number(cell, comparison.keys[i]) for cell in cells}) > 1 and None not in found
    }
    if numeric:
        return [max(numeric, key=lambda i: numeric[i])]
    group = comparison.keys[others[0]].split(".")[0] if others else ""
    return [i for i in others if comparison.keys[i].split(".")[0] == group]


def _name(comparison: Comparison, cell: Cell, columns: Sequence[int]) -> str:
    if len(columns) < 2:
        return cell.values[columns[0]] if columns else ""
    if all(cell.values[i] == NONE for i in columns):
        return NONE
    return label([comparison.titles[i] for i in columns], [cell.values[i] for i in columns])


def _best(comparison: Comparison, named: Sequence[tuple[str, Cell]], most: int) -> list[str]:
    """At most so many of the names, in their order: those in which the best cells are."""
    names = list(dict.fromkeys(name for name, _ in named))
    if len(names) <= most:
        return names
    owner = {id(cell): name for name, cell in named}
    order = list(dict.fromkeys(owner[id(cell)] for cell in ranked(comparison, [cell for _, cell in named])))
    return [name for name in names if name in set(order[:most])]
