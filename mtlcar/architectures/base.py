"""What an architecture promises: how the tasks share, and exactly which parameters they share."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

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
        representations: where there is no bottleneck, what each head takes, T tensors of one shape [B, ...]; empty
            where heads take different things.
    """

    outputs: dict[str, Tensor]
    bottleneck: Tensor | None = None
    extra_loss: Tensor | None = None
    representations: tuple[Tensor, ...] = ()


class Architecture(nn.Module, ABC):
    """Image -> what each task's head says.

    Attributes:
        name: the method's name, for messages and tables.
        tasks: the tasks it trains, in order: the losses [T] have this order.
        backbone: its trunk, or the first of them; where there is a bottleneck, that is what the trunk gives.
        heads: a head a task, in order. A list and not a dict: ModuleDict refuses names that nn.Module has itself,
            `type` among them.
        has_bottleneck: whether all sharing passes through one tensor.
        has_representations: whether a forward pass gives `Shared.representations`.
        can_be_averaged: whether the mean of its outputs for one image in several positions is an answer too: not where
            a value is relative to a predicted class, which may be another in each position.
    """

    name: str
    tasks: TaskSet
    backbone: StagedBackbone
    heads: nn.ModuleList
    has_bottleneck: bool = False
    has_representations: bool = False
    can_be_averaged: bool = True

    @abstractmethod
    def forward(self, image: Tensor, targets: dict[str, Tensor] | None = None) -> Shared:
        """image float [B, 3, H, W], normalised; `targets` only for teacher forcing in training."""

    @abstractmethod
    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that the losses of at least two tasks reach, frozen ones left out."""

    @abstractmethod
    def above_bottleneck(self) -> Iterator[nn.Parameter]:
        """The trainable parameters between the losses and `Shared.bottleneck`, or `Shared.representations`."""

    def compiled_parts(self) -> Iterator[nn.Module]:
        """What `trainer.compile` compiles: modules that lie wholly below the bottleneck and the heads, each called as a
        whole."""
        yield self.backbone

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Called before epoch `epoch` of 0..epochs-1, for what follows a schedule."""

    def findings(self) -> dict[str, Any]:
        """What training has found out about sharing, for metrics.json: JSON values, empty where nothing is searched."""
        return {}

    def pruned(self) -> "Architecture":
        """The same network without what evaluation does not use, for export; `self` where everything is used."""
        return self
