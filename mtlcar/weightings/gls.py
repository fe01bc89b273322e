"""Geometric loss strategy."""

from torch import Tensor

from mtlcar.weightings.base import LossWeighting
from mtlcar.weightings.log_losses import log_losses


class GLS(LossWeighting):
    """The geometric mean of the losses, exp(mean_t log L_t) = (prod_t L_t)^(1/T).

    Its derivatives are the weights that are logged: w_t = GLS / (T L_t), so that every task adds the same share
    w_t L_t = GLS / T. They have no fixed sum; scaling one loss by a scales all others' weights by a^(1/T).

    Chennupati, Sistu, Yogamani, Rawashdeh: MultiNet++, CVPR workshops 2019, arXiv 1904.08492. Works on the losses. It
    has no hyper-parameters (the paper's variant that counts a focus loss twice is not here).

    Way out: a product with a factor of 0 would stop all tasks. A loss of 1e-8 or less (such as the 0 of a batch without
    a label of that task) is left out: weight 0, and the mean runs over the other tasks; the step is counted.

    LibMTL logs L_t / (T prod L), which is not what it applies.
    """

    def forward(self, losses: Tensor) -> Tensor:
        logs, known = log_losses(losses)
        self.degenerate += ~known.all()
        mean = (logs * known).sum() / known.sum().clamp(min=1)
        return mean.exp().to(losses.dtype)
