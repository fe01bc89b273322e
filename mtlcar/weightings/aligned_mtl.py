"""Aligned-MTL."""

from typing import Any

import torch
from torch import Tensor

from mtlcar.errors import UserError, did_you_mean
from mtlcar.tasks import TaskSet
from mtlcar.weightings.algebra import Geometry
from mtlcar.weightings.base import SolvedWeighting
from mtlcar.weightings.eigen import symmetric_eigen

SCALES = ("min", "median", "rmse")


class AlignedMTL(SolvedWeighting):
    """Gradients made orthogonal and equally long, as close to the given ones as such can be, then averaged (Senushkin
    et al. 2023, "Independent component alignment", arXiv 2305.19000).

    G = V S V^T, w = sqrt(b) V S^(-1/2) V^T 1/T over the eigenvalues s > T eps max(s), eps that of the Gramian's type.
    For two tasks in closed form. Five tasks and more go through LAPACK, whose precision is absolute: an eigenvalue s is
    found to ~ eps64 max(s), so that weights may be wrong where gradients differ a lot in length. Level: parameters or
    representation (the paper has both).

    Sum of the weights: not fixed; 1 for orthogonal gradients of one length. Lengths count: a task whose gradient is
    longer gets less.

    Rank: where an eigenvalue is lost the definition still answers, over the others, but jumps: such steps are counted.
    All gradients zero: weights 0, counted.

    Departs from the authors' code: that sums the aligned gradients, this takes their mean (as the paper).

    Args:
        scale: b is the smallest of these eigenvalues (min, the paper's), their median (of an even number, the lower
            of the two, as in the authors' code) or their mean (rmse).
    """

    total = "1"

    def __init__(
        self,
        tasks: TaskSet,
        *,
        scale: str = "min",
        **common: Any,
    ) -> None:
        super().__init__(tasks, **common)
        if scale not in SCALES:
            raise UserError(
                f"weighting.scale should be one of {', '.join(SCALES)}. Found {scale!r}.{did_you_mean(scale, SCALES)}"
            )
        self.scale = scale

    def solve(self, geometry: Geometry, losses: Tensor) -> tuple[Tensor, Tensor]:
        n = geometry.norms
        if len(n) == 2:
            return self._two(n, geometry.cosines[0, 1], geometry.eps)
        n = n / n.amax().clamp(min=torch.finfo(n.dtype).tiny)
        tasks = len(n)
        values, vectors = symmetric_eigen(n[:, None] * geometry.cosines * n)
        top = values.amax()
        kept = values > tasks * geometry.eps * top
        rank = kept.sum()
        if self.scale == "min":
            b = torch.where(kept, values, top).amin()
        elif self.scale == "median":
            # Of the `rank` largest in ascending order the one at (rank - 1) // 2.
            place = tasks - rank + (rank - 1).clamp(min=0) // 2
            b = values.sort().values.gather(0, place.clamp(max=tasks - 1).view(1))
        else:
            b = torch.where(kept, values, 0.0).sum() / rank.clamp(min=1)
        # b / s first: both may be very small.
        stretch = torch.where(kept, (b / values).abs().sqrt(), 0.0)
        return (stretch * vectors.sum(1)) @ vectors / tasks, rank == tasks

    def _two(self, n: Tensor, cosine: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Cayley-Hamilton: G^(-1/2) = ((tr + root) I - G) / (root sqrt(tr + 2 root)), root = sqrt(det G)."""
        squares = n * n
        product = n.prod()
        cross = product * cosine
        determinant = (product - cross) * (product + cross)
        root = determinant.sqrt()
        trace = squares.sum()
        first, second = squares.unbind()
        gap = torch.hypot(first - second, cross + cross).clamp(min=torch.finfo(n.dtype).tiny)  # of the eigenvalues
        top = trace + gap  # twice the larger one
        ok = determinant > top * top * (eps / 2)
        # Half the sums of the rows; G_22 is what (tr + root) - G_11 leaves beside root.
        square = torch.add(trace, root, alpha=2)
        # The lower median of two is the smaller.
        rmse = self.scale == "rmse"
        factor = (trace / (8 * square)).sqrt() / root if rmse else (top * (square + square)).rsqrt()
        full = (squares.flip(0) + (root - cross)) * factor
        # Rank 1: half the sums of the rows of v v^T = (G - smaller I) / (larger - smaller).
        smaller = (determinant + determinant) / top
        single = (squares + (cross - smaller)) / (gap + gap)
        return torch.where(ok, full, single), ok
