"""Equal weighting: the sum of the losses."""

from torch import Tensor

from mtlcar.weightings.base import LossWeighting


class Equal(LossWeighting):
    """sum_t L_t: every weight is 1, the weights sum to T. The baseline of every comparison."""

    constant = True

    def forward(self, losses: Tensor) -> Tensor:
        return losses.sum()
