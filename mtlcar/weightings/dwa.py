"""Dynamic weight average."""

from typing import Any

import torch
from torch import Tensor

from mtlcar.tasks import TaskSet
from mtlcar.weightings.algebra import wide
from mtlcar.weightings.epoch_means import EpochMeans
from mtlcar.weightings.options import number


class DWA(EpochMeans):
    """w = T softmax(r / tau), r_t = mean loss of the last epoch / mean loss of the one before; 1 in the first two.

    A task whose loss falls slowly gets more weight. The weights stay as they are for an epoch and sum to T.

    Liu, Johns, Davison: End-to-End Multi-Task Learning with Attention, CVPR 2019, arXiv 1803.10704. Works on the
    losses. The paper's tau is 2 (a high temperature evens the weights out).

    A task's means are of the training losses of an epoch's batches that had a label of it, those of the last two
    epochs with such a batch. Way out: a task that has not had two, or whose mean was below 0 in the one before, has no
    ratio; it takes 1, that of a loss which does not change, and the step is counted.

    Args:
        tau: temperature, above 0.
    """

    last: Tensor
    before: Tensor

    def __init__(
        self,
        tasks: TaskSet,
        *,
        tau: float = 2.0,
        **common: Any,
    ) -> None:
        super().__init__(tasks, **common)
        self.tau = number(self.name, "tau", tau, above=0)
        self.register_buffer("last", torch.zeros(len(tasks)))  # 0: no epoch yet
        self.register_buffer("before", torch.zeros(len(tasks)))

    def forward(self, losses: Tensor) -> Tensor:
        self.observe(losses)
        young = self.epochs < 2
        known = (self.before > 0) & (self.last != 0)
        self.degenerate += ~(young | known.all())
        last, before = wide(self.last), wide(self.before)
        ratios = torch.where(known, last / torch.where(known, before, 1.0), 1.0)
        weights = torch.where(young, 1.0, len(losses) * torch.softmax(ratios / self.tau, 0))
        return (weights.to(losses.dtype) * losses).sum()

    def epoch_ended(self, mean: Tensor, ok: Tensor) -> None:
        self.before.copy_(torch.where(ok, self.last, self.before))
        self.last.copy_(torch.where(ok, mean, self.last))
