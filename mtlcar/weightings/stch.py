"""Smooth Tchebycheff scalarisation."""

from typing import Any

import torch
from torch import Tensor

from mtlcar.tasks import TaskSet
from mtlcar.weightings.epoch_means import EpochMeans
from mtlcar.weightings.log_losses import FLOOR, log_losses
from mtlcar.weightings.options import number, whole


class STCH(EpochMeans):
    """T mu log sum_t exp((log L_t - z_t) / mu), z_t = log(mean L_t over the epoch after the warm-up); until then
    sum_t log L_t.

    A smooth form of the largest relative loss: with mu -> 0 only the task that has improved least since z is trained.
    The weights are T softmax((log L - z) / mu)_t / L_t, before that 1 / L_t; they have no fixed sum, w_t L_t has T.

    Lin, Zhang, Yang, Liu, Wang, Zhang: Smooth Tchebycheff Scalarization for Multi-Objective Optimization, ICML 2024,
    arXiv 2402.19078, in the form for networks of the authors' code. Works on the losses. Their mu is 1 and their
    warm-up 4 epochs, all preferences equal.

    Way out: a loss of 1e-8 or less (such as the 0 of a batch without a label of that task) counts as 1e-8 and has the
    weight 0; the step is counted. A mean is that of the batches with a label of the task, and at least 1e-8; a task
    without any in that epoch has z = 0. The authors' code adds a tiny constant to every loss instead.

    Args:
        mu: smoothness, above 0.
        warmup_epochs: epochs before the one whose means give z, at least 0.
    """

    z: Tensor

    def __init__(
        self,
        tasks: TaskSet,
        *,
        mu: float = 1.0,
        warmup_epochs: int = 4,
        **common: Any,
    ) -> None:
        super().__init__(tasks, **common)
        self.mu = number(self.name, "mu", mu, above=0)
        self.warmup_epochs = whole(self.name, "warmup_epochs", warmup_epochs, least=0)
        self.register_buffer("z", torch.zeros(len(tasks)))

    def forward(self, losses: Tensor) -> Tensor:
        self.observe(losses)
        logs, known = log_losses(losses)
        self.degenerate += ~known.all()
        smooth = len(losses) * self.mu * torch.logsumexp((logs - self.z) / self.mu, 0)
        return torch.where(self.epochs > self.warmup_epochs, smooth, logs.sum()).to(losses.dtype)

    def epoch_ended(self, mean: Tensor, ok: Tensor) -> None:
        now = ok & (self.epochs == self.warmup_epochs)
        self.z.copy_(torch.where(now, mean.clamp(min=FLOOR).log(), self.z))
