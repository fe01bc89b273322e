"""What transforms with constants for every class have in common."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mtlcar.errors import UserError
from mtlcar.tasks import Task, TaskSet


def finest_class(tasks: TaskSet, name: str) -> Task:
    """The finest classification of a set that has a regression too.

    Raises:
        UserError: a set without one of both.
    """
    if not tasks.classification or not tasks.regression:
        raise UserError(
            f"label_transform={name} reads values off the class: it needs a classification and a regression. Here "
            f"are only {', '.join(tasks.names)}. Choose data.levels=[model,weight] of the cars, advanced_steel, or "
            "label_transform=identity."
        )
    return tasks.finest()


def check_constants(given: Mapping[str, Any], task: Task, keys: Sequence[str], classes: int) -> Tensor:
    """The rows `given[task][key]`, a number for each class: float64 [keys, classes].

    Raises:
        UserError: they are not there, or of another length.
    """
    try:
        rows = [[float(x) for x in given[task.name][key]] for key in keys]
    except (KeyError, TypeError, ValueError) as error:
        rows = []
        reason = f"{type(error).__name__}: {error}"
    else:
        reason = f"rows of {', '.join(str(len(row)) for row in rows)} numbers"
    if not rows or any(len(row) != classes for row in rows):
        raise UserError(
            f"label_transform.constants should give {' and '.join(keys)} of {task.name} for {classes} classes, as an "
            f"earlier run wrote them. Found {reason}."
        )
    return torch.tensor(rows, dtype=torch.float64)
