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
the device) multiplies only what is finished. One task alone has nothing to balance: its weight is 1.

Where a definition has no answer (zero or opposed gradients, a NaN) a method takes the way out that its docstring
states, and the step is counted in `degenerate`, which is logged and checkpointed.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
import torch.distributed as dist
from lightning.pytorch import Callback
from torch import Tensor, nn

from mtlcar.errors import UserError, did_you_mean
from mtlcar.tasks import TaskSet
from mtlcar.weightings.algebra import Geometry, geometry
from mtlcar.weightings.gradients import Step, TaskGradients, bottleneck_gradients, enter, parameter_gradients
from mtlcar.weightings.options import flag
from mtlcar.weightings.products import combine_rows, flatten, gramian

LEVELS = ("parameters", "representation")


@dataclass
class Applied:
    """What a weighting did in one step, for the log.

    Attributes:
        weights: what multiplied each task's gradient, [T], detached; None where no T numbers say it.
        gramian: of the task gradients, [T, T]; None for methods that never see them.
        apart: whether each task's gradient is of something of its own, so that angles between them mean nothing.
    """

    weights: Tensor | None
    gramian: Tensor | None = None
    apart: bool = False


class Weighting(nn.Module, Callback, ABC):
    """How to balance the tasks. Parameters train, buffers are checkpointed, the schedule lives in callback hooks.

    Args:
        tasks: the trained tasks, in the order of the losses [T].
        name: the method's name, for logs and tables; None: the class's.
        level: where gradients are taken; loss-level methods ignore it. None: the first of `levels`.
        weights: read by `fixed` only; the others refuse one, so that it is never silently ignored.
        normalize: rescale the weights to sum to T, to compare methods at one effective learning rate. Weights that
            sum to 0 or less are left as they are.

    Attributes:
        degenerate: steps so far in which the definition had no answer, int64 0-d.
        advances: whether state (averages, random draws) moves on with this call. `backward` clears it in all but the
            last micro-batch of an accumulated step, so that all of them are weighted alike.
    """

    levels: ClassVar[tuple[str, ...]] = LEVELS
    reads_weights: ClassVar[bool] = False
    constant: ClassVar[bool] = False
    """Whether the weights are the same in every step."""
    takes_representations: ClassVar[bool] = False
    """Whether representation level also works without a bottleneck, on the tasks' own representations."""
    replicated: ClassVar[tuple[str, ...]] = ()
    """Large buffers that are the same on all processes without being sent around."""

    degenerate: Tensor

    def __init__(
        self,
        tasks: TaskSet,
        *,
        name: str | None = None,
        level: str | None = None,
        weights: Mapping[str, float] | None = None,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        name = name or type(self).__name__
        level = level or self.levels[0]
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
        self.normalize = flag(name, "normalize", normalize)
        self.advances = True
        self.register_buffer("degenerate", torch.zeros((), dtype=torch.int64))

    @property
    def state_key(self) -> str:
        return f"weighting.{self.name}"

    @property
    def takes_gradients_apart(self) -> bool:
        """Whether it looks at each task's gradient, so that `level` has a meaning."""
        return False

    @property
    def needs_bottleneck(self) -> bool:
        """Whether it can only run on an architecture in which all sharing passes through one tensor."""
        return self.takes_gradients_apart and self.level == "representation"

    def backward(self, step: Step) -> Applied:
        """Enter this step's gradients into `.grad`."""
        if len(step.losses) == 1:
            _one_backward(step, torch.ones_like(step.losses))
            return Applied(torch.ones_like(step.losses))
        self.advances = step.last
        try:
            return self._backward(step)
        finally:
            self.advances = True

    @abstractmethod
    def _backward(self, step: Step) -> Applied:
        """`backward` for two tasks or more."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follow to another device, not to another dtype: an average with bfloat16's 8 bits stands still."""
        kept = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, before in kept.items():
            *path, last = name.split(".")
            owner = self.get_submodule(".".join(path))
            after = getattr(owner, last)
            if after.dtype != before.dtype and not before.is_meta:
                setattr(owner, last, before.to(after.device))
        return self

    def settle(self, weights: Tensor, ok: Tensor, instead: Tensor) -> Tensor:
        """weights [T] where `ok` (0-d bool), the documented way out [T] where not; the latter is counted."""
        self.degenerate += ~ok
        return torch.where(ok, weights, instead)

    def keep(self, buffer: Tensor, new: Tensor, ok: Tensor) -> None:
        """Move a state buffer on in place, unless this call does not advance or `ok` (0-d bool) is false: one step
        that overflowed in half precision must not spoil an average for good."""
        if self.advances:
            buffer.copy_(torch.where(ok, new.to(buffer.dtype), buffer))

    def _normalized(self, weights: Tensor) -> Tensor:
        if not self.normalize:
            return weights
        total = weights.sum()
        return weights * torch.where(total > 0, len(weights) / total, 1.0)


def _one_backward(step: Step, weights: Tensor, own: list[tuple[Tensor, Tensor]] | None = None) -> None:
    """weights [T] times the losses through the network, the weighting's own parameters and the architecture's
    regulariser in the same call, as DDP wants it."""
    roots = [step.losses, *(p for p, _ in own or ())]
    grads = [weights * step.factor, *(g * step.factor for _, g in own or ())]
    if step.extra is not None:
        roots.append(step.extra)
        grads.append(step.factor.to(step.extra.dtype))
    torch.autograd.backward(roots, grads)


class LossWeighting(Weighting):
    """A function of the losses alone."""

    @abstractmethod
    def forward(self, losses: Tensor) -> Tensor:
        """losses [T], raw -> the scalar objective."""

    def _backward(self, step: Step) -> Applied:
        # The objective's derivatives by the losses are the weights: taken on a leaf of T numbers, they are there for
        # the log and for `normalize`, and the network still sees one backward.
        leaf = whole_batch(step).requires_grad_()
        own = [p for p in self.parameters() if p.requires_grad]
        weights, *grads = torch.autograd.grad(self(leaf), [leaf, *own])
        weights = self._normalized(weights)
        _one_backward(step, weights, list(zip(own, grads, strict=True)))
        return Applied(weights)


def whole_batch(step: Step) -> Tensor:
    """The losses [T] of the whole batch, detached: under DDP the mean over the processes."""
    return mean_over_processes(step.losses.detach(), step.world)


def mean_over_processes(losses: Tensor, world: int) -> Tensor:
    """A copy of the losses [T], under DDP their mean over the `world` processes."""
    losses = losses.clone()
    if world > 1:
        dist.all_reduce(losses)
        losses /= world
    return losses


class GramianWeighting(Weighting):
    """A function of the Gramian of the task gradients, and of the losses."""

    @property
    def takes_gradients_apart(self) -> bool:
        return len(self.tasks) > 1

    @abstractmethod
    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Gramian [T, T] of the unscaled gradients and raw losses [T] -> weights [T], on the Gramian's device."""

    def _backward(self, step: Step) -> Applied:
        gradients = task_gradients(self.level, step)
        found = whole_gramian(self.level, step, gradients)
        with torch.no_grad():
            weights = self._normalized(self.weights(found, whole_batch(step)).float())
        enter(step, gradients, combine_rows(gradients.rows, weights * (step.factor / step.scale)))
        return Applied(weights, found)


class SolvedWeighting(GramianWeighting):
    """A `GramianWeighting` that works in float64 on norms and cosines, and has one way out.

    A Gramian or loss that is not finite gives equal weights with the sum `total`, and no state moves on: in half
    precision the optimiser skips such a step.
    """

    total: ClassVar[str] = "T"
    """What the weights sum to where nothing conflicts: `1` or `T`."""

    @abstractmethod
    def solve(self, geometry: Geometry, losses: Tensor) -> tuple[Tensor, Tensor | None]:
        """Norms, cosines and losses float64 [T] -> weights float64 [T], and a 0-d bool that is false where the
        definition had no answer and the weights are the way out (None: it always has one)."""

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        """Gramian [T, T], losses [T] -> weights [T] in the Gramian's type, on its device."""
        g = geometry(gramian, losses)
        solved, ok = self.solve(g, losses.to(g.norms.dtype))
        self.degenerate += ~(g.finite if ok is None else g.finite & ok)
        equal = 1.0 if self.total == "T" else 1.0 / len(losses)
        return torch.where(g.finite, solved, equal).to(gramian.dtype)


class GradientCombiner(Weighting):
    """A function of the task gradients themselves."""

    applied: Tensor | None = None
    """What `combine` last multiplied each task's gradient with, [T], where T numbers say it; for the log."""

    @property
    def takes_gradients_apart(self) -> bool:
        return len(self.tasks) > 1

    @abstractmethod
    def combine(self, jacobian: Tensor, losses: Tensor, features: Tensor | None) -> Tensor:
        """Jacobian [T, P], unscaled, raw losses [T], at representation level also the features [B, D]
        (P = B D; the tasks' own representations one after the other, [T B, D]) -> gradient [P]."""

    def _backward(self, step: Step) -> Applied:
        gradients = task_gradients(self.level, step)
        found = whole_gramian(self.level, step, gradients)
        features = None
        if self.level == "representation":
            features = torch.cat([z.detach().flatten(1) for z in step.bottleneck]).float()
        with torch.no_grad(), torch.autocast(found.device.type, enabled=False):
            jacobian = flatten(gradients.rows, step.scale)
            combined = self.combine(jacobian, whole_batch(step), features).mul_(step.factor)
            del jacobian
        sizes = [t.numel() for t in gradients.targets]
        parts = [v.view(t.shape) for v, t in zip(combined.split(sizes), gradients.targets, strict=True)]
        enter(step, gradients, parts)
        # Representations of the tasks' own: no task has a gradient in another's, which is no harmony.
        return Applied(self.applied, found, apart=self.level == "representation" and len(step.bottleneck) > 1)


def task_gradients(level: str, step: Step) -> TaskGradients:
    return bottleneck_gradients(step) if level == "representation" else parameter_gradients(step)


def whole_gramian(level: str, step: Step, gradients: TaskGradients) -> Tensor:
    """The Gramian [T, T] float32 of the whole batch's gradients. Parameter gradients are averaged already; those of the
    bottleneck lie on different processes, sample by sample, each `world` times too long."""
    found = gramian(gradients.rows, step.scale)
    if step.world > 1 and level == "representation":
        dist.all_reduce(found)
        found /= step.world**2
    return found
