"""Levels of naming a car (make, model, year, body type) as tasks with their hierarchy."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from mtlcar.data.annotations import MISSING_CLASS
from mtlcar.errors import UserError, did_you_mean
from mtlcar.tasks import Task, TaskSet


def check_levels(levels: Iterable[str], known: Sequence[str]) -> tuple[str, ...]:
    """The levels asked for, in their order.

    Raises:
        UserError: none, one twice, or one that is not `known`.
    """
    if not isinstance(levels, Iterable):
        raise UserError(f"data.levels should be a list of {', '.join(known)}. Found {levels!r}.")
    names = (levels,) if isinstance(levels, str) else tuple(str(level) for level in levels)
    for name in names:
        if name not in known:
            raise UserError(f"data.levels: no level {name!r}; there are {', '.join(known)}.{did_you_mean(name, known)}")
    if not names or len(set(names)) != len(names):
        raise UserError(f"data.levels should name each level once, at least one of {', '.join(known)}. Found {names}.")
    return names


def level_tasks(
    levels: Sequence[str],
    values: Mapping[str, Sequence[str | None]],
    classes: Mapping[str, Sequence[str]],
    parents: Sequence[str],
) -> tuple[TaskSet, dict[str, np.ndarray]]:
    """One classification a level, over C kinds of car (or C images).

    The parent of `model` is the first level of `parents` that was asked for and that every model has exactly one
    class of; no other level has a parent. A model may well imply its body type besides its make, but a task has one
    parent, so with `[make, type, model]` the type stands alone.

    Args:
        levels: task names in order.
        values: level -> class name of each of the C, None where it is unknown.
        classes: level -> class names in index order.
        parents: candidates for the model's parent, best first.

    Returns:
        the tasks, and level -> int64 [C], the class index of each of the C (-1: unknown).
    """
    table: dict[str, np.ndarray] = {}
    for level in levels:
        index = {name: i for i, name in enumerate(classes[level])}
        table[level] = np.array([MISSING_CLASS if v is None else index[v] for v in values[level]], dtype=np.int64)
    parent, parent_of = None, {}
    if "model" in levels:
        for candidate in (p for p in parents if p in levels):
            implied = implied_classes(table["model"], table[candidate], len(classes["model"]))
            if implied is not None:
                parent, parent_of = candidate, {"model": implied}
                break
    tasks = [
        Task(level, "classification", tuple(classes[level]), parent=parent if level == "model" else None)
        for level in levels
    ]
    return TaskSet(tasks, parent_of), table


def implied_classes(child: np.ndarray, parent: np.ndarray, n_classes: int) -> tuple[int, ...] | None:
    """For each of the child's classes the one parent class it comes with, or None where there is not exactly one."""
    implied = []
    for c in range(n_classes):
        seen = np.unique(parent[child == c])
        if len(seen) != 1 or seen[0] == MISSING_CLASS:
            return None
        implied.append(int(seen[0]))
    return tuple(implied)
