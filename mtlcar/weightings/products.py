"""Scalar products and combinations of gradients that lie in many tensors, one row of tensors a task.

Small tensors are taken together and large ones alone (`buckets`). A CPU works bucket by bucket, to find them in its
cache; a GPU combines all tensors in one call (foreach).
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from mtlcar.exact import exact

LARGE = 2**16
"""Elements from which a tensor is worth a product of its own; smaller ones are put together first."""
PIECE = 2**18
"""Elements of one product on a CPU: a piece stays in the cache while all pairs are taken, and a CPU's product of 16
million float32 numbers, added one after the other, is wrong in the fourth digit. A GPU adds in a tree."""
BUCKET = 2**22
"""Elements of small tensors put together at once: 16 MiB of float32."""


def average_over_processes(tensors: list[Tensor], world: int) -> None:
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
    wide = exact(device)
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
