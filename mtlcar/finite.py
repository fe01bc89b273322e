"""A loss that stops being finite ends the run, and says when and where it happened."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

SHOWN = 8
"""Image files that the message names."""


class NonFiniteLossError(RuntimeError):
    """A NaN or infinite loss; the message names step, tasks and images. The job ends with exit status 1."""


class FiniteState:
    """The first step with a non-finite loss, found on the device without reading anything back.

    No module: DDP copies the first process's buffers over the others', and each process sees other images.
    """

    def __init__(self) -> None:
        self.step: Tensor | None = None
        self.bad: Tensor | None = None
        self.index: Tensor | None = None

    def update(self, losses: Tensor, index: Tensor, step: int) -> None:
        """losses [T], rows of the batch [B], the optimisation step they belong to."""
        bad = ~torch.isfinite(losses)
        if self.step is None or self.bad is None or self.index is None:
            self.step = torch.full((), -1, device=losses.device)
            self.bad, self.index = torch.zeros_like(bad), index
        new = bad.any() & (self.step < 0)
        self.step = torch.where(new, step, self.step)
        self.bad = torch.where(new, bad, self.bad)
        if self.index.shape != index.shape:  # a short last batch: pad, so that the shape never depends on a value
            index = torch.nn.functional.pad(index, (0, max(0, len(self.index) - len(index))), value=-1)[
                : len(self.index)
            ]
        self.index = torch.where(new, index, self.index)

    def read(self, names: tuple[str, ...], paths: Sequence[str] = ()) -> str | None:
        """A sentence on the first bad step, or None; the one place that waits for the device. `paths`: image files of
        all rows, for the batch's names."""
        if self.step is None or self.bad is None or self.index is None:
            return None
        step = int(self.step)
        if step < 0:
            return None
        tasks = ", ".join(n for n, b in zip(names, self.bad.tolist(), strict=True) if b)
        rows = [row for row in self.index.tolist() if row >= 0]
        shown = ", ".join(map(str, rows[:16])) + (", ..." if len(rows) > 16 else "")
        files = [paths[row] for row in rows[:SHOWN] if row < len(paths)]
        more = f" and {len(rows) - len(files)} more" if len(rows) > len(files) else ""
        images = f"; images: {', '.join(files)}{more}" if files else ""
        return f"the loss of {tasks} was not finite at step {step} (rows of the batch: {shown}{images})"


class StopOnNonFinite(Callback):
    """Reads `FiniteState` every n steps and at every epoch's end, so always before a checkpoint is written; the last
    checkpoint stays good. All processes stop together."""

    def __init__(self, every_n_steps: int = 50) -> None:
        self.every_n_steps = every_n_steps

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if self.every_n_steps and trainer.global_step % self.every_n_steps == 0:
            refuse_non_finite(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        refuse_non_finite(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        refuse_non_finite(trainer, pl_module)


def refuse_non_finite(trainer: Trainer, pl_module: Any) -> None:
    """Raises NonFiniteLossError, in all processes together, if a loss since the fit began was not finite."""
    annotations = getattr(getattr(trainer, "datamodule", None), "annotations", None)
    found = pl_module.finite.read(pl_module.architecture.tasks.names, getattr(annotations, "paths", ()))
    if trainer.strategy.reduce_boolean_decision(found is not None, all=False):
        raise NonFiniteLossError(
            f"Training stopped: {found or 'a loss was not finite on another process'}. The last good checkpoint is "
            "kept; going on from it does the same steps again. Look at the images, or begin another run with a lower "
            "optimizer.lr, trainer.gradient_clip_val=1, or trainer.precision=32-true."
        )
