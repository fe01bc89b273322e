"""CAGrad: near the mean gradient, the direction that helps the worst-off task most."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from mtlcar.tasks import TaskSet
from mtlcar.weightings.active_sets import (
    all_supports,
    least_violated,
    nonnegative,
    rank_tolerance,
    ridge,
    settled_order,
    solve_supports,
    tie,
)
from mtlcar.weightings.algebra import Geometry
from mtlcar.weightings.base import SolvedWeighting
from mtlcar.weightings.options import flag, number


class CAGrad(SolvedWeighting):
    """a = 1/T + k w / ||J^T w||, k = c ||g_0||, g_0 the mean gradient and w the argmin over the simplex of
    w^T J g_0 + k ||J^T w||: the weights of max { min_t <g_t, d> : ||d - g_0|| <= k } (Liu et al. 2021,
    arXiv 2110.14048).

    Works at either level. The weights sum to 1 + k / ||J^T w||, which has no bound; g_0 = 0 gives 1 / T.

    Way out: J^T w = 0, where the definition divides by zero and many directions d are equally good (zero gradients;
    opposed ones when c >= 1 or the other tasks are indifferent): of these the one nearest to g_0; counted.

    Departs from the authors' code: exact instead of SLSQP (stopped at 1e-6) or momentum SGD (20 steps), no 1e-4 or 1e-8
    added to k.

    Args:
        c: size of the neighbourhood of the mean gradient, >= 0; 0 is the mean gradient itself, and convergence is
            proven for c < 1. The paper's values: 0.4 (NYU-v2, Cityscapes), 0.5 (MultiFashion+MNIST).
        rescale: divide the weights by 1 + c^2, the authors' rescale=1.
    """

    total: ClassVar[str] = "1"

    def __init__(
        self,
        tasks: TaskSet,
        *,
        c: float = 0.5,
        rescale: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(tasks, **common)
        self.c = number(self.name, "c", c, least=0)
        self.rescale = flag(self.name, "rescale", rescale)
        self.register_buffer("supports", all_supports(len(tasks)), persistent=False)
        self.supports: Tensor

    def solve(self, geometry: Geometry, losses: Tensor) -> tuple[Tensor, Tensor | None]:
        tasks = len(geometry.norms)
        if tasks == 2:
            found, ok = self._two(geometry.norms, geometry.cosines, geometry.eps)
        else:
            found, ok = self._more(geometry)
        # found = k w / ||J^T w||
        found = found + 1 / tasks
        return found / (1 + self.c**2) if self.rescale else found, ok

    def _two(self, norms: Tensor, cosines: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        # ||J^T w||^2 is a parabola over w_1 with its vertex at MGDA's w; the objective adds a slope to its root.
        other = norms.flip(0)
        product = norms * other
        cross = product * cosines[0, 1]
        squares = other * other
        vertex = squares - cross  # times ||g_1 - g_2||^2, as `found`
        slope = vertex.flip(0) - vertex  # twice that of w^T J g_0
        mean = (squares + cross).sum().relu()  # (2 ||g_0||)^2
        steep = torch.addcmul(mean * vertex.sum() * self.c**2, slope, slope, value=-1)
        # (determinant / steep)^(1/2); to the end where steep is not positive, also when both are 0.
        away = (steep / ((product - cross) * (product + cross))).rsqrt().nan_to_num(1e30, 1e30)
        found = torch.addcmul(vertex, slope, away, value=-1).relu()
        found = torch.add(found, product, alpha=1e-40)  # for equal gradients, where all else is 0
        shares = found * norms
        square = shares @ (cosines @ shares)
        total = shares.sum()
        kink = square <= total * total * rank_tolerance(2, eps)
        nearest = (cosines @ norms).neg().relu() / norms.clamp(min=torch.finfo(norms.dtype).tiny)
        found = torch.where(kink, nearest, found * ((mean / square).sqrt() * self.c))
        return found * 0.5, ~torch.logical_and(kink, mean)

    def _more(self, geometry: Geometry) -> tuple[Tensor, Tensor]:
        norms, eps = geometry.norms, geometry.eps
        norms = norms / norms.amax().clamp(min=torch.finfo(norms.dtype).tiny)
        order = settled_order(norms, geometry.cosines)
        norms, cosines = norms[order], geometry.cosines[order][:, order]
        mean = cosines @ norms / len(norms)  # <g_t, g_0> / n_t; 0 for a zero gradient
        length = (norms @ mean / len(norms)).relu().sqrt()
        solver = self._enumerated if len(self.supports) else self._iterated
        shares, ok = solver(norms, cosines, mean, length, eps)
        found = shares / torch.where(norms > 0, norms, 1.0)
        return torch.empty_like(found).index_copy_(0, order, found), ok | (length == 0)

    def _enumerated(
        self, norms: Tensor, cosines: Tensor, mean: Tensor, length: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Optimal shares p: d = g_0 + sum_t p_t g_t / n_t, p >= 0, <g_t, d> >= l with equality where p_t > 0; and
        either ||d - g_0|| = k ("edge"), or l = 0 and less than that (where J^T w = 0)."""
        k = self.c * length
        zero = norms == 0
        inverse = torch.where(zero, 0.0, 1 / torch.where(zero, 1.0, norms))
        x, regular = solve_supports(
            self.supports, cosines, torch.stack([inverse, mean], 1), rank_tolerance(len(norms), eps)
        )
        regular = regular & ~(self.supports & zero).any(1)
        ones, means = x.unbind(2)  # C_S^-1 / n, C_S^-1 mean
        a = (ones @ inverse)[:, None]
        a = torch.where(a > 0, a, 1.0)
        vertex = (means @ inverse)[:, None] / a
        rest = (means @ mean)[:, None] - vertex.square() * a
        level = vertex + ((k * k - rest).clamp(min=0) / a).sqrt()  # l
        shares = torch.stack([level * ones - means, -means]).clamp(min=0)  # [2, M, T]: edge, inside
        size = (shares * (shares @ cosines)).sum(2, keepdim=True).clamp(min=0).sqrt()
        fit = k / torch.where(size > 0, size, 1.0)
        shares = shares * torch.stack([fit[0], fit[1].clamp(max=1)])
        along = mean + shares @ cosines
        violation = torch.minimum(along - torch.stack([level, torch.zeros_like(level)]) * inverse, shares)
        violation = violation.abs().masked_fill(zero, 0).amax(2)
        # With a zero gradient l cannot be positive.
        impossible = ~regular | (size[0] == 0)[:, 0] | (zero.any() & (level > 0)[:, 0])
        violation = violation.masked_fill(torch.stack([impossible, ~regular]), torch.inf).mT  # [M, 2]
        allowed = tie(eps, norms.dtype) * length + 4 * torch.finfo(norms.dtype).eps
        edge, inside = found = least_violated(violation, shares.transpose(0, 1), allowed)
        worst = (norms * (mean + found @ cosines)).amin(1)  # <g_t, d> of the worst-off task
        use = (worst[0] + tie(eps, norms.dtype) * length >= worst[1]) & (violation[:, 0].amin() < torch.inf)
        return torch.where(use, edge, inside), use

    def _iterated(
        self, norms: Tensor, cosines: Tensor, mean: Tensor, length: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """As `_enumerated`: the shares of a given l are a projection, and their size is a convex function of l, of
        which Newton's method finds where it is k."""
        alive = (norms > 0).cpu()
        n, h = norms.cpu()[alive], mean.cpu()[alive]
        k = self.c * length.cpu()
        shares = torch.zeros(len(norms), dtype=norms.dtype)
        if not bool(alive.any()) or float(k) == 0:
            return shares.to(norms.device), torch.ones_like(length, dtype=torch.bool)
        system = cosines.cpu()[alive][:, alive]
        stable = system + ridge(len(n), eps) * torch.eye(len(n), dtype=n.dtype)
        level = (n * (h + 2 * k)).min()  # too far: one task alone would need 2 k
        level, found, _ = _edge(stable, system, n, h, k, level, eps, rounds=1)
        # Where J^T w = 0 no l > 0 can be had, and the ridge alone kept the shares finite.
        kink = bool(level > 0) and (not bool(alive.all()) or bool(found @ system @ found < k * k / 2))
        if kink:
            found = nonnegative(system, -h, eps)
        else:
            _, better, converged = _edge(system, system, n, h, k, level, eps, rounds=3)
            found = better if converged else found
        found = found * (k / (found @ system @ found).clamp(min=1e-300).sqrt()).clamp(max=1.0 if kink else torch.inf)
        shares[alive] = found
        return shares.to(norms.device), torch.full_like(length, not kink, dtype=torch.bool)


def _edge(
    metric: Tensor, system: Tensor, n: Tensor, h: Tensor, k: Tensor, level: Tensor, eps: float, rounds: int
) -> tuple[Tensor, Tensor, bool]:
    """From `level` by Newton's method: the l whose shares have the size k in `metric`, these, and whether they do."""
    found = torch.zeros_like(n)
    for _ in range(60):
        found = nonnegative(system, level / n - h, eps, rounds)
        size = (found @ metric @ found).clamp(min=1e-300).sqrt()
        if not bool(torch.isfinite(size)) or not bool((found > 0).any()):
            return level, found, False
        if float((size - k).abs()) <= 1e-12 * float(k):
            return level, found, True
        level = level - (size - k) * size / (found / n).sum()
    return level, found, False
