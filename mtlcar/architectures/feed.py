"""What a cascade's parent head hands on, and how a child head takes it in."""

from typing import Literal

import torch
from torch import Tensor, nn

from mtlcar.heads.base import Head
from mtlcar.tasks import Task

Feed = Literal["logits", "softmax", "hidden", "label"]
Combine = Literal["concat", "add", "gate", "select"]


def fed_width(task: Task, head: Head, feed: Feed) -> int:
    """Width of what `task` hands on."""
    return head.output.in_features if feed == "hidden" else task.outputs


def fed_value(
    task: Task, feed: Feed, hidden: Tensor, raw: Tensor, label: Tensor | None, *, one_class: bool = False
) -> Tensor:
    """What `task` hands on, [B, fed_width].

    Args:
        hidden: [B, H], what the head's last layer took.
        raw: [B, outputs], what it gave.
        label: class indices [B], -1 where missing, for feed=label in training; else None.
        one_class: whether feed=label hands on the one-hot predicted class in place of probabilities.

    A regression has no softmax: its value is handed on as it is. feed=label gives the one-hot label, and the
    predicted probabilities (cut from the graph) or the one-hot predicted class where there is none.
    """
    if feed == "hidden":
        return hidden
    if feed == "logits" or task.kind == "regression":
        return raw
    probabilities = raw.softmax(1, dtype=torch.promote_types(raw.dtype, torch.float32))
    if feed == "softmax":
        return probabilities
    predicted = probabilities.detach()
    if one_class:
        predicted = torch.zeros_like(predicted).scatter(1, raw.argmax(1, keepdim=True), 1.0)
    if label is None:
        return predicted
    one_hot = nn.functional.one_hot(label.clamp(min=0), task.outputs).to(predicted.dtype)
    return torch.where((label >= 0)[:, None], one_hot, predicted)


class Join(nn.Module):
    """Child features x and what its parents hand on, p [B, P] -> (features, what is concatenated to the vector); a task
    without parents has p = None and combine=concat.

    - concat: (x, p); the raw values next to the features, as in arXiv 2603.01746
    - add: (x + A p, None)
    - gate: (2 sigmoid(A p) x, None), one factor in 0..2 per feature (as squeeze-and-excitation, arXiv 1709.01507)
    - select: (x, None); p chooses among the P outputs of the child's head instead, see `read`

    x is a vector [B, D] or a map [B, D, H, W] (then A p is the same at every position).

    Attributes:
        extra_features: width that the child's head has to take in besides x.
        outputs: outputs that the child's head has to have; None: those of its task.
    """

    def __init__(self, combine: Combine, features: int, width: int) -> None:
        super().__init__()
        self.combine = combine
        self.extra_features = width if combine == "concat" else 0
        self.outputs = width if combine == "select" else None
        self.projection = nn.Linear(width, features) if combine in ("add", "gate") else None

    def forward(self, x: Tensor, p: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.projection is None:
            return x, (p if self.combine == "concat" else None)
        a = self.projection(p)
        a = a if x.ndim == 2 else a[:, :, None, None]
        return (x + a if self.combine == "add" else 2 * a.sigmoid() * x), None

    def read(self, raw: Tensor, p: Tensor | None) -> Tensor:
        """What the child's head gives, [B, outputs], -> what it says. select: sum_c p_c raw_c, [B, 1]."""
        if self.combine != "select":
            return raw
        assert p is not None
        return (raw * p).sum(1, keepdim=True)
