"""MoCo: the common descent direction of tracked gradients, in small steps of its weights."""

from typing import Any

import torch
from torch import Tensor

from mtlcar.tasks import TaskSet
from mtlcar.weightings.algebra import wide
from mtlcar.weightings.options import number
from mtlcar.weightings.tracked import TrackedGradients


class MoCo(TrackedGradients):
    """MoCo (Fernando, Shen, Liu, Chaudhury, Murugesan, Chen 2023, "Mitigating gradient bias in multi-objective
    learning", ICLR; arXiv 2210.12624), at parameters level:

        Y <- Y - beta_k (Y - J),                                     beta_k = beta0 / sqrt(k), Y = 0 at first
        lambda <- simplex(lambda - gamma_k (Y Y^T + rho I) lambda),  gamma_k = gamma0 / sqrt(k), lambda = 1/T at first
        d = Y^T lambda

    with `simplex` the nearest point of {lambda >= 0, sum 1}. For gradients that stand still lambda goes to MGDA's
    weights. The weights lambda sum to 1 (to T with `normalize`). Y starts at 0, as in the authors' code, so that the
    first steps are short: d is half the mean gradient in the first.

    The definition has an answer for every finite input. Where the gradients or losses are not finite lambda stays as
    it is; see `TrackedGradients`, also for memory and checkpoint: T x P floats each. lambda's step goes with the
    square of the gradients' length: very long gradients make it jump between corners, very short ones leave it.

    Departs from the paper's algorithm, which takes the step along Y^T lambda of the iteration before: d uses Y and
    lambda after their updates (as LibMTL does). Departs from LibMTL, which divides each gradient by its norm and
    multiplies it by the loss, and has a softmax in place of the projection.

    Args:
        beta0: in (0, 1], of the tracking; 0.5.
        gamma0: > 0, of lambda's steps; 0.1.
        rho: >= 0, pulls lambda towards 1/T; 0.
    """

    def __init__(
        self,
        tasks: TaskSet,
        *,
        beta0: float = 0.5,
        gamma0: float = 0.1,
        rho: float = 0.0,
        **common: Any,
    ) -> None:
        super().__init__(tasks, **common)
        self.beta0 = number(self.name, "beta0", beta0, above=0, most=1)
        self.gamma0 = number(self.name, "gamma0", gamma0, above=0)
        self.rho = number(self.name, "rho", rho, least=0)
        self.register_buffer("lambdas", torch.full((len(tasks),), 1 / len(tasks)))
        self.lambdas: Tensor

    def rate(self, k: Tensor) -> Tensor:
        return self.beta0 * k.rsqrt()

    def factors(self, gramian: Tensor, losses: Tensor, finite: Tensor) -> Tensor:
        # Not `keep`, which holds still in all but the last micro-batch: lambda moves with Y.
        before = wide(self.lambdas)
        gamma = self.gamma0 * wide(self.steps).clamp(min=1).rsqrt()
        slope = (wide(gramian) * before).sum(1) + self.rho * before
        after = simplex(before - gamma * slope)
        ok = finite & torch.isfinite(slope.sum())
        self.lambdas.copy_(self.settle(after, ok, before))
        return self._normalized(self.lambdas.clone())


def simplex(v: Tensor) -> Tensor:
    """The point of {x >= 0, sum x = 1} nearest to v [T]: max(v - theta, 0).

    With v sorted downwards theta is the largest of (v_1 + ... + v_j - 1) / j: going from j to j + 1 the quotient grows
    as long as v_{j+1} exceeds it, which is as long as v_{j+1} belongs to the support.
    """
    v = v - v.amax()  # changes nothing but the rounding
    # Sums over the first j without cumsum, which CUDA has no deterministic kernel for.
    sums = v.sort(descending=True).values.expand(len(v), -1).tril().sum(1)
    theta = ((sums - 1) / torch.arange(1, len(v) + 1, dtype=v.dtype, device=v.device)).amax()
    return (v - theta).clamp(min=0)
