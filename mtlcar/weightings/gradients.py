"""Per-task gradients of one step, their Gramian, and how a combination of them enters `.grad`."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Step:
    """What one optimisation step offers a weighting.

    Attributes:
        losses: raw losses float32 [T], with their graph.
        factor: 0-d, on the device: 1 / accumulated batches x fp16 loss scale.
        scale: 0-d, on the device: the fp16 loss scale alone (1 otherwise).
        shared: trainable parameters that several losses reach.
        private: the other trainable parameters of the architecture.
        above: trainable parameters between the bottleneck and the losses.
        bottleneck: the tensor [B, ...] through which all sharing passes, or None.
        extra: None or a scalar regulariser of the architecture, no part of what is balanced.
    """

    losses: Tensor
    factor: Tensor
    scale: Tensor
    shared: Sequence[nn.Parameter]
    private: Sequence[nn.Parameter]
    above: Sequence[nn.Parameter]
    bottleneck: Tensor | None = None
    extra: Tensor | None = None


@dataclass
class TaskGradients:
    """The gradients [T, P] to combine, float32 and unscaled, of `targets`; the rest is summed and still scaled."""

    jacobian: Tensor
    targets: Sequence[Tensor]
    rest: Sequence[Tensor]
    rest_gradients: list[Tensor | None]


def _per_task(step: Step, targets: Sequence[Tensor], rest: Sequence[Tensor]) -> TaskGradients:
    """One backward a task down to `targets` and `rest`, losses multiplied by the fp16 scale so that half-precision
    gradients do not underflow, and the scale taken out again in float32."""
    rows: list[Tensor] = []
    summed: list[Tensor | None] = [None] * len(rest)
    wanted = [*targets, *rest]
    last = len(step.losses) - 1
    for t, loss in enumerate(step.losses.unbind()):
        # The last pass may free what it walks: at representation level that is the heads' graph, not the trunk's.
        grads = torch.autograd.grad(loss, wanted, step.scale.to(loss.dtype), retain_graph=t < last, allow_unused=True)
        row = [
            (torch.zeros_like(p) if g is None else g).reshape(-1).float()
            for p, g in zip(targets, grads[: len(targets)], strict=True)
        ]
        rows.append(torch.cat(row) / step.scale if row else step.losses.new_zeros(0))  # one task shares nothing
        for i, g in enumerate(grads[len(targets) :]):
            if g is not None:
                before = summed[i]
                summed[i] = g if before is None else before + g
    return TaskGradients(torch.stack(rows), targets, rest, summed)


def bottleneck_gradients(step: Step) -> TaskGradients:
    """Gradients of the bottleneck: the heads' backward, once a task; the trunk is not touched."""
    assert step.bottleneck is not None, "representation level needs a bottleneck; checked before training"
    return _per_task(step, [step.bottleneck], step.above)


def parameter_gradients(step: Step) -> TaskGradients:
    """Gradients of the shared parameters: T backwards through the trunk, private gradients on the way."""
    return _per_task(step, step.shared, step.private)


def gramian(jacobian: Tensor) -> Tensor:
    """J [T, P] -> J J^T [T, T]; outside autocast, which would take the product in half precision."""
    with torch.autocast(jacobian.device.type, enabled=False):
        return jacobian @ jacobian.T


def enter(step: Step, gradients: TaskGradients, combined: Tensor) -> None:
    """`combined` [P] becomes the gradient of the targets, the summed rest that of the rest.

    By `torch.autograd.backward(tensors, gradients)` and never `p.grad =`, which DDP ignores without a word; from
    a bottleneck this is the one backward through the trunk.
    """
    tensors: list[Tensor] = []
    values: list[Tensor] = []
    parts = combined.split([p.numel() for p in gradients.targets]) if gradients.targets else ()
    for target, part in zip(gradients.targets, parts, strict=True):
        tensors.append(target)
        values.append((part.reshape(target.shape) * step.factor).to(target.dtype))
    undo_scale = step.factor / step.scale  # the rest already carries the scale
    for p, g in zip(gradients.rest, gradients.rest_gradients, strict=True):
        if g is not None:
            tensors.append(p)
            values.append(g * undo_scale.to(g.dtype))
    torch.autograd.backward(tensors, values)
