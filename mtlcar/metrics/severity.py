"""How far a wrong class is from the right one in the hierarchy (Bertinetto et al. 2020, arXiv 1912.09393)."""

import torch
from torch import Tensor

from mtlcar.tasks import TaskSet


def severity_levels(tasks: TaskSet) -> tuple[str, ...]:
    """The finest class task and the coarser ones above it, nearest first; empty where it has none."""
    finest = tasks.finest()
    above = tasks.ancestors(finest.name)
    return (finest.name, *above) if above else ()


def ancestor_paths(tasks: TaskSet) -> list[tuple[int, ...]]:
    """One table a level of `severity_levels`: for each class of the finest task the class that it implies there."""
    names = severity_levels(tasks)
    return [tasks.ancestor_table(names[0], name) for name in names]


def lca_height(paths: Tensor, prediction: Tensor, target: Tensor) -> Tensor:
    """Height of the lowest common ancestor of two classes of the finest task, int64 [B]: the levels at which they
    differ, since classes that agree at a level agree above it.

    0 for the same class, 1 for another class of the same parent, and with all parents different the number of levels,
    which is the height of the root above all classes. A missing prediction (-1) is as far as can be.

    Args:
        paths: `ancestor_paths` as int64 [levels, C].
        prediction, target: class indices [B]; the target is in range.
    """
    differ = paths[:, prediction.clamp(min=0)] != paths[:, target]
    return torch.where(prediction >= 0, differ.sum(dim=0), len(paths))
