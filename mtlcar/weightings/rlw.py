"""Random loss weighting."""

import torch
from torch import Tensor

from mtlcar.weightings.base import LossWeighting
from mtlcar.weightings.draws import RandomWeighting


class RLW(RandomWeighting, LossWeighting):
    """w = softmax(x), x from N(0, I) anew in every step.

    Lin, Ye, Zhang, Tsang: Reasonable Effectiveness of Random Weighting, TMLR 2022, arXiv 2111.10603; the paper's normal
    distribution, the first of its six. Works on the losses. It has no hyper-parameters. The weights sum to 1, so that
    they are 1 / T on average: the paper's learning rates are for that sum. Every loss has an answer.

    The draws are the weighting's own and a function of the run's seed and the step. All micro-batches of an accumulated
    step share theirs.
    """

    def forward(self, losses: Tensor) -> Tensor:
        drawn = torch.randn(len(losses), generator=self.draw(), dtype=losses.dtype).softmax(0)
        return (drawn.to(losses.device, non_blocking=True) * losses).sum()
