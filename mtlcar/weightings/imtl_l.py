"""Impartial multi-task learning, the half that balances losses."""

from typing import Any

import torch
from torch import Tensor, nn

from mtlcar.tasks import TaskSet
from mtlcar.weightings.base import LossWeighting


class IMTLL(LossWeighting):
    """sum_t exp(s_t) L_t - s_t: trained scales that bring all losses to 1.

    s is trained with the network, at its learning rate and without weight decay, from 0: the first weights are 1. The
    derivative exp(s_t) L_t - 1 is zero where the scaled loss is 1, whatever the task's unit.

    Liu et al.: Towards Impartial Multi-task Learning, ICLR 2021 (the part IMTL-L). Works on the losses. It has no
    hyper-parameters. The weights exp(s_t) have no fixed sum. Every finite loss has an answer; a loss that stays 0 lets
    its s grow by the learning rate a step.

    The authors published no code. LibMTL has this half only as part of its IMTL.
    """

    def __init__(
        self,
        tasks: TaskSet,
        **common: Any,
    ) -> None:
        super().__init__(tasks, **common)
        # One task is not weighted, and a parameter that no loss reaches would stop DDP.
        self.s = nn.Parameter(torch.zeros(len(tasks)), requires_grad=len(tasks) > 1)

    def forward(self, losses: Tensor) -> Tensor:
        return (self.s.exp() * losses - self.s).sum()
