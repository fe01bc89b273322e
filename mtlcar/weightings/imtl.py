"""IMTL-G, and IMTL when `hybrid`."""

from typing import Any

import torch
from torch import Tensor

from mtlcar.tasks import TaskSet
from mtlcar.weightings.algebra import Geometry
from mtlcar.weightings.base import SolvedWeighting
from mtlcar.weightings.eigen import symmetric_eigen
from mtlcar.weightings.options import flag, number

BOUND = 30.0


class IMTL(SolvedWeighting):
    """Equal projections of the direction on every unit gradient (Liu et al. 2021, "Towards impartial multi-task
    learning", ICLR): w proportional to (C^-1 1) / n.

    For two tasks (n_2, n_1) / (n_1 + n_2), whatever the cosine. Level: representation (the paper's) or parameters.
    Sum of the weights: 1 (hybrid: not fixed).

    Singular C. Eigenvalues of C up to 4 T eps (eps that of the Gramian's type) are rounding. What C^-1 1 tends to when
    they go to 0 together is taken: the part of 1 in their space where there is one (then the direction vanishes: no
    other has equal projections), else the pseudo-inverse. Identical tasks get identical n_t w_t.

    Way out, counted: a gradient is zero, or the sum of (C^-1 1) / n is not positive (after normalising to 1 every
    task would go uphill), or not positive beyond the rounding of the input: sum <= tau sum of magnitudes, tau = 4 T
    eps / smallest eigenvalue above the tolerance. So weights of mixed sign stay below 1 / tau. Then w is proportional
    to 1 / n over the other gradients, which is IMTL itself for two tasks; all zero: 0.

    Departs from the authors' code: it inverts a matrix of differences of gradients and leaves the negative sum and
    the singular matrix as they come.

    Hybrid: the tasks' losses are first scaled by exp(s_t), s_t trained by gradient descent on exp(s_t) L_t - s_t
    (IMTL-L), and w is that of the scaled losses times exp(s_t). As equal projections do not depend on the gradients'
    lengths, s moves the length of the direction only. s starts at 0, stays within -30 and 30, and moves by at most 1
    in a step: a loss of 2000 would send it so far down that exp(s) L is 0 and it comes back by lr a step. A step that
    is not finite gives equal weights that sum to 1 as without `hybrid`, whatever s is, and leaves s as it is.

    Args:
        hybrid: IMTL-G on losses scaled by IMTL-L.
        lr: the learning rate of s; the paper trains s by the network's optimiser. Read with `hybrid` only.
    """

    total = "1"

    def __init__(
        self,
        tasks: TaskSet,
        *,
        hybrid: bool = False,
        lr: float = 0.025,
        **common: Any,
    ) -> None:
        super().__init__(tasks, **common)
        self.hybrid = flag(self.name, "hybrid", hybrid)
        self.lr = number(self.name, "lr", lr, above=0)
        if self.hybrid:
            self.register_buffer("s", torch.zeros(len(tasks)))
            self.s: Tensor

    def solve(self, geometry: Geometry, losses: Tensor) -> tuple[Tensor, Tensor]:
        n = geometry.norms
        if not self.hybrid:
            return impartial(n, geometry.cosines, geometry.eps)
        scale = self.s.to(n.dtype).exp()
        w, ok = impartial(n * scale, geometry.cosines, geometry.eps)
        s = self.s - (self.lr * (scale * losses - 1)).clamp(-1, 1)
        self.keep(self.s, s.clamp(-BOUND, BOUND), geometry.finite)
        return w * scale, ok


def impartial(norms: Tensor, cosines: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Norms [T] and cosines [T, T] -> weights [T] that sum to 1, and a 0-d bool that is false for the way out."""
    ok = norms.all()
    if len(norms) == 2:
        # Where one of them is zero the other's norm alone is left.
        return torch.where(ok, norms.flip(0), norms) / norms.sum().clamp(min=torch.finfo(norms.dtype).tiny), ok
    nonzero = norms > 0
    # Relative to the largest: 1 / n of the smallest numbers would overflow.
    inverse = torch.where(nonzero, 1.0, 0.0) / torch.where(nonzero, norms / norms.amax(), 1.0)
    x, precision = equal_projections(cosines, eps)
    shares = x * inverse
    ok = ok & (shares.sum() > precision * shares.abs().sum())
    inverse = torch.where(ok, shares, inverse)
    total = inverse.sum()
    return inverse / torch.where(total > 0, total, 1.0), ok


def equal_projections(cosines: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x [T] of any length with C x = k 1, and a bound (0-d) on the relative error that rounding of C leaves in it."""
    tasks = len(cosines)
    tolerance = 4 * tasks * eps
    values, vectors = symmetric_eigen(cosines)
    along = vectors.sum(1)  # of 1, on each eigenvector
    kept = values > tolerance
    smallest = torch.where(kept, values, float(tasks)).amin()
    precision = tolerance / smallest
    lost = torch.where(kept, 0.0, along)
    part = lost.square().sum() / tasks  # of 1, that lies where C vanishes
    flat = part > precision.square()
    x = torch.where(flat, lost, torch.where(kept, along / values, 0.0)) @ vectors
    return x, torch.where(flat, precision / part.sqrt(), precision)
