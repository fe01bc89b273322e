"""GradVac: gradient vaccine."""

import math
from typing import Any

import torch
from torch import Tensor

from mtlcar.exact import exact
from mtlcar.tasks import TaskSet
from mtlcar.weightings.algebra import Geometry, pull_of_the_other
from mtlcar.weightings.base import SolvedWeighting
from mtlcar.weightings.draws import RandomWeighting
from mtlcar.weightings.options import number
from mtlcar.weightings.pcgrad import random_orders, rounds, summed

_EXACT = exact()
STEEPEST = math.sqrt(1 - 1e-8)
"""Largest |phi| that is aimed at: a correction is at most 1e4 times as long as the gradient that it corrects."""


class GradVac(RandomWeighting, SolvedWeighting):
    """Task gradients whose cosine lies below its moving average are turned until they have that cosine.

    c_i = e_i; for j != i in random order, with cos = cos(c_i J, g_j): if cos < phi_ij: c_i[j] +=
    |c_i J| (phi_ij sqrt(1 - cos^2) - cos sqrt(1 - phi_ij^2)) / (n_j sqrt(1 - phi_ij^2)); then phi_ij <-
    (1 - beta) phi_ij + beta cos, with the cosine before the correction, whether there was one or not. w = sum_i c_i.

    Wang, Tsvetkov, Firat, Cao: Gradient Vaccine, ICLR 2021, arXiv 2010.05874. Works on shared parameters or on the
    bottleneck. phi [T, T] starts at 0, so the first call is PCGrad's; it is checkpointed. Two tasks need no random
    order, and none is drawn.

    Weights sum to T where no cosine is below its target, and to more where one is: every w_t >= 1.

    Ways out: the cosine with a gradient of zero, or of one that earlier corrections have cancelled to within rounding,
    is undefined; that pair is not corrected, its phi stays, and the step is counted. 1 - phi^2 counts as at
    least 1e-8.

    LibMTL moves phi only where it corrects, so that its targets never rise above 0.

    Args:
        beta: share of this step's cosine in phi, 0 to 1; 0.01 in the paper, 0.5 in LibMTL and TorchJD.
    """

    phi: Tensor
    pace: Tensor

    def __init__(
        self,
        tasks: TaskSet,
        *,
        beta: float = 0.01,
        **common: Any,
    ) -> None:
        super().__init__(tasks, **common)
        beta = number(self.name, "beta", beta, least=0, most=1)
        eye = torch.eye(len(tasks), dtype=_EXACT)
        self.register_buffer("phi", torch.zeros_like(eye))
        self.register_buffer("pace", beta * (1 - eye), persistent=False)  # a task has no target with itself

    def solve(self, geometry: Geometry, losses: Tensor) -> tuple[Tensor, Tensor | None]:
        norms, cosines = geometry.norms, geometry.cosines
        phi, pace = self.phi.to(norms.dtype), self.pace.to(norms.dtype)
        slope = phi.clamp(-STEEPEST, STEEPEST).asin().tan()  # phi / sqrt(1 - phi^2)
        if len(norms) == 2:
            # phi is symmetric, because both gradients are compared before any correction
            ok = norms.all()
            push = _correction(cosines, slope)[0, 1]
            self.keep(self.phi, torch.lerp(phi, cosines, pace), geometry.finite & ok)
            return 1 + push * pull_of_the_other(norms), ok

        eye = torch.eye(len(norms), dtype=norms.dtype, device=norms.device)
        alive = norms > 0
        both = alive[:, None] & alive
        tolerance = len(norms) * geometry.eps
        units, found, known = eye, torch.zeros_like(eye), eye.bool()
        for met in rounds(random_orders(len(norms), self.draw()), eye):
            products = units @ cosines
            square = (products * units).sum(1, keepdim=True)
            whole = square > tolerance * units.square().sum(1, keepdim=True)
            length = torch.where(whole, square, 1.0).sqrt()
            seen = (products / length).clamp(-1, 1)
            pair = met.bool() & both & whole
            units = torch.where(pair, units + length * _correction(seen, slope), units)
            found = torch.where(pair, seen, found)
            known = known | pair
        self.keep(self.phi, torch.lerp(phi, found, pace * known), geometry.finite)
        return summed(units, norms), known.all()


def _correction(cosines: Tensor, slope: Tensor) -> Tensor:
    """How much of the other's unit vector a unit vector needs to reach the target phi, slope = phi / sqrt(1 - phi^2).

    That is above 0 exactly where cos < phi: phi / sqrt(1 - phi^2) rises with phi.
    """
    return (slope * cosines.acos().sin() - cosines).relu()
