"""Per-task gradients of one step, and how a combination of them enters `.grad`.

The T gradients stay the tensors that autograd made: nothing is copied into one long vector (see `products`), and the
result takes the place of the first gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mtlcar.weightings.products import average_over_processes


@dataclass
class Step:
    """What one optimisation step offers a weighting.

    Attributes:
        losses: raw losses float32 [T], with their graph. In distributed training they are this process's share: their
            mean over the processes is the loss of the whole batch.
        factor: 0-d, on the device: 1 / accumulated batches x fp16 loss scale.
        scale: 0-d, on the device: the fp16 loss scale alone (1 otherwise).
        shared: trainable parameters that several losses reach.
        private: the other trainable parameters of the architecture.
        above: trainable parameters between the bottleneck and the losses.
        bottleneck: the one tensor [B, ...] through which all sharing passes; where there is none, the tasks' own
            representations, T tensors [B, ...], or nothing.
        extra: None or a scalar regulariser of the architecture, no part of what is balanced.
        world: processes that share the batch.
        last: whether the optimiser steps after this micro-batch.
        guarded: whether an fp16 scaler is at work: gradients may then overflow, and the optimiser skips such a step.
    """

    losses: Tensor
    factor: Tensor
    scale: Tensor
    shared: Sequence[nn.Parameter]
    private: Sequence[nn.Parameter]
    above: Sequence[nn.Parameter]
    bottleneck: Sequence[Tensor] = ()
    extra: Tensor | None = None
    world: int = 1
    last: bool = True
    guarded: bool = False


@dataclass
class TaskGradients:
    """The gradients to combine, one row of tensors a task, still multiplied by `Step.scale`, of `targets`; those of
    `rest` are summed over the tasks."""

    rows: list[list[Tensor]]
    targets: Sequence[Tensor]
    rest: Sequence[Tensor]
    rest_gradients: list[Tensor | None]


def _per_task(
    step: Step, targets: Sequence[Tensor], rest: Sequence[Tensor], divisors: Tensor | None = None
) -> TaskGradients:
    """One backward a task down to `targets` and `rest`, losses multiplied by the fp16 scale so that half-precision
    gradients do not underflow; it is taken out of the Gramian and of the combination's coefficients, never by another
    pass over the gradients."""
    rows: list[list[Tensor]] = []
    summed: list[Tensor | None] = [None] * len(rest)
    wanted = [*targets, *rest]
    last = len(step.losses) - 1
    seeds = step.scale.to(step.losses.dtype).expand(last + 1) if divisors is None else step.scale / divisors
    for t, loss in enumerate(step.losses.unbind()):
        # The last pass may free what it walks: at representation level that is the heads' graph, not the trunk's.
        keep = t < last or step.extra is not None
        grads = torch.autograd.grad(loss, wanted, seeds[t], retain_graph=keep, allow_unused=True)
        if targets and all(g is None for g in grads[: len(targets)]):
            raise RuntimeError(
                f"The loss of task {t} does not depend on what the tasks share: the bottleneck or the shared "
                "parameters that the architecture states are not on its path."
            )
        rows.append(_own_memory(targets, grads[: len(targets)]))
        for i, g in enumerate(grads[len(targets) :]):
            if g is not None:
                if divisors is not None:
                    g = g * divisors[t].to(g.dtype)
                before = summed[i]
                summed[i] = g if before is None else before + g
    return TaskGradients(rows, targets, rest, summed)


def _own_memory(targets: Sequence[Tensor], grads: Sequence[Tensor | None]) -> list[Tensor]:
    """Gradients that may be changed in place: autograd leaves out zeros, gives a sum's as one number many times, and
    those of p and q in p + q as one tensor."""
    found: list[Tensor] = []
    seen: set[int] = set()
    for p, g in zip(targets, grads, strict=True):
        if g is None:
            g = torch.zeros_like(p)
        elif 0 in g.stride():
            g = g.contiguous()
        elif id(g) in seen:
            g = g.clone()
        seen.add(id(g))
        found.append(g)
    return found


def bottleneck_gradients(step: Step) -> TaskGradients:
    """Gradients of the bottleneck: the heads' backward, once a task; the trunk is not touched."""
    assert step.bottleneck, "representation level needs a bottleneck; checked before training"
    gradients = _per_task(step, step.bottleneck, step.above)
    gradients.rows = [[g.float() for g in row] for row in gradients.rows]  # weights need more than bfloat16's 8 bits
    return gradients


def parameter_gradients(step: Step, divisors: Tensor | None = None) -> TaskGradients:
    """Gradients of the shared parameters: T backwards through the trunk, private gradients on the way. Under DDP
    averaged over the processes.

    Args:
        divisors: [T], what the rows are to be divided by: done where the backward begins, without another pass over
            the gradients; private ones are multiplied back.
    """
    gradients = _per_task(step, step.shared, step.private, divisors)
    if step.world > 1:
        for row in gradients.rows:
            average_over_processes(row, step.world)
    return gradients


class _Enter(torch.autograd.Function):
    """A node whose gradients are those in `box`, whatever comes from above. Handed over like this, autograd takes them
    as they are; given to `torch.autograd.backward` they would be copied, because the caller still holds them."""

    @staticmethod
    def forward(ctx: Any, box: list[Tensor], *tensors: Tensor) -> Tensor:
        ctx.box = box
        return torch.zeros((), device=tensors[0].device)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor | None, ...]:
        box, ctx.box = ctx.box, []
        found = (None, *box)
        box.clear()
        return found


def enter(step: Step, gradients: TaskGradients, combined: list[Tensor]) -> None:
    """`combined`, one tensor a target and finished, becomes the gradient of the targets, the summed rest that of the
    rest; `combined` is used up.

    Through autograd and never `p.grad =`, which DDP ignores without a word; from a bottleneck this is the one
    backward through the trunk. The architecture's regulariser goes along: DDP wants one backward a step. A tensor hook
    that somebody registered on a parameter sees its gradient twice: a task's alone, and the combination.
    """
    tensors: list[Tensor] = list(gradients.targets)
    pairs = [(p, g) for p, g in zip(gradients.rest, gradients.rest_gradients, strict=True) if g is not None]
    rest = [g for _, g in pairs]
    if rest:  # the rest already carries the scale
        with torch.no_grad():
            torch._foreach_mul_(rest, (step.factor / step.scale).to(rest[0].dtype))
    tensors += [p for p, _ in pairs]
    box = [g.to(t.dtype) for t, g in zip(gradients.targets, combined, strict=True)] + rest
    combined.clear()
    pairs.clear()
    rest.clear()
    gradients.rest_gradients = []
    roots = [] if not tensors else [_Enter.apply(box, *tensors)]
    if step.extra is not None:
        roots.append(step.extra * step.factor)
    if roots:
        torch.autograd.backward(roots)
