"""Proportionally fair weights: one convex problem by damped Newton, a fixed number of steps, without waiting for the
device.

The problem is the minimum over z > 0 of z^T A z / 2 - sum_t m_t^2 psi(z_t) with A = diag(m) C diag(m), C the cosines
and psi'(z) = z^(-1/alpha): where it has one, C (m z) = m z^(-1/alpha). A step is the best of a few lengths along
Newton's direction: along straight lines, because nearly vanishing combinations make long straight valleys.
"""

import torch
from torch import Tensor

STEPS = 12
"""Enough down to the limits of float64 for alpha 1 (see the tests)."""
MORE_STEPS = 32
"""For the other alphas, whose functions are not self-concordant."""


class Elimination:
    """Solves A p = b for a positive definite A [T, T], T steps of elimination without pivots, in place in one
    tensor [T, T + 1] whose parts are cut once and used in every Newton step."""

    def __init__(self, like: Tensor) -> None:
        tasks = len(like)
        self.table = table = like.new_empty(tasks, tasks + 1)
        self.matrix = table[:, :tasks]
        self.right = table[:, tasks]
        self.diagonal = table.diagonal()
        self._down = [
            (table[k + 1 :, k + 1 :], table[k + 1 :, k], table[k, k], table[k, k + 1 :]) for k in range(tasks - 1)
        ]
        self._up = [(self.right[k], table[k, k], self.right[:k], table[:k, k]) for k in reversed(range(tasks))]

    def solve(self) -> Tensor:
        """The solution of `matrix` p = `right`, in `right`; both are used up."""
        for block, column, pivot, row in self._down:
            block.addr_(column / pivot, row, alpha=-1)
        for value, pivot, above, column in self._up:
            value.div_(pivot)
            if len(above):
                above.addcmul_(column, value, value=-1)
        return self.right


def fair(cosines: Tensor, m: Tensor | None, alpha: float) -> tuple[Tensor, Tensor]:
    """The z > 0 with C (m z) = m z^(-1/alpha).

    Args:
        cosines: C [T, T], float64.
        m: scales [T] > 0, best of the order of 1; None: all 1.
        alpha: > 0.

    Returns:
        z [T], and a 0-d bool: whether Newton arrived. It does not where no such z exists, and z then is anything.
    """
    ones = torch.ones_like(cosines[0])
    mass = ones if m is None else m.square()
    a = cosines if m is None else m[:, None] * cosines * m
    power = 1 - 1 / alpha  # psi(z) = (z^power - 1) / power, log z at 0
    system = Elimination(a)
    # Lengths to choose from, 1 first so that it wins where rounding cannot tell them apart: 1 to 16, 1/64 to 1/2.
    lengths = torch.roll(2.0 ** torch.arange(-6, 5, dtype=a.dtype, device=a.device), 5)
    z = p = ones
    for _ in range(STEPS if alpha == 1 else MORE_STEPS):
        torch.mul(torch.outer(z, z), a, out=system.matrix)
        pull = mass * z**power if power else mass
        torch.sub(pull, system.matrix.sum(1), out=system.right)
        system.diagonal.add_(pull, alpha=1 / alpha)
        p = system.solve()  # relative to z
        factors = torch.addr(ones.expand(len(lengths), -1), lengths, p)
        if power:
            # Scales of different size call some tasks back by far more than their z: along exponentials that is no
            # hindrance to the others.
            factors = torch.cat([factors, torch.outer(lengths, p).clamp(-20, 20).exp()])
        points = factors * z
        gain = (points.log() if not power else points**power / power) @ mass
        value = (points @ a * points).sum(1) / 2 - gain
        # Out of bounds the gain is NaN (or, for whole powers, a number).
        value = torch.where((points.amin(1) > 0) & value.isfinite(), value, torch.inf)
        # Near the solution, where values differ by rounding only, the full step, which is the first.
        far = p.abs().amax() >= 0.25 / (1 + 1 / alpha)
        z = points.index_select(0, (value.argmin() * far).view(1)).squeeze(0)
    return z, p.abs().amax() < 1e-3


def vanishing(cosines: Tensor, v: Tensor, eps: float) -> Tensor:
    """0-d bool: whether the direction d = sum v_t u_t (u the unit gradients, v > 0) vanishes on some of them, as far as
    the input's rounding lets one see: u_t d <= 4 eps sum v. It does where a positive combination of them vanishes."""
    return ~(cosines @ v > 4 * eps * v.sum()).all()
