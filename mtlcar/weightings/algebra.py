"""What a Gramian says about the task gradients, in float64 and apart from their scale.

For a few tasks a step's cost is the number of operations, 1 to 3 us each. Those with a Python number among the
operands (`x > 0`, `torch.where(.., x, 1.0)`) are the slow ones.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mtlcar.exact import exact


@dataclass
class Geometry:
    """A Gramian taken apart: G_ij = n_i C_ij n_j.

    Attributes:
        norms: n_t >= 0, float64 [T].
        cosines: C float64 [T, T], symmetric, C_tt = 1, within [-1, 1]; 0 between a zero gradient and the others.
        finite: 0-d bool: whether Gramian and losses were finite. Where not, norms are 1 and cosines the identity, so
            that a solver goes through; what it then finds is replaced.
        eps: of the Gramian's own type, for the rank that its rounding still lets one see.
    """

    norms: Tensor
    cosines: Tensor
    finite: Tensor
    eps: float

    @property
    def gramian(self) -> Tensor:
        """float64 [T, T]."""
        return self.norms[:, None] * self.cosines * self.norms


def wide(x: Tensor) -> Tensor:
    """float64, where the device has it (Apple's GPUs do not)."""
    return x.to(exact(x.device))


def geometry(gramian: Tensor, losses: Tensor) -> Geometry:
    """Gramian [T, T] and losses [T] of any floating type -> `Geometry`, without waiting for the device."""
    g = wide(gramian)
    finite = is_finite(g.sum() + wide(losses).sum())  # a sum has one answer for all
    eye = torch.eye(len(g), dtype=g.dtype, device=g.device)
    g = torch.where(finite, g, eye)
    norms = g.diagonal().relu().sqrt()
    # By the product, so that C is symmetric to the last bit. Nothing but a norm of 0 makes a quotient NaN or infinite.
    cosines = (g / torch.outer(norms, norms)).nan_to_num(0.0, 0.0, 0.0).clamp(-1, 1)
    cosines = torch.lerp(cosines, eye, eye)  # exactly 1 on the diagonal, also for a zero gradient
    return Geometry(norms, cosines, finite, torch.finfo(gramian.dtype).eps)


def is_finite(x: Tensor) -> Tensor:
    """`x.isfinite()`, in half the time."""
    zero = x - x  # NaN for what is not a number or infinite
    return zero == zero


def pull_of_the_other(norms: Tensor) -> Tensor:
    """(n_2 / n_1, n_1 / n_2), for norms [2]; 0 for a norm of 0."""
    return (norms.flip(0) / norms).nan_to_num(0.0, 0.0)
