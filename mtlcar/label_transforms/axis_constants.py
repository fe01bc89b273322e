"""Constants of an axis that somebody gives: those of an earlier run, or their own."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mtlcar.errors import UserError
from mtlcar.label_transforms.intervals import Intervals, resolution
from mtlcar.options import number
from mtlcar.tasks import Task

KEYS = ("classes", "low", "high", "offset", "gap", "scale")


def order_of(order: object, task: Task, where: str) -> list[int]:
    """Class indices from low to high.

    Raises:
        UserError: not a list of all class names, each once.
    """
    names = list(map(str, order)) if isinstance(order, Sequence) and not isinstance(order, str) else []
    if sorted(names) != sorted(task.classes):
        raise UserError(
            f"{where} should be mean, or all {len(task.classes)} classes of task {task.name!r} from low to high: "
            f"[{', '.join(task.classes)}] in some order. Found {order!r}."
        )
    return [task.classes.index(n) for n in names]


def read_constants(given: object, task: Task) -> tuple[Intervals, float]:
    """What `FastCAR.constants` gave -> intervals and scale.

    Raises:
        UserError: a key is missing or of another kind; intervals that are not ascending, disjoint and apart.
    """
    where = "label_transform.constants"
    # On the CPU whatever the default device is: networks are checked on the meta device, which holds no numbers.
    wrong = f"{where} should be what an earlier run wrote, with {', '.join(KEYS)}"
    if not isinstance(given, Mapping) or any(key not in given for key in KEYS):
        raise UserError(f"{wrong}. Found {given!r}.")
    rank = order_of(given["classes"], task, f"{where}.classes")
    rows: dict[str, torch.Tensor] = {}
    for key in ("low", "high", "offset"):
        row: Any = given[key]
        if not isinstance(row, Sequence) or len(row) != len(rank):
            raise UserError(f"{wrong}. {where}.{key} should have {len(rank)} numbers. Found {row!r}.")
        rows[key] = torch.tensor([number(f"{where}.{key}", x) for x in row], dtype=torch.float64, device="cpu")
    gap = number(f"{where}.gap", given["gap"], above=0)
    scale = number(f"{where}.scale", given["scale"], above=0)
    low, high = rows["low"], rows["high"]
    back = torch.argsort(torch.tensor(rank, device="cpu"))
    found = Intervals(low[back], high[back], rows["offset"][back], tuple(rank), gap)
    if not ((low <= high).all() and (low[1:] - high[:-1] >= resolution(found)).all()):
        raise UserError(
            f"{where}: intervals should ascend in the order of classes, each with low <= high, at least "
            f"{resolution(found):.2g} apart. Found low {low.tolist()} and high {high.tolist()}."
        )
    return found, scale
