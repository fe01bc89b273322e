"""Averages of the task gradients over the steps: the state that MoCo and DB-MTL share."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from mtlcar.errors import UserError
from mtlcar.tasks import TaskSet
from mtlcar.weightings.algebra import wide
from mtlcar.weightings.base import Applied, GradientCombiner, whole_batch
from mtlcar.weightings.gradients import Step, enter, parameter_gradients
from mtlcar.weightings.products import add_scaled, gramian, move_towards


class TrackedGradients(GradientCombiner):
    """Y <- Y + rate(k) (J - Y), one float32 row of all shared parameters a task, k = 1, 2, ... counting the calls.

    Memory: Y is T x P floats for as long as training runs, on the device and in every checkpoint (200 MB for two tasks
    and the 25 million parameters of a ResNet-50). It is updated in place, tensor by tensor in the layout of the
    parameters; the gradients are gone before their combination is made: nothing else of that size is there at any time.

    Every micro-batch of an accumulated step moves Y and k on: they are an average over batches anyway.

    Under the fp16 scaler, and in `combine`, a gradient or loss that is not finite leaves Y and k as they are and is
    counted; the combined gradient is then NaN, so that the scaler sees the overflow and skips the step. Without a
    scaler nothing skips a step: a NaN reaches the parameters, and the next loss stops the run.

    Attributes:
        tracked: Y [T, P]; None before the first call, because P is not known earlier.
        steps: k of the last call that moved Y, int64 0-d.
    """

    replicated = ("tracked",)
    levels: ClassVar[tuple[str, ...]] = ("parameters",)
    tracked: Tensor | None
    steps: Tensor

    def __init__(
        self,
        tasks: TaskSet,
        **common: Any,
    ) -> None:
        super().__init__(tasks, **common)
        self.register_buffer("tracked", None)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    @abstractmethod
    def rate(self, k: Tensor) -> Tensor:
        """Share of the new gradients in call k (0-d, `wide`), 0-d."""

    @abstractmethod
    def factors(self, gramian: Tensor, losses: Tensor, finite: Tensor) -> Tensor:
        """Y Y^T float32 [T, T], losses [T], whether the input was finite -> what multiplies each Y_t, float32 [T]."""

    def divisors(self, losses: Tensor) -> Tensor | None:
        """losses [T] -> what the gradients are divided by before they are averaged, [T], or None."""
        return None

    def combine(self, jacobian: Tensor, losses: Tensor, features: Tensor | None) -> Tensor:
        divisors = self.divisors(losses)
        if divisors is not None:
            jacobian = jacobian / divisors[:, None]
        rows = [[row] for row in jacobian.contiguous().unbind()]
        one = torch.ones((), device=jacobian.device)
        (found,), _ = self._combine(rows, rows[0], losses, None, one, guarded=True)
        return found

    def _backward(self, step: Step) -> Applied:
        losses = whole_batch(step)
        gradients = parameter_gradients(step, self.divisors(losses))
        with torch.no_grad(), torch.autocast(step.losses.device.type, enabled=False):
            scale = step.scale if step.guarded else None
            rows = [[g.float() for g in row] for row in gradients.rows]
            gradients.rows.clear()
            combined, found = self._combine(rows, step.shared, losses, scale, step.factor, guarded=step.guarded)
        enter(step, gradients, combined)
        return Applied(self.applied, found)

    def _combine(
        self,
        rows: list[list[Tensor]],
        targets: Sequence[Tensor],
        losses: Tensor,
        scale: Tensor | None,
        factor: Tensor,
        *,
        guarded: bool,
    ) -> tuple[list[Tensor], Tensor]:
        """T rows of gradients, divided by `divisors` and times `scale`, which are used up -> factor x sum_t a_t Y_t,
        and Y Y^T."""
        finite = torch.isfinite(losses.sum())
        if guarded:
            finite &= torch.isfinite(gramian(rows).sum())
            for row in rows:
                for g in row:  # a rate of 0 alone would not do: 0 x NaN is NaN
                    g.nan_to_num_(0.0, 0.0, 0.0)
        tracked = self._like(targets)
        rate = torch.where(finite, self.rate(wide(self.steps + 1)), 0.0)
        for mine, new in zip(tracked, rows, strict=True):
            move_towards(mine, new, rate.float(), scale)
            new.clear()  # their memory is the result's
        self.steps += finite
        found = gramian(tracked)
        self.applied = self.factors(found, losses, finite)
        first, *others = torch.where(finite, self.applied * factor, torch.nan).float().unbind()
        total = list(torch._foreach_mul(tracked[0], first))
        for mine, a in zip(tracked[1:], others, strict=True):
            add_scaled(total, mine, a, spare=False)
        return total, found

    def _like(self, targets: Sequence[Tensor]) -> list[list[Tensor]]:
        """Y as T rows of views, each in the shape and memory layout of its parameter: that stays, while a kernel may
        give its gradient in another layout any time."""
        sizes = [p.numel() for p in targets]
        if self.tracked is None:
            self.tracked = torch.zeros(len(self.tasks), sum(sizes), device=targets[0].device)
        if self.tracked.shape != (len(self.tasks), sum(sizes)):
            raise UserError(
                f"weighting={self.name} has followed the gradients of {self.tracked.shape[1]} shared parameters, and "
                f"now there are {sum(sizes)}. Keep the set of trainable shared parameters during a run."
            )
        return [
            [_view_like(part, p) for part, p in zip(y.split(sizes), targets, strict=True)]
            for y in self.tracked.unbind()
        ]

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        # A buffer that is not there yet would be an unexpected key, one that is there too early a missing one.
        given = state_dict.get(f"{prefix}tracked")
        self.tracked = None if given is None else torch.empty_like(given, dtype=torch.float32, device=self.steps.device)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _view_like(part: Tensor, p: Tensor) -> Tensor:
    """A vector [p.numel()] in the shape of p, and in its layout if that is one of the two dense ones."""
    if p.ndim == 4 and p.is_contiguous(memory_format=torch.channels_last):
        n, c, h, w = p.shape
        return part.view(n, h, w, c).permute(0, 3, 1, 2)
    return part.view(p.shape)
