"""Sums and maxima over the paths of a hierarchy whose levels have class probabilities; numpy alone."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from mtlcar.metrics.levels import finest_below, levels
from mtlcar.tasks import TaskSet

FLOOR = 2.0**-149
"""Least probability that paths count with, the smallest number of float32: a probability that was rounded to 0 does not
make all paths through its class alike. NaN counts as this."""

Arrays = dict[str, np.ndarray]


def scored_levels(tasks: TaskSet, scores: Mapping[str, Any] | set[str]) -> list[str]:
    """The levels of the hierarchy that have scores; decodings differ where there are two or more."""
    return [name for name in levels(tasks) if name in scores]


class ScoredLevels:
    """The levels that something is known of: those with scores and those above them.

    Attributes:
        scored: {level: probabilities [N, C]} of those with scores.
        order: all of them, each after its parent.
        finest: level -> the finest scored level at or below it.
    """

    def __init__(self, scores: Mapping[str, Any], tasks: TaskSet) -> None:
        self.tasks = tasks
        self.scored = {name: np.asarray(scores[name]) for name in scored_levels(tasks, scores)}
        for name, values in self.scored.items():
            if values.ndim != 2 or values.shape[1] != len(tasks[name].classes):
                raise ValueError(f"Scores of {name!r} should be [N, {len(tasks[name].classes)}]. Found {values.shape}.")
        self.finest: dict[str, str] = {}
        for name in sorted(levels(tasks), key=tasks.depth):
            below = finest_below(tasks, name, self.scored) or (name if name in self.scored else None)
            if below is not None:
                self.finest[name] = below
        self.order = list(self.finest)
        self.n = len(next(iter(self.scored.values()), ()))

    def parent(self, name: str) -> str | None:
        above = self.tasks[name].parent
        return above if above in self.finest else None

    def children(self, name: str) -> list[str]:
        return [child for child in self.order if self.parent(child) == name]

    def size(self, name: str) -> int:
        return len(self.tasks[name].classes)

    def table(self, child: str, ancestor: str) -> np.ndarray:
        """For each class of `child` the class of `ancestor` it implies."""
        return np.asarray(self.tasks.ancestor_table(child, ancestor))

    def to_parent(self, values: np.ndarray, child: str, ufunc: np.ufunc, empty: float) -> np.ndarray:
        """[N, classes of child] reduced over the children of each parent class, [N, classes of parent]."""
        above = self.parent(child)
        assert above is not None
        return grouped(values, self.table(child, above), self.size(above), ufunc, empty)

    @cached_property
    def usable(self) -> Arrays:
        """{level: bool [C]}: classes that have a child at as many levels below as any that may stand in their place."""
        missing: Arrays = {}
        usable: Arrays = {}
        for name in self.order[::-1]:
            missing[name] = np.zeros(self.size(name))
            for child in self.children(name):
                lost = self._descendants(child) + 1
                missing[name] += self.to_parent(missing[child][None], child, np.minimum, lost)[0]
        for name, values in missing.items():
            above = self.parent(name)
            if above is None:
                usable[name] = values == values.min()
            else:
                usable[name] = values == self.to_parent(values[None], name, np.minimum, 0)[0][self.table(name, above)]
        return usable

    def _descendants(self, name: str) -> int:
        return sum(1 + self._descendants(child) for child in self.children(name))

    @cached_property
    def logs(self) -> Arrays:
        """{level: log p [N, C]}; 0 for a level without scores, -inf for a class that is not usable."""
        found = {}
        for name in self.order:
            p = self.scored.get(name, np.ones((self.n, self.size(name)))).astype(np.float64)
            found[name] = np.where(self.usable[name], np.log(np.where(p > FLOOR, p, FLOOR)), -np.inf)
        return found

    def messages(self, ufunc: np.ufunc) -> Arrays:
        """log p of each class and of all below it: of the best way down (`maximum`) or of all (`logaddexp`)."""
        found: Arrays = {}
        for name in self.order[::-1]:
            below = [self.to_parent(found[child], child, ufunc, 0.0) for child in self.children(name)]
            found[name] = sum(below, self.logs[name])
        return found

    def evidence(self, ufunc: np.ufunc) -> Arrays:
        """log p of each class by its own head alone; without one, what the nearest scored level below says."""
        found: Arrays = {}
        distance: dict[str, int] = {}
        for name in self.order[::-1]:
            found[name], distance[name] = self.logs[name], 0
            if name not in self.scored:
                child = min(self.children(name), key=lambda c: distance[c])
                distance[name] = distance[child] + 1
                found[name] = found[name] + self.to_parent(found[child], child, ufunc, np.log(FLOOR))
        return found

    def descend(self, values: Arrays) -> Arrays:
        """The class with the largest value at each level, among the children of the one above."""
        found: Arrays = {}
        for name in self.order:
            v, above = values[name], self.parent(name)
            if above is None:
                found[name] = v.argmax(axis=1)
                continue
            inside = self.table(name, above) == found[above][:, None]
            best = np.where(inside, v, -np.inf).argmax(axis=1)
            found[name] = np.where(inside.any(axis=1), best, -1)
        return found

    def spread(self, values: Arrays) -> Arrays:
        """Probabilities: exp(values) normalised among the children of each class above, times its probability."""
        found: Arrays = {}
        for name in self.order:
            v, above = values[name], self.parent(name)
            if above is None:
                found[name] = np.exp(v - np.logaddexp.reduce(v, axis=1, keepdims=True))
                continue
            table = self.table(name, above)
            total = self.to_parent(v, name, np.logaddexp, 0.0)
            found[name] = np.exp(v - total[:, table]) * found[above][:, table]
        return found

    def summed(self, name: str) -> np.ndarray:
        """Probabilities [N, C] of a level as sums of those of the finest scored level at or below it."""
        finest = self.finest[name]
        p = self.scored[finest].astype(np.float64)
        return p if finest == name else grouped(p, self.table(finest, name), self.size(name), np.add, 0.0)


def grouped(values: np.ndarray, table: np.ndarray, size: int, ufunc: np.ufunc, empty: float) -> np.ndarray:
    """Columns of `values` [N, C] reduced over those with equal `table` [C], [N, size]; `empty` where there is none."""
    order = np.argsort(table, kind="stable")
    present, starts = np.unique(table[order], return_index=True)
    found = np.full((len(values), size), empty, dtype=np.float64)
    found[:, present] = ufunc.reduceat(values[:, order], starts, axis=1)
    return found
