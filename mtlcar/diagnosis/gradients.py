"""Scalar products of the tasks' gradients, parameter by parameter and batch by batch."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Gradients:
    """Gramians of the gradients of T losses by P parameters over N batches. Those of several parameters together are
    their sum, and all that is said of gradients here follows from them.

    Attributes:
        names: of the parameters, P.
        elements: int64 [P].
        each: float64 [N, P, T, T], of each batch's gradients.
        mean: float64 [P, T, T], of the gradients averaged over the batches.
    """

    names: tuple[str, ...]
    elements: np.ndarray
    each: np.ndarray
    mean: np.ndarray

    def of(self, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """`each` [N, T, T] and `mean` [T, T] of these parameters together."""
        at = [self.names.index(n) for n in names]
        return self.each[:, at].sum(1), self.mean[at].sum(0)


def measure(
    losses: Callable[[Any], Tensor], batches: Iterable[Any], parameters: Mapping[str, nn.Parameter]
) -> Gradients:
    """
    Args:
        losses: batch -> raw losses [T] with their graph.
        parameters: by name, those that several losses reach; what a loss does not reach has a gradient of 0.

    Sums are streamed: of each task one gradient is kept besides that of the batch.
    """
    values = list(parameters.values())
    each: list[Tensor] = []
    sums: list[list[Tensor]] = []
    for batch in batches:
        rows = []
        found = losses(batch)
        for t, loss in enumerate(found.unbind()):
            gradients = torch.autograd.grad(loss, values, retain_graph=t + 1 < len(found), allow_unused=True)
            rows.append([torch.zeros_like(p) if g is None else g for p, g in zip(values, gradients, strict=True)])
        each.append(_gramians(rows).cpu())
        if not sums:
            sums = [[torch.zeros_like(g) for g in row] for row in rows]
        for total, row in zip(sums, rows, strict=True):
            torch._foreach_add_(total, row)
    n = len(each)
    mean = _gramians(sums).cpu() / n**2
    elements = np.array([p.numel() for p in values])
    return Gradients(tuple(parameters), elements, torch.stack(each).numpy(), mean.numpy())


@torch.no_grad()
def _gramians(rows: Sequence[Sequence[Tensor]]) -> Tensor:
    """T rows of P tensors -> float64 [P, T, T]."""
    found = []
    for tensors in zip(*rows, strict=True):
        matrix = torch.stack([g.reshape(-1) for g in tensors]).double()
        found.append(matrix @ matrix.T)
    return torch.stack(found)
