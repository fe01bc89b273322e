"""Two settings that were crossed: the cells of a comparison by their row, column and panel."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from mtlcar.metrics.direction import lower_is_better
from mtlcar.report.comparison import Cell, Comparison, label
from mtlcar.report.intervals import Estimate
from mtlcar.report.ranking import ranked
from mtlcar.report.scales import implied
from mtlcar.report.table import best_of
from mtlcar.report.varied import NONE

PANELS = 6
"""Most panels; with more combinations of the other settings, one is chosen for each place."""
ROWS, COLUMNS = 40, 16
"""Most rows and columns that can be read; the best ones are kept."""
FILLED = 0.5
"""Least share of the combinations that must be there: below it two settings were not crossed."""


Place = tuple[str, str, str]
"""Row, column and panel; the panel is empty where there is one."""


@dataclass
class Grid:
    """Cells by their place: (row, column, panel). `titles` are those of the three; `note` says what was chosen."""

    titles: tuple[str, str, str]
    rows: list[str]
    columns: list[str]
    panels: list[str]
    places: dict[Place, list[Cell]]
    note: str = ""

    def estimates(self, metric: str) -> dict[Place, Estimate]:
        """The metric at each place that has it; where a place has several cells, the mean of their means."""
        found = {}
        for place, cells in self.places.items():
            numbers = [cell.numbers[metric] for cell in cells if metric in cell.numbers]
            if len(numbers) == 1:
                found[place] = numbers[0]
            elif numbers:
                mean = sum(e.mean for e in numbers) / len(numbers)
                found[place] = Estimate(mean, math.nan, math.nan, sum(e.n for e in numbers))
        return found

    def best(self, metric: str) -> set[Place]:
        """The places with the best value as it is shown. An implied class does not compete."""
        places = list(self.estimates(metric).items())
        free = {i: e.mean for i, (p, e) in enumerate(places) if not any(implied(c, metric) for c in self.places[p])}
        return {places[i][0] for i in best_of(metric, free)}


def crossed(comparison: Comparison) -> Grid | None:
    """Rows and columns: architecture and weighting where both varied and were crossed, else the two groups of settings
    (or two settings of one group) with the most combinations. The longer of the two are the rows."""
    groups: dict[str, list[int]] = {}
    for i, key in enumerate(comparison.keys):
        groups.setdefault(key.split(".")[0], []).append(i)
    by_group, by_key = list(groups.values()), [[i] for i in range(len(comparison.keys))]
    for factors in (by_group, by_key):
        pairs = [(a, b) for a, b in combinations(factors, 2) if _useful(comparison, a, b)]
        wanted = [groups.get("architecture"), groups.get("weighting")]
        if pairs:
            a, b = (
                wanted if (wanted[0], wanted[1]) in pairs else max(pairs, key=lambda p: _combinations(comparison, *p))
            )
            return _grid(comparison, a or [], b or [])
    return None


def _values(comparison: Comparison, cell: Cell, columns: Sequence[int]) -> str:
    if len(columns) == 1:
        return cell.values[columns[0]]
    if all(cell.values[i] == NONE for i in columns):
        return NONE
    return label([comparison.titles[i] for i in columns], [cell.values[i] for i in columns])


def _useful(comparison: Comparison, a: Sequence[int], b: Sequence[int]) -> bool:
    """Whether two values of one were tried with the same two of the other, and enough of the others."""
    tried: dict[str, set[str]] = {}
    for cell in comparison.cells:
        tried.setdefault(_values(comparison, cell, a), set()).add(_values(comparison, cell, b))
    size = len(tried) * len(set().union(*tried.values()))
    square = any(len(x & y) > 1 for x, y in combinations(tried.values(), 2))
    return square and sum(map(len, tried.values())) >= FILLED * size


def _combinations(comparison: Comparison, a: Sequence[int], b: Sequence[int]) -> int:
    return len({(_values(comparison, cell, a), _values(comparison, cell, b)) for cell in comparison.cells})


def _ordered(comparison: Comparison, columns: Sequence[int]) -> list[str]:
    """The values of a setting, numbers by size and words as they first finished, as the cells are in the table."""
    ranks: list[dict[str, float]] = []
    for i in columns:
        first: dict[str, float] = {}
        for cell in comparison.cells:
            finished = min(run.finished for run in cell.runs)
            first[cell.values[i]] = min(finished, first.get(cell.values[i], finished))
        try:
            ranks.append({value: float(value) for value in first})
        except ValueError:
            ranks.append(first)
    found: dict[str, list[float]] = {}
    for cell in comparison.cells:
        place = [rank[cell.values[i]] for rank, i in zip(ranks, columns, strict=True)]
        found.setdefault(_values(comparison, cell, columns) if columns else "", place)
    return sorted(found, key=lambda name: found[name])


def _title(comparison: Comparison, columns: Sequence[int]) -> str:
    return comparison.titles[columns[0]] if len(columns) == 1 else comparison.keys[columns[0]].split(".")[0]


def _grid(comparison: Comparison, a: Sequence[int], b: Sequence[int]) -> Grid:
    counts = [len({_values(comparison, cell, f) for cell in comparison.cells}) for f in (a, b)]
    rows, columns = (a, b) if counts[0] >= counts[1] else (b, a)
    others = [i for i in range(len(comparison.keys)) if i not in (*a, *b)]
    heads = [i for i in others if comparison.keys[i] == "head.name"]
    panel = next(
        (c for c in (others, heads) if len({_values(comparison, cell, c) for cell in comparison.cells}) <= PANELS), []
    )
    places: dict[Place, list[Cell]] = {}
    for cell in comparison.cells:
        place = tuple(_values(comparison, cell, f) if f else "" for f in (rows, columns, panel))
        places.setdefault((place[0], place[1], place[2]), []).append(cell)
    grid = Grid(
        (_title(comparison, rows), _title(comparison, columns), ", ".join(comparison.titles[i] for i in panel)),
        _ordered(comparison, rows),
        _ordered(comparison, columns),
        _ordered(comparison, panel),
        places,
    )
    if any(len(cells) > 1 for cells in places.values()):
        rest = ", ".join(comparison.titles[i] for i in others if i not in panel)
        grid.note = _choose(comparison, grid, rest)
    for axis, most in ((0, ROWS), (1, COLUMNS)):
        _cut(comparison, grid, axis, most)
    return grid


def _choose(comparison: Comparison, grid: Grid, rest: str) -> str:
    """Keep of several cells at one place the one with the best validation value; says so. Without comparable ones all
    stay, for their mean."""
    monitors = {str(run.metrics.get("best", {}).get("monitor")) for run in comparison.runs}
    values: dict[int, float] = {}
    for cell in comparison.cells:
        found = [run.metrics.get("best", {}).get("value") for run in cell.runs]
        numbers = [float(v) for v in found if isinstance(v, int | float)]
        values[id(cell)] = sum(numbers) / len(numbers) if numbers else math.nan
    if len(monitors) > 1 or any(math.isnan(v) for v in values.values()):
        return f"Each number is the mean over the values of {rest}."
    monitor = monitors.pop()
    pick = min if lower_is_better(monitor) else max
    for place, cells in grid.places.items():
        grid.places[place] = [pick(cells, key=lambda cell: values[id(cell)])]
    return f"Of the values of {rest}, each place shows those with the best validation {monitor.removeprefix('val/')}."


def _cut(comparison: Comparison, grid: Grid, axis: int, most: int) -> None:
    """Keep so many rows (axis 0) or columns (1), those in which the best cells are."""
    names = (grid.rows, grid.columns)[axis]
    if len(names) <= most:
        return
    owner = {id(cell): place[axis] for place, cells in grid.places.items() for cell in cells}
    order = list(dict.fromkeys(owner[id(cell)] for cell in ranked(comparison, comparison.cells) if id(cell) in owner))
    kept = set(order[:most])
    grid.note += (
        f" Only the best {most} of {len(names)} {('rows', 'columns')[axis]}; the table of all cells has the others."
    )
    names[:] = [name for name in names if name in kept]
    grid.places = {place: cells for place, cells in grid.places.items() if place[axis] in kept}
