"""PCGrad: projecting conflicting gradients."""

import torch
from torch import Tensor

from mtlcar.weightings.algebra import Geometry, pull_of_the_other
from mtlcar.weightings.base import SolvedWeighting
from mtlcar.weightings.draws import RandomWeighting


class PCGrad(RandomWeighting, SolvedWeighting):
    """A copy of every task's gradient is projected onto the normal plane of each gradient that it points against.

    c_i = e_i; for j != i in random order: if (c_i G)_j < 0: c_i[j] -= (c_i G)_j / G_jj; w = sum_i c_i.

    Yu, Kumar, Gupta, Levine, Hausman, Finn: Gradient Surgery for Multi-Task Learning, 2020, arXiv 2001.06782.
    Works on shared parameters (the paper's choice) or on the bottleneck. No hyper-parameters.

    Weights sum to T without conflicts and to more with them: every w_t >= 1. With two tasks
    w_t = 1 + max(0, -cos) n_u / n_t, u the other one; that needs no random order, and none is drawn.

    It always has an answer. A gradient of zero conflicts with none: nothing is projected on it, and its own weight
    stays 1. Opposed gradients cancel in J^T w, with finite weights.

    Every task's order is drawn anew, as in the paper's algorithm; the authors' code draws one order for all tasks and
    then leaves it unused.
    """

    def solve(self, geometry: Geometry, losses: Tensor) -> tuple[Tensor, Tensor | None]:
        norms, cosines = geometry.norms, geometry.cosines
        if len(norms) == 2:
            return 1 + cosines[0, 1].neg().relu() * pull_of_the_other(norms), None
        units = torch.eye(len(norms), dtype=norms.dtype, device=norms.device)
        for met in rounds(random_orders(len(norms), self.draw()), units):
            units = units.addcmul((units @ cosines).clamp(max=0), met, value=-1)
        return summed(units, norms), None


def random_orders(tasks: int, generator: torch.Generator) -> list[list[int]]:
    """For every task the others in an order of its own."""
    drawn = torch.rand(tasks, tasks - 1, generator=generator, dtype=torch.float64).argsort(1).tolist()
    return [[k + (k >= i) for k in row] for i, row in enumerate(drawn)]


def rounds(orders: list[list[int]], eye: Tensor) -> tuple[Tensor, ...]:
    """T - 1 masks [T, T] in the type of `eye` [T, T]: in round k the only 1 of row i is in column orders[i][k].

    The copies of the gradients do not influence each other, so all T meet their next task at once. Stacked from rows
    that are on the device already: indices would have to be copied to it.
    """
    rows = eye.unbind()
    flat = torch.stack([rows[j] for met in zip(*orders, strict=True) for j in met])
    return flat.view(-1, *eye.shape).unbind()


def summed(units: Tensor, norms: Tensor) -> Tensor:
    """Weights [T] that add up T gradients. Row i of `units` [T, T] says how gradient i, for a norm of 1, is made of the
    unit vectors of all: numbers near 1, however far apart the norms are. A gradient of zero keeps its weight 1."""
    alive = norms > 0
    return torch.where(alive, (norms @ units) / torch.where(alive, norms, 1.0), 1.0)
