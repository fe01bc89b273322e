"""A loss that stops being finite ends the run, and says when and where it happened."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn


class NonFiniteLossError(RuntimeError):
    """A NaN or infinite loss; the message names step, tasks and images."""


class FiniteState(nn.Module):
    """The first step with a non-finite loss, found on the device without reading anything back.

    Args:
        tasks: number T of losses.
    """

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.register_buffer("step", torch.full((), -1), persistent=False)
        self.register_buffer("bad", torch.zeros(tasks, dtype=torch.bool), persistent=False)
        self.step: Tensor
        self.bad: Tensor
        self.index: Tensor | None = None

    def update(self, losses: Tensor, index: Tensor, step: int) -> None:
        """losses [T], rows of the batch [B], the optimisation step they belong to."""
        bad = ~torch.isfinite(losses)
        new = bad.any() & (self.step < 0)
        self.step = torch.where(new, step, self.step)
        self.bad = torch.where(new, bad, self.bad)
        known = self.index if self.index is not None and self.index.shape == index.shape else index
        self.index = torch.where(new, index, known)

    def read(self, names: tuple[str, ...]) -> str | None:
        """A sentence on the first bad step, or None; the one place that waits for the device."""
        step = int(self.step)
        if step < 0:
            return None
        tasks = ", ".join(n for n, b in zip(names, self.bad.tolist(), strict=True) if b)
        rows = self.index.tolist() if self.index is not None else []
        shown = ", ".join(map(str, rows[:16])) + (", ..." if len(rows) > 16 else "")
        return f"the loss of {tasks} was not finite at step {step} (rows of the batch: {shown})"


class StopOnNonFinite(Callback):
    """Reads `FiniteState` every n steps and at every epoch's end, so always before a checkpoint is written; the last
    checkpoint stays good."""

    def __init__(self, every_n_steps: int = 50) -> None:
        self.every_n_steps = every_n_steps

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.global_step % self.every_n_steps == 0:
            self._check(pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check(pl_module)

    def _check(self, pl_module: Any) -> None:
        found = pl_module.finite.read(pl_module.architecture.tasks.names)
        if found:
            raise NonFiniteLossError(
                f"Training stopped: {found}. The last good checkpoint is kept. "
                "Try a lower optimizer.lr, trainer.gradient_clip_val=1, or trainer.precision=32-true."
            )
