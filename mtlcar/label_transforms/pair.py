"""The one classification and the one regression that a transform joins."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mtlcar.errors import UserError
from mtlcar.tasks import Task, TaskSet

AXIS = "axis"
"""The one task that is trained in place of the two."""


def pair(tasks: TaskSet, name: str) -> tuple[Task, Task]:
    """The classification and the regression of a set that has one of each and nothing else.

    Raises:
        UserError: another set of tasks, and how to choose.
    """
    classes, values = tasks.classification, tasks.regression
    if len(classes) == 1 and len(values) == 1:
        return classes[0], values[0]
    found = f"the classifications {', '.join(t.name for t in classes)}" if classes else "no classification"
    found += f" and the regressions {', '.join(t.name for t in values)}" if values else " and no regression"
    if not classes or not values:
        reason = "it needs both"
    elif len(values) > 1:
        reason = "each of several properties would need an axis of its own"
    else:
        reason = "an axis has room for the classes of one task"
    example = (
        f"data.levels=[{classes[-1].name},{values[0].name}]" if classes and values else "data.levels=[model,weight]"
    )
    raise UserError(
        f"label_transform={name} joins one classification and one regression into one value; {reason}. "
        f"Here are {found}. Choose one of each ({example} for the cars, data=advanced_steel), or "
        "label_transform=identity."
    )


def labelled(
    targets: Mapping[str, Tensor], task: Task, value: Task, *, every_class: bool = True
) -> tuple[Tensor, Tensor]:
    """Classes int64 [n] and values float64 [n] of the images that have both labels, on the CPU.

    Raises:
        UserError: a class without such an image, if `every_class` should have one.
    """
    classes, values = targets[task.name].long().cpu(), targets[value.name].double().cpu()
    both = (classes >= 0) & values.isfinite()
    classes, values = classes[both], values[both]
    counts = torch.bincount(classes, minlength=len(task.classes))
    empty = [name for name, n in zip(task.classes, counts.tolist(), strict=True) if not n]
    if empty and every_class:
        raise UserError(
            f"{_listed(empty)} of task {task.name!r} {'has' if len(empty) == 1 else 'have'} no training image with a "
            f"{value.name}, so nothing is known of the range of {value.name} there. Choose another split (data.split, "
            "data.split_seed), or leave the class out of the data."
        )
    return classes, values


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ("Class " if len(names) == 1 else "Classes ") + ", ".join(names[:5]) + more
