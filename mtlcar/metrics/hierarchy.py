"""What a predicted class says about the coarser tasks, and whether the levels agree."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from mtlcar.metrics.levels import edges, finest_below, levels
from mtlcar.metrics.severity import ancestor_paths, lca_height, severity_levels
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


def lift(tasks: TaskSet, child: str, ancestor: str, classes: Tensor) -> Tensor:
    """Classes of `child` [B] -> the classes of `ancestor` that they imply [B]; -1 stays -1."""
    table = _table(tasks, child, ancestor, classes.device)
    return torch.where(classes >= 0, table[classes.clamp(min=0)], -1)


@lru_cache(maxsize=64)
def _table(tasks: TaskSet, child: str, ancestor: str, device: torch.device) -> Tensor:
    return torch.tensor(tasks.ancestor_table(child, ancestor), device=device)


@lru_cache(maxsize=64)
def _paths(tasks: TaskSet, device: torch.device) -> Tensor:
    return torch.tensor(ancestor_paths(tasks), device=device)


class HierarchySums(Sums):
    """Agreement between the levels of the hierarchy, and how far off mistakes are, as exact counts.

    - `<coarse>/implied_accuracy`: share of the labelled images whose coarse class is the one that the finest predicted
      task below implies;
    - `hierarchy/consistency`: share of all images in which every predicted class implies the predicted parent;
    - `hierarchy/full_path_accuracy`: share of the images with a label at every level in which every level is right.
      Both are there when every level is predicted;
    - `hierarchy/mistake_severity`: mean height of the lowest common ancestor of the true and the predicted class of the
      finest task, over the images in which these differ; `hierarchy/distance`: the same over all labelled images
      (arXiv 1912.09393, section 4: "hierarchical distance of a mistake" and "average hierarchical distance of top-1").
      In levels: 1 is another model of the right make, 2 the wrong make (`severity.lca_height`).
    """

    def __init__(self, tasks: TaskSet) -> None:
        super().__init__()
        self.tasks = tasks
        self.edges = edges(tasks)
        self.coarse = [t.name for t in tasks if any(t.name == parent for _, parent in self.edges)]
        self.levels = levels(tasks)
        self.finest = next(iter(severity_levels(tasks)), None)
        sizes = {"implied": len(self.coarse), "labelled": len(self.coarse), "paths": 4, "heights": 3}
        for name, size in sizes.items():
            self.add_state(name, torch.zeros(size, dtype=torch.int64), dist_reduce_fx="sum")
        self.implied: Tensor
        self.labelled: Tensor
        self.paths: Tensor
        self.heights: Tensor

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
        if self.finest is not None and self.finest in predictions:
            self._add_heights(predictions[self.finest], targets[self.finest])
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

    def _add_heights(self, prediction: Tensor, target: Tensor) -> None:
        valid = target >= 0
        height = lca_height(_paths(self.tasks, target.device), prediction, target.clamp(min=0))
        height = torch.where(valid, height, 0)
        self.heights = self.heights + torch.stack([height.sum(), (height > 0).sum(), valid.sum()])

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
        height, mistakes, images = self.heights.tolist()
        if mistakes:
            values["hierarchy/mistake_severity"] = height / mistakes
        if images:
            values["hierarchy/distance"] = height / images
        return {"values": values, "classes": {}}
