"""DB-MTL: losses balanced by the logarithm, tracked gradients by their norms."""

from typing import Any

import torch
from torch import Tensor

from mtlcar.tasks import TaskSet
from mtlcar.weightings.algebra import wide
from mtlcar.weightings.options import number
from mtlcar.weightings.tracked import TrackedGradients

EPS = 1e-8  # the authors'


class DBMTL(TrackedGradients):
    """Dual balancing (Lin, Jiang, Ye, Zhang, Chen, Chen, Liu, Kwok 2023, "Dual-balancing for multi-task learning";
    arXiv 2308.12029), at parameters level:

        h_t = g_t / (L_t + 1e-8), the gradient of log L_t
        Y_t <- beta Y_t + (1 - beta) h_t, divided by 1 - beta^k: the bias-corrected average over k calls
        d = sum_t a_t Y_t,  a_t = max_u ||Y_u|| / ||Y_t||

    Every task pulls with one strength, that of the strongest. The weights are the factors a_t on the averaged
    gradients, each at least 1, with no fixed sum (T with `normalize`). d does not change when a loss is multiplied by a
    number. The average is kept bias-corrected: Y <- Y + (1 - beta) / (1 - beta^k) (h - Y) is the same.

    Where Y_t is 0 its factor is 1, where a loss is negative log L is undefined and h_t = g_t / (|L_t| + 1e-8); such
    steps are counted. Input that is not finite: see `TrackedGradients`, also for memory and checkpoint: T x P floats.

    Departs from LibMTL, which does not correct the bias, can let beta fall with the steps (beta / k^sigma), and adds
    1e-8 to the norms.

    Args:
        beta: in [0, 1), what the average keeps; 0.9.
    """

    def __init__(
        self,
        tasks: TaskSet,
        *,
        beta: float = 0.9,
        **common: Any,
    ) -> None:
        super().__init__(tasks, **common)
        self.beta = number(self.name, "beta", beta, least=0, below=1)

    def rate(self, k: Tensor) -> Tensor:
        return (1 - self.beta) / (1 - self.beta**k)

    def divisors(self, losses: Tensor) -> Tensor:
        return losses.abs() + EPS

    def factors(self, gramian: Tensor, losses: Tensor, finite: Tensor) -> Tensor:
        norms = wide(gramian.diagonal()).sqrt()
        found = (norms.amax() / norms).float()
        alive = torch.isfinite(found)  # neither 0 / 0 nor a quotient beyond float32
        self.degenerate += ~(finite & (alive & (losses >= 0)).all())
        return self._normalized(torch.where(alive, found, 1.0))
