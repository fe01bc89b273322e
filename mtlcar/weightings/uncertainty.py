"""Weights from learnt task uncertainties."""

from typing import Any

import torch
from torch import Tensor, nn

from mtlcar.tasks import TaskSet
from mtlcar.weightings.base import LossWeighting


class Uncertainty(LossWeighting):
    """sum_t k_t exp(-s_t) L_t + s_t / 2, k_t = 1 for a classification and 1/2 for a regression.

    s_t = log sigma_t^2 is trained with the network, at its learning rate and without weight decay, from 0: the first
    weights are 1 and 1/2. The factors follow from the likelihoods: a Gaussian of variance sigma^2, and a softmax whose
    logits are divided by sigma^2. At the optimum of s each k_t exp(-s_t) L_t is 1/2.

    Kendall, Gal, Cipolla: Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics, CVPR
    2018, arXiv 1705.07115. Works on the losses. It has no hyper-parameters. The weights k_t exp(-s_t) have no fixed
    sum. Every finite loss has an answer.

    Many re-implementations (LibMTL's among them, from s = -1/2) treat every task as a regression.
    """

    k: Tensor

    def __init__(
        self,
        tasks: TaskSet,
        **common: Any,
    ) -> None:
        super().__init__(tasks, **common)
        k = [1.0 if task.kind == "classification" else 0.5 for task in tasks]
        self.register_buffer("k", torch.tensor(k), persistent=False)
        # One task is not weighted, and a parameter that no loss reaches would stop DDP.
        self.s = nn.Parameter(torch.zeros(len(tasks)), requires_grad=len(tasks) > 1)

    def forward(self, losses: Tensor) -> Tensor:
        return (self.k * torch.exp(-self.s) * losses + self.s / 2).sum()
