"""Which networks of one task alone multi-task cells are compared with: one for all cells of the same settings."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mtlcar.metrics.direction import lower_is_better
from mtlcar.report.collect import Run
from mtlcar.report.comparison import Cell, Comparison, flat, replicate
from mtlcar.report.varied import METHOD, Settings, by_content, is_seed
from mtlcar.tasks import Task

SINGLE = "single"
BALANCE = ("label_transform", "weighting")
OF_SHARING = (
    *("architecture", *BALANCE, "loss.matching", "loss.matching_kind"),
    *(METHOD, "monitor", "monitor_mode"),
)
"""Settings, and groups of them, that a baseline need not share: they say how tasks are joined and balanced, which one
task alone is not, and which task's metric picks the checkpoint."""


@dataclass(frozen=True)
class Baseline:
    """Networks of one task alone.

    Attributes:
        cell: theirs.
        among: how many cells it was chosen from.
        alike: whether it has the label transform and the weighting of all cells that are compared with it.
    """

    cell: Cell
    among: int
    alike: bool

    @property
    def runs(self) -> dict[str, Run]:
        """By seed."""
        return {replicate(run): run for run in self.cell.runs}

    @property
    def words(self) -> str:
        """Its cell, and why this one where there are several."""
        if self.among == 1:
            return self.cell.label
        why = "that with the label transform and weighting of these cells" if self.alike else "the best in validation"
        return f"{self.cell.label} (of {self.among}, {why})"


def task_metric(task: Task) -> str:
    """The one metric by which a task's gain is measured."""
    return f"{task.name}/{'accuracy' if task.kind == 'classification' else 'mae'}"


def baselines(comparison: Comparison) -> list[tuple[Cell, dict[str, Baseline]]]:
    """Every multi-task cell, in the comparison's order, with its baselines: task -> networks of that task alone.

    Of several baselines that have a cell's settings the first of these: the one with most of the seeds that are needed;
    with the label transform and weighting of all cells that it serves; the best by the task's metric on validation
    images, mean over seeds; the first in the comparison.
    """
    flats = by_content([flat(run) for run in comparison.runs], [run.digests for run in comparison.runs])
    settings = {id(run): found for run, found in zip(comparison.runs, flats, strict=True)}
    groups: dict[str, list[Cell]] = {}
    for cell in comparison.cells:
        groups.setdefault(_to_match(settings[id(cell.runs[0])]), []).append(cell)
    found: dict[int, dict[str, Baseline]] = {}
    for cells in groups.values():
        several = [cell for cell in cells if not any(is_alone(run) for run in cell.runs)]
        if not several:
            continue
        alone: dict[str, list[Cell]] = {}
        for cell in cells:
            if all(is_alone(run) for run in cell.runs):
                alone.setdefault(trained_alone(cell.runs[0]), []).append(cell)
        chosen = {task: _chosen(task, candidates, several, settings) for task, candidates in alone.items()}
        found |= {id(cell): chosen for cell in several}
    return [(cell, found[id(cell)]) for cell in comparison.cells if id(cell) in found]


def is_alone(run: Run) -> bool:
    """Whether a run was trained on one task alone. Where a label transform made one task of several it was not: its
    loss is that of another task than the data set's."""
    losses = {metric.removesuffix("/loss") for metric in run.test if metric.endswith("/loss")}
    return (run.config.get("architecture") or {}).get("name") == SINGLE and losses <= {trained_alone(run)}


def trained_alone(run: Run) -> str:
    """The task that a run of one task was trained on."""
    return str((run.config.get("architecture") or {}).get("task") or run.tasks.finest().name)


def _chosen(task: str, candidates: Sequence[Cell], cells: Sequence[Cell], settings: Mapping[int, Settings]) -> Baseline:
    needed = {replicate(run) for cell in cells for run in cell.runs}
    balances = [_balance(settings[id(cell.runs[0])]) for cell in cells]

    def alike(cell: Cell) -> bool:
        own = _balance(settings[id(cell.runs[0])])
        return all(other == own for other in balances)

    def rank(cell: Cell) -> tuple[int, bool, float]:
        return -len(needed & {replicate(run) for run in cell.runs}), not alike(cell), _validation(task, cell)

    best = min(candidates, key=rank)
    return Baseline(best, len(candidates), alike(best))


def _validation(task: str, cell: Cell) -> float:
    """Mean over seeds of the task's metric on validation images, less is better; infinite where it is not known."""
    metric = task_metric(cell.runs[0].tasks[task]) if task in cell.runs[0].tasks else ""
    values = [run.metrics["val"].get(metric) for run in cell.runs]
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
        return math.inf
    return (1 if lower_is_better(metric) else -1) * float(np.mean(values))


def _balance(settings: Settings) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key.split(".", 1)[0] in BALANCE}


def _to_match(settings: Settings) -> str:
    """The settings that a baseline has to share, as text."""
    kept = {
        key: value
        for key, value in settings.items()
        if key not in OF_SHARING and key.split(".", 1)[0] not in OF_SHARING and not is_seed(key)
    }
    return repr(sorted(kept.items()))
