"""What a cascade's parent head hands on, and how a child head takes it in."""

from typing import Literal

import torch
from torch import Tensor, nn

from mtlcar.heads.base import Head
from mtlcar.tasks import Task

Feed = Literal["logits", "softmax", "hidden", "label"]
Combine = Literal["concat", "add", "gate"]


def fed_width(task: Task, head: Head, feed: Feed) -> int:
    """Width of what `task` hands on."""
    return head.output.in_features if feed == "hidden" else task.outputs


def fed_value(task: Task, feed: Feed, hidden: Tensor, raw: Tensor, label: Tensor | None) -> Tensor:
    """What `task` hands on, [B, fed_width].

    Args:
        hidden: [B, H], what the head's last layer took.
        raw: [B, outputs], what it gave.
        label: class indices [B], -1 where missing, for feed=label in training; else None.

    A regression has no softmax: its value is handed on as it is. feed=label gives the one-hot label, and the
    predicted probabilities (cut from the graph) where there is none.
    """
    if feed == "hidden":
        return hidden
    if feed == "logits" or task.kind == "regression":
        return raw
    probabilities = raw.softmax(1)
    if feed == "softmax":
        return probabilities
    probabilities = probabilities.detach()
    if label is None:
        return probabilities
    one_hot = nn.functional.one_hot(label.clamp(min=0), task.outputs).to(probabilities.dtype)
    return torch.where((label >= 0)[:, None], one_hot, probabilities)


class Join(nn.Module):
    """Child features x and what its parents hand on, p [B, P] -> (features, what is concatenated to the vector).

    - concat: (x, p); the raw values next to the features, as in arXiv 2603.01746
    - add: (x + A p, None)
    - gate: (2 sigmoid(A p) x, None), one factor in 0..2 per feature (as squeeze-and-excitation, arXiv 1709.01507)

    x is a vector [B, D] or a map [B, D, H, W] (then A p is the same at every position).
    """

    def __init__(self, combine: Combine, features: int, width: int) -> None:
        super().__init__()
        self.combine = combine
        self.extra_features = width if combine == "concat" else 0
        self.projection = None if combine == "concat" else nn.Linear(width, features)

    def forward(self, x: Tensor, p: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.projection is None:
            return x, p
        a = self.projection(p)
        a = a if x.ndim == 2 else a[:, :, None, None]
        return (x + a if self.combine == "add" else 2 * a.sigmoid() * x), None
