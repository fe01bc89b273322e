"""Which metrics cells are compared by, and which cells are the best."""

import math
from collections.abc import Iterable, Sequence

from mtlcar.metrics.direction import lower_is_better
from mtlcar.report.comparison import Cell, Comparison


def main_metric(comparison: Comparison) -> str:
    """The test metric that cells are ranked by: the finest class task's accuracy, else the first there is."""
    finest = [f"{run.tasks.finest().name}/accuracy" for run in comparison.runs[:1] if run.tasks.classification]
    return next((metric for metric in (*finest, *comparison.metrics) if metric in comparison.metrics), "")


def task_metrics(comparison: Comparison) -> list[str]:
    """One test metric a task, those that some cell has: accuracies from the finest level up, then mean errors."""
    tasks = {task.name: task for run in comparison.runs for task in run.tasks}
    depths = {task.name: run.tasks.depth(task.name) for run in comparison.runs for task in run.tasks}
    levels = sorted(
        (task for task in tasks.values() if task.kind == "classification"),
        key=lambda task: (-depths[task.name], -len(task.classes)),
    )
    wanted = [f"{task.name}/accuracy" for task in levels]
    wanted += [f"{task.name}/mae" for task in tasks.values() if task.kind == "regression"]
    return [metric for metric in wanted if any(known(cell, metric) for cell in comparison.cells)]


def compared_metrics(comparison: Comparison) -> list[str]:
    """`task_metrics` with the accuracy of the full path after those of the levels."""
    found = task_metrics(comparison)
    path = "hierarchy/full_path_accuracy"
    if any(known(cell, path) for cell in comparison.cells):
        found.insert(sum(metric.endswith("/accuracy") for metric in found), path)
    return found


def known(cell: Cell, metric: str) -> bool:
    """Whether a cell has a finite mean of a metric."""
    return metric in cell.numbers and math.isfinite(cell.numbers[metric].mean)


def ranked(comparison: Comparison, cells: Iterable[Cell]) -> list[Cell]:
    """`cells` by `main_metric`, the best first; those without it last, equal ones in their order."""
    metric = main_metric(comparison)
    sign = 1.0 if lower_is_better(metric) else -1.0
    return sorted(cells, key=lambda cell: sign * cell.numbers[metric].mean if known(cell, metric) else math.inf)


def best_cells(comparison: Comparison, cells: Sequence[Cell], most: int) -> list[Cell]:
    """The best `most` of `cells`, in their order."""
    kept = {id(cell) for cell in ranked(comparison, cells)[:most]}
    return [cell for cell in cells if id(cell) in kept]
