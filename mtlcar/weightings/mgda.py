"""MGDA: the point of the gradients' convex hull that is nearest to zero."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from mtlcar.errors import UserError, did_you_mean
from mtlcar.tasks import TaskSet
from mtlcar.weightings.active_sets import (
    all_supports,
    least_violated,
    nonnegative,
    rank_tolerance,
    settled_order,
    solve_supports,
    tie,
)
from mtlcar.weightings.algebra import Geometry
from mtlcar.weightings.base import SolvedWeighting

NORMALIZATIONS = ("none", "loss", "loss_plus", "l2")


class MGDA(SolvedWeighting):
    """w = argmin over the simplex of ||sum_t w_t g'_t||, g' the normalised gradients (Sener & Koltun 2018,
    arXiv 1810.04650; the problem is Desideri's, 2012).

    Works at either level (the paper's MGDA-UB is level=representation). The weights sum to 1. g' serves to find w
    only, as in the authors' code: the step is sum_t w_t g_t with the raw gradients. A zero gradient takes all the
    weight, several share it. Tasks with the same gradient get the same weight, as do all other ties.

    Way out: where a loss is not positive, or a gradient zero that should be divided by its norm, w is that of
    normalization=none in this step, and the step is counted.

    Departs from the authors' code: exact instead of Frank-Wolfe stopped after 250 steps.

    Args:
        normalization: none: g; loss: g / L; l2: g / ||g||; loss_plus: g / (L ||g||). The paper's MultiMNIST and
            Cityscapes runs take loss_plus, its CelebA run l2 or none.
    """

    total: ClassVar[str] = "1"

    def __init__(
        self,
        tasks: TaskSet,
        *,
        normalization: str = "none",
        **common: Any,
    ) -> None:
        super().__init__(tasks, **common)
        if normalization not in NORMALIZATIONS:
            raise UserError(
                f"weighting.normalization should be one of {', '.join(NORMALIZATIONS)}. Found {normalization!r}."
                f"{did_you_mean(str(normalization), NORMALIZATIONS)}"
            )
        self.normalization = normalization
        self.register_buffer("supports", all_supports(len(tasks)), persistent=False)
        self.supports: Tensor

    def solve(self, geometry: Geometry, losses: Tensor) -> tuple[Tensor, Tensor | None]:
        norms, ok = self._lengths(geometry.norms, losses)
        if len(norms) == 2:
            return _two(norms, geometry.cosines[0, 1], geometry.eps), ok
        norms = norms / norms.amax().clamp(min=torch.finfo(norms.dtype).tiny)
        order = settled_order(norms, geometry.cosines)
        norms, cosines = norms[order], geometry.cosines[order][:, order]
        zero = norms == 0
        some = zero.any()
        safe = torch.where(some, 1.0, norms)
        solver = self._enumerated if len(self.supports) else _iterated
        found = torch.where(some, zero / zero.sum().clamp(min=1), solver(safe, cosines, geometry.eps))
        return torch.empty_like(found).index_copy_(0, order, found), ok

    def _lengths(self, norms: Tensor, losses: Tensor) -> tuple[Tensor, Tensor | None]:
        """The norms [T] of the normalised gradients, and whether the normalisation has an answer."""
        if self.normalization == "none":
            return norms, None
        divisors = losses if "loss" in self.normalization else torch.ones_like(norms)
        if self.normalization != "loss":
            divisors = divisors * norms
        ok = (divisors > 0).all()
        return torch.where(ok, norms / torch.where(ok, divisors, 1.0), norms), ok

    def _enumerated(self, norms: Tensor, cosines: Tensor, eps: float) -> Tensor:
        gramian = norms[:, None] * cosines * norms
        # On the simplex a constant added to all of G changes nothing but makes affinely independent rows
        # linearly independent: opposed gradients have a regular system. Its size is that of the support.
        inside = torch.where(self.supports, norms, torch.inf).amin(1).clamp(max=1.0)[:, None]
        lengths = (norms.square() + inside.square()).sqrt()
        system = (gramian + inside.square()[:, :, None]) / (lengths[:, :, None] * lengths[:, None, :])
        tolerance = rank_tolerance(len(norms), eps)
        x, regular = solve_supports(self.supports, system, (inside / lengths)[:, :, None], tolerance)
        # p = w n, summing to 1; s = sum_t w_t n_t
        weights = (x[:, :, 0] / lengths).clamp(min=0)
        total = weights.sum(1, keepdim=True)
        weights = weights / torch.where(total > 0, total, 1.0)
        shares = weights * norms
        scale = shares.sum(1, keepdim=True)
        shares = shares / torch.where(scale > 0, scale, 1.0)
        along = shares @ cosines
        violation = ((shares * along).sum(1, keepdim=True) * (scale / norms) - along).amax(1)
        violation = torch.where(regular & (total > 0)[:, 0], violation.clamp(min=0), torch.inf)
        return least_violated(violation, weights, tie(eps, norms.dtype))


def _two(norms: Tensor, cosine: Tensor, eps: float) -> Tensor:
    other = norms.flip(0)
    # Each is its weight times ||g_1 - g_2||^2; a negative one means that the shorter gradient takes all the weight.
    found = other * (other - norms * cosine)
    equal = found.amax() <= 2 * eps * norms.prod()  # within the rounding of the Gramian the gradients are the same
    found = torch.where(equal, 0.5, found.relu())
    return found / found.sum()


def _iterated(norms: Tensor, cosines: Tensor, eps: float) -> Tensor:
    n, c = norms.cpu(), cosines.cpu()
    constant = n.min()
    lengths = (n.square() + constant**2).sqrt()
    system = (n[:, None] * c * n + constant**2) / (lengths[:, None] * lengths)
    weights = nonnegative(system, constant / lengths, eps) / lengths
    return (weights / weights.sum()).to(norms.device)
