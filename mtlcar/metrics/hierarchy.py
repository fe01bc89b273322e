"""What a predicted class says about the coarser tasks, and whether the levels agree."""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from mtlcar.metrics.sums import Sums
from mtlcar.tasks import TaskSet


def imply(tasks: TaskSet, predictions: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fill in the coarser tasks that were not predicted: the class implied by the finest predicted task below.

    Args:
        predictions: task -> [B]; class -1 means no class, and implies none.

    Returns:
        The predictions, with the implied ones, in the order of `tasks`.
    """
    filled: dict[str, Tensor] = {}
    for task in tasks:
        if task.name in predictions:
            filled[task.name] = predictions[task.name]
        elif task.kind == "classification" and (child := finest_below(tasks, task.name, predictions)) is not None:
            filled[task.name] = lift(tasks, child, task.name, predictions[child])
    return filled


def finest_below(tasks: TaskSet, coarse: str, among: Iterable[str]) -> str | None:
    """The finest task of `among` whose classes imply those of `coarse` (ties: more classes, then the earlier)."""
    predicted = set(among)
    below = [t for t in tasks if t.name in predicted and coarse in tasks.ancestors(t.name)]
    return max(below, key=lambda t: (tasks.depth(t.name), len(t.classes))).name if below else None


def lift(tasks: TaskSet, child: str, ancestor: str, classes: Tensor) -> Tensor:
    """Classes of `child` [B] -> the classes of `ancestor` that they imply [B]; -1 stays -1."""
    table = _table(tasks, child, ancestor, classes.device)
    return torch.where(classes >= 0, table[classes.clamp(min=0)], -1)


@lru_cache(maxsize=64)
def _table(tasks: TaskSet, child: str, ancestor: str, device: torch.device) -> Tensor:
    return torch.tensor(tasks.ancestor_table(child, ancestor), device=device)


def edges(tasks: TaskSet) -> list[tuple[str, str]]:
    """(child, parent) for each task with a parent in the set."""
    return [(t.name, t.parent) for t in tasks if t.parent is not None and t.parent in tasks]


class HierarchySums(Sums):
    """Agreement between the levels of the hierarchy, as exact counts.

    - `<coarse>/implied_accuracy`: share of the labelled images whose coarse class is the one that the finest predicted
      task below implies;
    - `hierarchy/consistency`: share of all images in which every predicted class implies the predicted parent;
    - `hierarchy/full_path_accuracy`: share of the images with a label at every level in which every level is right.
      Both are there when every level is predicted.
    """

    def __init__(self, tasks: TaskSet) -> None:
        super().__init__()
        self.tasks = tasks
        self.edges = edges(tasks)
        self.coarse = [t.name for t in tasks if any(t.name == parent for _, parent in self.edges)]
        self.levels = [t.name for t in tasks if any(t.name in edge for edge in self.edges)]
        for name, size in (("implied", len(self.coarse)), ("labelled", len(self.coarse)), ("paths", 4)):
            self.add_state(name, torch.zeros(size, dtype=torch.int64), dist_reduce_fx="sum")
        self.implied: Tensor
        self.labelled: Tensor
        self.paths: Tensor

    def update(self, predictions: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> None:
        """Class indices {task: int64 [B]} of the predicted tasks, and the labels."""
        if not self.edges:
            return
        zero = torch.zeros((), dtype=torch.int64, device=targets[self.levels[0]].device)
        implied, labelled = [], []
        for coarse in self.coarse:
            child = finest_below(self.tasks, coarse, predictions)
            target = targets[coarse]
            right = zero if child is None else self._right(lift(self.tasks, child, coarse, predictions[child]), target)
            implied.append(right.sum())
            labelled.append(zero if child is None else (target >= 0).sum())
        self.implied = self.implied + torch.stack(implied)
        self.labelled = self.labelled + torch.stack(labelled)
        if any(name not in predictions for name in self.levels):
            return
        agree = [
            self._right(lift(self.tasks, child, parent, predictions[child]), predictions[parent])
            for child, parent in self.edges
        ]
        consistent = torch.stack(agree).all(dim=0)
        complete = torch.stack([targets[n] >= 0 for n in self.levels]).all(dim=0)
        right = torch.stack([self._right(predictions[n], targets[n]) for n in self.levels]).all(dim=0)
        images = torch.ones_like(consistent)
        self.paths = self.paths + torch.stack([consistent.sum(), images.sum(), right.sum(), complete.sum()])

    @staticmethod
    def _right(prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction == target) & (target >= 0)

    def compute(self) -> dict[str, Any]:
        """`values`: the metrics that are defined."""
        values: dict[str, float] = {}
        for coarse, right, labelled in zip(self.coarse, self.implied.tolist(), self.labelled.tolist(), strict=True):
            if labelled:
                values[f"{coarse}/implied_accuracy"] = right / labelled
        consistent, images, right, complete = self.paths.tolist()
        if images:
            values["hierarchy/consistency"] = consistent / images
        if complete:
            values["hierarchy/full_path_accuracy"] = right / complete
        return {"values": values, "classes": {}}
