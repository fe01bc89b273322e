"""UPGrad: every task's gradient, moved as little as no conflict demands."""

from typing import Any, ClassVar

import torch
from torch import Tensor

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
from mtlcar.weightings.algebra import Geometry, pull_of_the_other
from mtlcar.weightings.base import SolvedWeighting


class UPGrad(SolvedWeighting):
    """w = mean over i of argmin { v^T G v : v >= e_i }: the mean of the task gradients, each projected onto the cone
    of directions that no task objects to (Quinton & Rey 2024, arXiv 2406.16232).

    Works at either level; no hyper-parameters. The weights sum to 1 where nothing conflicts, and to more where
    something does. A zero gradient conflicts with none: its weight is 1 / T. It always has an answer; where
    projections have several (opposed gradients among the others) the vertices of their set are averaged, with v_i = 1.

    Departs from the authors' code: exact, without its ridge of 1e-4 and its cut-off for small norms.
    """

    total: ClassVar[str] = "1"

    def __init__(
        self,
        tasks: TaskSet,
        **common: Any,
    ) -> None:
        super().__init__(tasks, **common)
        self.register_buffer("supports", all_supports(len(tasks)), persistent=False)
        self.supports: Tensor

    def solve(self, geometry: Geometry, losses: Tensor) -> tuple[Tensor, Tensor | None]:
        norms, cosines = geometry.norms, geometry.cosines
        # With z = v n / n_i the problem is min z^T C z, z >= e_i: lengths play no part. Row i is z - e_i, so that
        # a gradient's own share stays exact next to much longer ones.
        if len(norms) == 2:
            return (1 + cosines[0, 1].neg().relu() * pull_of_the_other(norms)) * 0.5, None
        order = settled_order(norms, cosines)
        norms, cosines = norms[order], cosines[order][:, order]
        solver = self._enumerated if len(self.supports) else _iterated
        added = norms @ solver(cosines, geometry.eps)
        found = (1 + added / torch.where(norms > 0, norms, 1.0)) / len(norms)
        return torch.empty_like(found).index_copy_(0, order, found), None

    def _enumerated(self, cosines: Tensor, eps: float) -> Tensor:
        tolerance = rank_tolerance(len(cosines), eps)
        x, regular = solve_supports(self.supports, cosines, -cosines, tolerance)
        x = x.mT.clamp(min=0)  # [M, i, T]
        along = cosines + x @ cosines
        # Optimal: x >= 0, every product with a gradient >= 0, and one of the two 0, for all but task i itself.
        own = torch.eye(len(cosines), dtype=torch.bool, device=cosines.device)
        violation = torch.minimum(along, x).abs().masked_fill(own, 0).amax(2)
        violation = violation.masked_fill(self.supports | ~regular[:, None], torch.inf)
        return least_violated(violation, x, tie(eps, cosines.dtype))


def _iterated(cosines: Tensor, eps: float) -> Tensor:
    c = cosines.cpu()
    tasks = len(c)
    x = torch.zeros_like(c)
    for i in range(tasks):
        others = torch.arange(tasks) != i
        x[i, others] = nonnegative(c[others][:, others], -c[i, others], eps)
    return x.to(cosines.device)
