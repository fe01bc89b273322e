"""Nash-MTL."""

from typing import Any

import torch
from torch import Tensor

from mtlcar.tasks import TaskSet
from mtlcar.weightings.algebra import Geometry
from mtlcar.weightings.base import SolvedWeighting
from mtlcar.weightings.newton import fair, vanishing
from mtlcar.weightings.options import number


class NashMTL(SolvedWeighting):
    """The Nash bargaining solution: G a = 1 / a, a > 0 (Navon et al. 2022, arXiv 2202.01017).

    It minimises a^T G a / 2 - sum_t log a_t. With a = v / n that is C v = 1 / v, so norms leave the problem; for two
    tasks a_t = 1 / (n_t sqrt(1 + cos)). Level: parameters (the paper's) or representation.

    Sum of the weights: not fixed. ||sum_t a_t g_t|| is sqrt(T) always, whatever the gradients' norms, so that the
    learning rate has another meaning than elsewhere; `normalize` makes it comparable to other methods.

    Way out, counted: a gradient is zero, or a positive combination of the gradients vanishes (opposed ones, for
    instance) as far as the input's rounding lets one see: the direction's projection on some unit gradient, 1 / v_t,
    is at most 4 eps sum v, eps that of the Gramian's type (two tasks: 1 + cos <= 8 eps). Then a_t = 1 / n_t, its value
    for orthogonal gradients, and 0 for a zero gradient.

    Departs from the authors' code: the equation is solved, theirs linearises it 20 times with a convex solver, starting
    from the weights of the step before; weights are found in every step; and clipping is off, see `max_norm`.

    Args:
        max_norm: the largest ||sum_t a_t g_t||, longer ones are shortened to it; None: any. The authors' code: 1,
            which shortens every step, to 1 / sqrt(T).
    """

    def __init__(
        self,
        tasks: TaskSet,
        *,
        max_norm: float | None = None,
        **common: Any,
    ) -> None:
        super().__init__(tasks, **common)
        self.max_norm = None if max_norm is None else number(self.name, "max_norm", max_norm, above=0)

    def solve(self, geometry: Geometry, losses: Tensor) -> tuple[Tensor, Tensor]:
        n, c = geometry.norms, geometry.cosines
        v, ok = bargain(c, geometry.eps)
        ok = ok & n.all()
        v = torch.where(ok, v, 1.0)
        a = (v / n).nan_to_num(posinf=0.0)
        if self.max_norm is not None:
            direction = torch.where(n > 0, v, 0.0)
            length = (direction @ c @ direction).clamp(min=0).sqrt()
            # Not a quotient that may be 0 / 0: opposed gradients leave no direction at all.
            a = a * torch.where(length > self.max_norm, self.max_norm / length, 1.0)
        return a, ok


def bargain(cosines: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The v > 0 [T] with C v = 1 / v, and a 0-d bool that is false where there is none."""
    if len(cosines) == 2:
        lean = 1 + cosines[0, 1]
        return lean.rsqrt().expand(2), lean > 8 * eps  # `vanishing` for v = (1, 1)
    v, arrived = fair(cosines, None, 1.0)
    return v, arrived & ~vanishing(cosines, v, eps)
