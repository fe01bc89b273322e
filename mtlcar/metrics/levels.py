"""Which tasks are levels of a hierarchy, and which implies which; known without torch."""

from collections.abc import Iterable

from mtlcar.tasks import TaskSet


def edges(tasks: TaskSet) -> list[tuple[str, str]]:
    """(child, parent) for each task with a parent in the set."""
    return [(t.name, t.parent) for t in tasks if t.parent is not None and t.parent in tasks]


def levels(tasks: TaskSet) -> list[str]:
    """The tasks that are above or below another one, in the set's order."""
    pairs = edges(tasks)
    return [t.name for t in tasks if any(t.name in pair for pair in pairs)]


def finest_below(tasks: TaskSet, coarse: str, among: Iterable[str]) -> str | None:
    """The finest task of `among` whose classes imply those of `coarse` (ties: more classes, then the earlier)."""
    predicted = set(among)
    below = [t for t in tasks if t.name in predicted and coarse in tasks.ancestors(t.name)]
    return max(below, key=lambda t: (tasks.depth(t.name), len(t.classes))).name if below else None
