"""Which task feeds which: the directed acyclic graph of a cascade."""

from collections.abc import Sequence
from graphlib import CycleError, TopologicalSorter

from mtlcar.errors import UserError
from mtlcar.tasks import TaskSet


def default_edges(tasks: TaskSet) -> list[tuple[str, str]]:
    """[parent, child] edges from the tasks themselves.

    Each task's own parent feeds it, and the finest classification feeds every regression (a property's range
    depends on the class). Where that gives nothing (unrelated classifications, or regressions only), the tasks
    form a chain in the dataset's order.
    """
    edges: list[tuple[str, str]] = [(t.parent, t.name) for t in tasks if t.parent is not None and t.parent in tasks]
    if tasks.classification:
        edges += [(tasks.finest().name, t.name) for t in tasks.regression]
    return edges or list(zip(tasks.names, tasks.names[1:], strict=False))


def parents(tasks: TaskSet, order: Sequence[Sequence[str]] | None) -> dict[str, tuple[str, ...]]:
    """task -> the tasks that feed it, keys in an order in which parents come before children.

    Args:
        order: [parent, child] edges; None: `default_edges`.

    Raises:
        UserError: an edge that is not a pair, an unknown task, a cycle, no edge at all.
    """
    edges: list[tuple[str, str]] = default_edges(tasks)
    if order is not None:
        edges = []
        for edge in order:
            if isinstance(edge, str) or len(edge) != 2:
                raise UserError(
                    f"architecture.order should be a list of [parent, child] edges, [[make,model]] say. Found {edge!r}."
                )
            for name in edge:
                if name not in tasks:
                    raise UserError(f"architecture.order: {_unknown(tasks, name)}")
            edges.append((str(edge[0]), str(edge[1])))
    if not edges:
        raise UserError("architecture.order has no edge, so nothing would be fed: that is architecture=parallel.")
    graph = {name: tuple(dict.fromkeys(p for p, child in edges if child == name)) for name in tasks.names}
    try:
        return {name: graph[name] for name in TopologicalSorter(graph).static_order()}
    except CycleError as error:
        raise UserError(f"architecture.order has a cycle: {' -> '.join(error.args[1])}.") from error


def _unknown(tasks: TaskSet, name: str) -> str:
    try:
        tasks[name]
    except UserError as error:
        return str(error)
    raise AssertionError(name)
