"""GradNorm: gradient normalisation."""

from typing import Any

import torch
from torch import Tensor

from mtlcar.exact import exact
from mtlcar.tasks import TaskSet
from mtlcar.weightings.algebra import Geometry, is_finite
from mtlcar.weightings.base import SolvedWeighting
from mtlcar.weightings.options import number

_EXACT = exact()
FLOOR = 1e-8
"""Least weight before they are rescaled: a task that one step would have turned uphill can come back."""


class GradNorm(SolvedWeighting):
    """Trained weights that bring the weighted gradients to one length, longer for tasks that lag behind.

    target_t = mean_u(w_u n_u) r_t^alpha, r_t = (L_t / L_t(0)) / mean_u(L_u / L_u(0)), n_t the norm of the raw gradient
    of L_t, divided by the mean of these norms so that lr means the same at any scale of the gradients. The weights
    descend sum_t |w_t n_t - target_t| with the targets held constant: w_t <- w_t - lr sign(w_t n_t - target_t) n_t,
    then w <- T max(w, 1e-8) / sum. A step is weighted before the weights move: the first has w = 1.

    Chen, Badrinarayanan, Lee, Rabinovich: GradNorm, ICML 2018, arXiv 1711.02257. Works on all shared parameters or on
    the bottleneck (the paper: on the last shared layer). Weights sum to T.

    w and L(0), a task's first finite loss above 0, are checkpointed. Ways out: where the rates are undefined (a task
    has had no loss above 0 yet, or all losses are 0) or all gradients are zero, the weights stay as they are, and the
    step is counted. One gradient of zero leaves an answer: that task's weight moves by the rescaling alone.

    LibMTL trains a softmax of free parameters with the network's optimiser instead, on raw norms, and takes L(0) from
    the mean of an epoch at equal weights. A weight on its target to within rounding stays: sign() would follow noise.

    Args:
        alpha: strength of the pull on the tasks that lag behind, at least 0; the paper's 1.5 is for NYUv2.
        lr: step size of the weights, above 0; .025 in the paper.
    """

    w: Tensor
    initial: Tensor
    even: Tensor

    def __init__(
        self,
        tasks: TaskSet,
        *,
        alpha: float = 1.5,
        lr: float = 0.025,
        **common: Any,
    ) -> None:
        super().__init__(tasks, **common)
        self.alpha = number(self.name, "alpha", alpha, least=0)
        self.lr = number(self.name, "lr", lr, above=0)
        self.register_buffer("even", torch.full((len(tasks),), 1 / len(tasks), dtype=_EXACT), persistent=False)
        self.register_buffer("w", torch.ones(len(tasks), dtype=_EXACT))
        self.register_buffer("initial", torch.full((len(tasks),), torch.nan, dtype=_EXACT))

    def solve(self, geometry: Geometry, losses: Tensor) -> tuple[Tensor, Tensor | None]:
        even = self.even.to(losses.dtype)  # its product with a vector is the mean, at a third of the time
        applied = self.w.to(losses.dtype, copy=True)
        initial = self.initial.to(losses.dtype)
        initial = torch.where(initial.isnan() & (losses > 0), losses, initial)
        ratios = (losses / initial).relu()

        norms = geometry.norms / (geometry.norms @ even)
        weighted = applied * norms
        targets = (weighted @ even) * (ratios / (ratios @ even)) ** self.alpha
        gaps = weighted - targets
        off = gaps.abs() > (weighted + targets) * (8 * geometry.eps)
        moved = torch.addcmul(applied, gaps.sign().mul_(off), norms, value=-self.lr).clamp(min=FLOOR)

        ok = is_finite(targets.sum())  # 0 / 0 above, or an L(0) still unknown, is a NaN here
        self.keep(self.initial, initial, geometry.finite)
        self.keep(self.w, moved / (moved @ even), geometry.finite & ok)
        return applied, ok
