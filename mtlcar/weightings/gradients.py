"""Per-task gradients of one step, their Gramian, and how a combination of them enters `.grad`.

The T gradients stay the tensors that autograd made: nothing is copied into one long vector. Products run over buckets
(`buckets`), combinations over all tensors at once (foreach), and the result takes the place of the first gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

LARGE = 2**16
"""Elements from which a tensor is worth a product of its own; smaller ones are put together first."""
PIECE = 2**18
"""Elements of one product on a CPU: a piece stays in the cache while all pairs are taken, and a CPU's product of 16
million float32 numbers, added one after the other, is wrong in the fourth digit. A GPU adds in a tree."""
BUCKET = 2**22
"""Elements of small tensors put together at once: 16 MiB of float32."""


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
        bottleneck: the tensor [B, ...] through which all sharing passes; where there is none, the tasks' own
            representations one after the other along the batch, or None.
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
    bottleneck: Tensor | None = None
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
    assert step.bottleneck is not None, "representation level needs a bottleneck; checked before training"
    gradients = _per_task(step, [step.bottleneck], step.above)
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
            _average(row, step.world)
    return gradients


def _average(tensors: list[Tensor], world: int) -> None:
    """The mean over the processes, in place, a bucket at a time."""
    for bucket in buckets(tensors):
        members = [tensors[i] for i in bucket]
        flat = _flatten_dense_tensors(members)
        dist.all_reduce(flat)
        torch._foreach_copy_(members, list(_unflatten_dense_tensors(flat / world, members)))


def buckets(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Indices of the tensors by bucket: large ones alone, small ones together."""
    found: list[list[int]] = []
    small: list[int] = []
    size = 0
    for i, t in enumerate(tensors):
        n = t.numel()
        if n >= LARGE:
            found.append([i])
            continue
        if size + n > BUCKET:
            found.append(small)
            small, size = [], 0
        small.append(i)
        size += n
    return [*found, small] if small else found


def _vectors(rows: list[list[Tensor]], bucket: list[int]) -> list[Tensor]:
    """The bucket's elements as one vector [n] a task, in the same order for every task; views where they can be."""
    if len(bucket) == 1:
        found = [row[bucket[0]] for row in rows]
        first = found[0]
        if all(t.stride() == first.stride() for t in found):
            # Any dense layout will do, channels_last among them, as long as all tasks have the same.
            order = sorted(range(first.ndim), key=lambda d: first.stride(d), reverse=True)
            return [t.permute(order).reshape(-1) for t in found]
        return [t.reshape(-1) for t in found]
    return [_flatten_dense_tensors([row[i] for i in bucket]) for row in rows]


def gramian(rows: list[list[Tensor]], scale: Tensor | None = None) -> Tensor:
    """T rows of tensors -> their scalar products / scale^2, float32 [T, T].

    Outside autocast, which would take the products in half precision; parts are added in float64.
    """
    tasks = len(rows)
    pairs = [(i, j) for i in range(tasks) for j in range(i, tasks)]
    device = rows[0][0].device if rows[0] else torch.device("cpu")
    wide = torch.float32 if device.type == "mps" else torch.float64
    products = []
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        for bucket in buckets(rows[0]):
            vectors = [x if x.dtype == torch.float64 else x.float() for x in _vectors(rows, bucket)]
            for v in zip(*(x.split(PIECE) for x in vectors), strict=True) if device.type == "cpu" else [vectors]:
                products += [v[i].dot(v[j]) for i, j in pairs]
        if not products:
            return torch.zeros(tasks, tasks, device=device)
        total = torch.stack(products).view(-1, len(pairs)).to(wide).sum(0)
        if scale is not None:
            total /= scale.to(wide).square()
        entry = dict(zip(pairs, total.unbind(), strict=True))
        flat = [entry[min(i, j), max(i, j)] for i in range(tasks) for j in range(tasks)]
        return torch.stack(flat).view(tasks, tasks).float()


def combine_rows(rows: list[list[Tensor]], coefficients: Tensor) -> list[Tensor]:
    """sum_t c_t g_t in the place of the first row; the rows are used up.

    Args:
        rows: T rows of tensors.
        coefficients: [T] on their device.
    """
    if not rows[0]:
        return []
    with torch.no_grad():
        total = rows[0]
        each = coefficients.to(total[0].dtype).unbind()
        # A GPU takes all at once; a CPU finds a bucket still in its cache the second time.
        for bucket in buckets(total) if total[0].device.type == "cpu" else [list(range(len(total)))]:
            part, *others = ([row[i] for i in bucket] for row in rows)
            torch._foreach_mul_(part, each[0])
            for c, other in zip(each[1:], others, strict=True):
                add_scaled(part, other, c, spare=True)
        rows.clear()
    return total


def add_scaled(total: list[Tensor], row: list[Tensor], c: Tensor, *, spare: bool) -> None:
    """total += c row, c 0-d on the device, all tensors at once; `spare`: the row is used up."""
    if total[0].device.type == "cpu":  # one pass over the memory; a GPU would launch a kernel for every tensor
        torch._foreach_addcmul_(total, row, [c] * len(row))
    elif spare:
        torch._foreach_mul_(row, c)
        torch._foreach_add_(total, row)
    else:
        torch._foreach_add_(total, torch._foreach_mul(row, c))


def move_towards(average: list[Tensor], new: list[Tensor], rate: Tensor, scale: Tensor | None) -> None:
    """average += rate (new / scale - average), rate 0-d on the device; `new` is used up."""
    if scale is None and average[0].device.type == "cpu":
        torch._foreach_lerp_(average, new, [rate] * len(new))
        return
    torch._foreach_mul_(average, 1 - rate)
    add_scaled(average, new, rate if scale is None else rate / scale, spare=True)


def flatten(rows: list[list[Tensor]], scale: Tensor) -> Tensor:
    """T rows of tensors -> the Jacobian float32 [T, P] / scale, for methods that need its elements. Rows are used up
    as they are copied."""
    size = sum(t.numel() for t in rows[0])
    device = rows[0][0].device if rows[0] else scale.device
    jacobian = torch.empty(len(rows), size, device=device)
    for out in jacobian.unbind():
        row = rows.pop(0)
        if row:
            torch.cat([t.reshape(-1) for t in row], out=out) if row[0].dtype == out.dtype else out.copy_(
                torch.cat([t.reshape(-1) for t in row])
            )
    return jacobian.div_(scale.to(jacobian.dtype))


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
