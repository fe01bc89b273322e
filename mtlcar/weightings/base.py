"""The three kinds of weighting, and how each turns the losses of a step into gradients.

| kind | what a method defines | what it costs |
|---|---|---|
| `LossWeighting` | losses [T] -> scalar | one backward |
| `GramianWeighting` | Gramian [T, T], losses [T] -> weights [T] | see `level` |
| `GradientCombiner` | Jacobian [T, P] -> gradient [P] | see `level` |

`level="representation"` takes the gradients of the bottleneck (the heads' backward once a task, then one backward
through the trunk); `level="parameters"` those of the shared parameters (T backwards through the trunk). Private
parameters get the gradient of their own task's loss; parameters above the bottleneck that several losses reach get
the plain sum at representation level and belong to the Jacobian at parameters level.

Weightings see raw losses and unscaled gradients. `Step.factor` (1 / accumulated batches x the fp16 loss scale, on
the device) multiplies only what is finished.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

from mtlcar.errors import UserError, did_you_mean
from mtlcar.tasks import TaskSet
from mtlcar.weightings.gradients import Step, bottleneck_gradients, enter, gramian, parameter_gradients

LEVELS = ("parameters", "representation")


class Weighting(nn.Module, Callback, ABC):
    """How to balance the tasks. Parameters train, buffers are checkpointed, the schedule lives in callback hooks.

    Args:
        tasks: the trained tasks, in the order of the losses [T].
        name: the method's name, for logs and tables.
        level: where gradients are taken; loss-level methods ignore it.
        weights: read by `fixed` only; the others refuse one, so that it is never silently ignored.
        normalize: rescale the weights to sum to T, to compare methods at one effective learning rate.
    """

    levels: ClassVar[tuple[str, ...]] = LEVELS
    reads_weights: ClassVar[bool] = False
    distributed: ClassVar[bool] = False
    """Whether several processes give the gradients of one process on the whole batch."""

    def __init__(
        self,
        tasks: TaskSet,
        *,
        name: str,
        level: str = "parameters",
        weights: Mapping[str, float] | None = None,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        if level not in LEVELS:
            raise UserError(
                f"weighting.level should be one of {', '.join(LEVELS)}. Found {level!r}.{did_you_mean(level, LEVELS)}"
            )
        if level not in self.levels:
            raise UserError(
                f"weighting={name} works at weighting.level={' or '.join(self.levels)} only. Found {level!r}."
            )
        if weights is not None and not self.reads_weights:
            raise UserError(
                f"weighting={name} finds its own weights and would ignore weighting.weights. "
                "Leave weighting.weights out, or choose weighting=fixed."
            )
        self.tasks = tasks
        self.name = name
        self.level = level
        self.normalize = normalize

    @property
    def state_key(self) -> str:
        return f"weighting.{self.name}"

    @property
    def needs_bottleneck(self) -> bool:
        """Whether it can only run on an architecture in which all sharing passes through one tensor."""
        return False

    @abstractmethod
    def backward(self, step: Step) -> Tensor:
        """Enter this step's gradients into `.grad`; returns the weights [T] that were applied (detached)."""

    def _normalized(self, weights: Tensor) -> Tensor:
        return weights * (len(weights) / weights.sum()) if self.normalize else weights


class LossWeighting(Weighting):
    """A function of the losses alone."""

    distributed = True

    @abstractmethod
    def forward(self, losses: Tensor) -> Tensor:
        """losses [T], raw -> the scalar objective."""

    def backward(self, step: Step) -> Tensor:
        # The objective's derivatives by the losses are the weights: taken on a leaf of T numbers, they are there for
        # the log and for `normalize`, and the network still sees one backward.
        leaf = step.losses.detach().requires_grad_()
        (self(leaf) * step.factor).backward()
        assert leaf.grad is not None
        weights = self._normalized(leaf.grad / step.factor)
        torch.autograd.backward([step.losses], [weights * step.factor])
        return weights


class GramianWeighting(Weighting):
    """A function of the Gramian of the task gradients, and of the losses."""

    @property
    def needs_bottleneck(self) -> bool:
        return self.level == "representation"

    @abstractmethod
    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Gramian [T, T] of the unscaled gradients and raw losses [T] -> weights [T], on the Gramian's device."""

    def backward(self, step: Step) -> Tensor:
        gradients = bottleneck_gradients(step) if self.level == "representation" else parameter_gradients(step)
        weights = self._normalized(self.weights(gramian(gradients.jacobian), step.losses.detach()))
        enter(step, gradients, weights.to(gradients.jacobian.dtype) @ gradients.jacobian)
        return weights


class GradientCombiner(Weighting):
    """A function of the task gradients themselves."""

    @property
    def needs_bottleneck(self) -> bool:
        return self.level == "representation"

    @abstractmethod
    def combine(self, jacobian: Tensor, losses: Tensor, features: Tensor | None) -> Tensor:
        """Jacobian [T, P], unscaled, raw losses [T], at representation level also the features [B, D]
        (P = B D) -> gradient [P]."""

    def backward(self, step: Step) -> Tensor:
        if self.level == "representation":
            gradients = bottleneck_gradients(step)
            assert step.bottleneck is not None
            features = step.bottleneck.detach().flatten(1)
        else:
            gradients, features = parameter_gradients(step), None
        combined = self.combine(gradients.jacobian, step.losses.detach(), features)
        enter(step, gradients, combined)
        return torch.full_like(step.losses.detach(), float("nan"))  # no weights [T] describe a general combination
