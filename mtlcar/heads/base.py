"""One task's layers above what the tasks share."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Literal, Protocol

from torch import Tensor, nn

from mtlcar.heads.float32 import Float32Linear
from mtlcar.options import number
from mtlcar.tasks import Task


class Head(nn.Module, ABC):
    """Features -> logits or value, in three steps that an architecture may take one by one:

        h = head.hidden(head.input_dropout(x), extra);  logits = head.output(h)

    Attributes:
        takes: "vector": the pooled representation [B, D]; "map": the last feature map [B, D, H, W].
        input_dropout: dropout on what the head takes, or Identity; apart, so that tasks can share one mask.
        output: the last layer, for a regression a `Float32Linear` (`head_of`).
        has_hidden: whether layers of its own lie below `output`.
    """

    takes: ClassVar[Literal["vector", "map"]]
    has_hidden: ClassVar[bool]
    input_dropout: nn.Module
    output: nn.Linear

    @abstractmethod
    def hidden(self, x: Tensor, extra: Tensor | None = None) -> Tensor:
        """Features after `input_dropout`, and what is concatenated to the vector [B, E] -> what `output` takes."""

    def forward(self, x: Tensor, extra: Tensor | None = None) -> Tensor:
        """[B, D] or [B, D, H, W], and [B, E] -> [B, out_features]."""
        return self.output(self.hidden(self.input_dropout(x), extra))


class HeadFactory(Protocol):
    """Makes the head of a task.

    Args:
        extra_features: the width E of `extra`.
        outputs: how many numbers it gives; None: as many as the task has.
    """

    def __call__(self, task: Task, in_features: int, extra_features: int = 0, outputs: int | None = None) -> Head: ...


class SameKind:
    """A `HeadFactory` of one kind of head for all tasks.

    Args:
        make: (in_features, out_features, extra_features=...) -> head; a yaml of the group `head` with `_partial_`.
    """

    def __init__(self, make: Callable[..., Head]) -> None:
        self.make = make

    def __call__(self, task: Task, in_features: int, extra_features: int = 0, outputs: int | None = None) -> Head:
        return head_of(task, self.make, in_features, extra_features, outputs)


def head_of(
    task: Task, make: Callable[..., Head], in_features: int, extra_features: int = 0, outputs: int | None = None
) -> Head:
    """What `make` gives, with a last layer that suits the task: a regression's computes in float32 also under autocast.

    Args: as of `SameKind` and `HeadFactory`.
    """
    head = make(in_features, task.outputs if outputs is None else outputs, extra_features=extra_features)
    if task.kind == "regression":
        head.output = Float32Linear.around(head.output)
    return head


def checked_dropout(p: float) -> float:
    """UserError unless 0 <= p < 1."""
    return number("head.dropout", p, least=0, below=1)


def fully_connected(inputs: int, outputs: int, dropout: float) -> list[nn.Module]:
    """Linear, BatchNorm1d, ReLU, dropout. BatchNorm makes a bias of the linear layer idle."""
    return [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU(), nn.Dropout(dropout)]
