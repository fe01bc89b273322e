"""FairGrad."""

from typing import Any

import torch
from torch import Tensor

from mtlcar.tasks import TaskSet
from mtlcar.weightings.algebra import Geometry
from mtlcar.weightings.base import SolvedWeighting
from mtlcar.weightings.nash_mtl import bargain
from mtlcar.weightings.newton import fair, vanishing
from mtlcar.weightings.options import number


class FairGrad(SolvedWeighting):
    """Alpha-fair gradients: G w = w^(-1/alpha), w > 0 (Ban & Ji 2024, arXiv 2402.15638).

    The direction maximises the alpha-fair utility of the tasks' rates of descent; alpha = 1 is Nash-MTL, larger alpha
    looks more after the task that falls slowest. Level: parameters (the paper's) or representation.

    Sum of the weights: not fixed, and multiplied by s^(-2 alpha / (alpha + 1)) when all gradients are by s;
    `normalize` makes it comparable to other methods.

    Way out, counted: as Nash-MTL, when a gradient is zero or a positive combination of the gradients vanishes within
    the input's rounding: w_t = n_t^(-2 alpha / (alpha + 1)), its value for orthogonal gradients, 0 for a zero one.

    Departs from the authors' code: the equation is solved (damped Newton on cosines; closed form for two tasks and
    alpha 1), theirs takes a nonlinear least-squares solver.

    Args:
        alpha: > 0. The authors' code: 1. Outside 0.5 to 2, gradients of very different length may end in the way out,
            because rounding or the fixed number of steps does not let the answer be reached.
    """

    def __init__(
        self,
        tasks: TaskSet,
        *,
        alpha: float = 1.0,
        **common: Any,
    ) -> None:
        super().__init__(tasks, **common)
        self.alpha = number(self.name, "alpha", alpha, above=0)

    def solve(self, geometry: Geometry, losses: Tensor) -> tuple[Tensor, Tensor]:
        n, c = geometry.norms, geometry.cosines
        power = -2 * self.alpha / (self.alpha + 1)
        alone = (n**power).nan_to_num(posinf=0.0)
        if self.alpha == 1:
            z, ok = bargain(c, geometry.eps)
        else:
            # With w = alone z the norms are left as m = n alone, each task's share of the direction were they
            # orthogonal. Only ratios of m count: they are taken around the geometric mean.
            logs = torch.where(n > 0, n, 1.0).log()
            m = ((1 + power) * (logs - logs.mean())).exp()
            z, arrived = fair(c, m, self.alpha)
            ok = arrived & ~vanishing(c, m * z, geometry.eps)
        ok = ok & n.all()
        return alone * torch.where(ok, z, 1.0), ok
