"""What transforms with constants for every class have in common."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mtlcar.errors import UserError
from mtlcar.options import number
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


def check_constants(given: object, task: Task, keys: Sequence[str], classes: int) -> Tensor:
    """The rows `given[task][key]`, a finite number for each class: float64 [keys, classes]. Of a `std` each is above 0.

    Raises:
        UserError: they are not there, of another length, or no such numbers.
    """
    where = f"label_transform.constants.{task.name}"
    own = given.get(task.name) if isinstance(given, Mapping) else None
    rows = []
    for key in keys:
        row = own.get(key) if isinstance(own, Mapping) else None
        if not isinstance(row, Sequence) or isinstance(row, str) or len(row) != classes:
            raise UserError(
                f"label_transform.constants should give {' and '.join(keys)} of {task.name} for each of {classes} "
                f"classes, as an earlier run wrote them. Found {given!r}."
            )
        rows.append([number(f"{where}.{key}", x, above=0 if key == "std" else None) for x in row])
    return torch.tensor(rows, dtype=torch.float64, device="cpu")  # also while networks are checked on the meta device
