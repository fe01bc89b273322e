"""What an architecture promises: how the tasks share, and exactly which parameters they share."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from mtlcar.backbones.base import StagedBackbone
from mtlcar.tasks import TaskSet


@dataclass
class Shared:
    """One forward pass.

    Attributes:
        outputs: task -> logits [B, classes] or standardised value [B].
        bottleneck: the one tensor [B, ...] through which all sharing passes, or None where there is none.
        extra_loss: None or a scalar the architecture adds to the objective (an entropy term of a gate, say).
    """

    outputs: dict[str, Tensor]
    bottleneck: Tensor | None = None
    extra_loss: Tensor | None = None


class Architecture(nn.Module, ABC):
    """Image -> what each task's head says.

    Attributes:
        tasks: the tasks it trains, in order: the losses [T] have this order.
        backbone: its trunk; where there is a bottleneck, that is what the trunk gives.
        has_bottleneck: whether all sharing passes through one tensor.
    """

    tasks: TaskSet
    backbone: StagedBackbone
    has_bottleneck: bool = False

    @abstractmethod
    def forward(self, image: Tensor, targets: dict[str, Tensor] | None = None) -> Shared:
        """image float [B, 3, H, W], normalised; `targets` only for teacher forcing in training."""

    @abstractmethod
    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that the losses of at least two tasks reach, frozen ones left out."""
