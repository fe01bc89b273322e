"""Weightings that look at the mean losses of whole epochs."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from mtlcar.weightings.base import LossWeighting


class EpochMeans(LossWeighting):
    """A weighting that is told each epoch's mean losses, when the epoch ends.

    Every batch of training counts once, a micro-batch like a batch; one with a loss that is not finite does not count.
    A batch without a label of a task gives that task a loss of exactly 0, which is no loss and does not enter its mean.
    An epoch without a batch is no epoch. Nothing waits for the device, and a run that goes on from the middle of an
    epoch has the batches before.

    Attributes:
        mean: float32 [T], of this epoch so far; as a mean and not a sum, which would lose digits over a long epoch.
        batches: int64 [T], those of this epoch so far that are in each task's mean.
        epochs: int64 0-d, ended so far.
    """

    mean: Tensor
    batches: Tensor
    epochs: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("mean", torch.zeros(len(self.tasks)))
        self.register_buffer("batches", torch.zeros(len(self.tasks), dtype=torch.int64))
        self.register_buffer("epochs", torch.zeros((), dtype=torch.int64))

    @abstractmethod
    def epoch_ended(self, mean: Tensor, ok: Tensor) -> None:
        """The mean losses [T] of epoch number `epochs`, from 0, which just ended. `ok` (bool [T]): it had a batch with
        that task; the others' mean is 0."""

    def observe(self, losses: Tensor) -> None:
        """Count the losses [T] of a batch; to be called once by `forward`."""
        if not (self.training and torch.is_grad_enabled()):
            return
        with torch.no_grad():
            ok = losses.sum().isfinite() & (losses != 0)
            self.batches += ok
            new = self.mean + (losses - self.mean) / self.batches.clamp(min=1)
            self.mean.copy_(torch.where(ok, new, self.mean))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        with torch.no_grad():
            ok = self.batches > 0
            self.epoch_ended(self.mean, ok)
            self.epochs += ok.any()
            self.batches.zero_()
            self.mean.zero_()
