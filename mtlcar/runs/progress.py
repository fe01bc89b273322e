"""What a run shows while it trains: one line an epoch, and a bar below them on a terminal."""

import sys
import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from lightning.pytorch.utilities.rank_zero import rank_zero_only


def progress(terminal: bool | None = None, *, name: str = "") -> ProgressBar:
    """On a terminal a bar with a line above it for each epoch that is over, else the lines alone.

    Either replaces Lightning's own bar; leave `enable_progress_bar` at its default.

    Args:
        terminal: None: look whether stdout is one.
        name: stands before each line where other runs print to the same place; bars would be drawn over each other.
    """
    shown = sys.stdout.isatty() and not name if terminal is None else terminal
    return Bar() if shown else EpochLines(name)


class Epochs(ProgressBar):
    """One line an epoch: `epoch 3/8 | 41.2 s | 512 images/s | val/model/accuracy 0.6512 | ...`.

    Seconds are the whole epoch with its validation; images per second count training batches alone.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._began = self._trained = 0.0
        self._images = 0

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        super().on_train_start(trainer, module)
        self._begin()  # Lightning leaves on_train_epoch_start out when it resumes within an epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        super().on_train_epoch_start(trainer, module)
        self._begin()

    def _begin(self) -> None:
        self._began = self._trained = time.perf_counter()
        self._images = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, module, outputs, batch, batch_idx)
        self._images += len(batch["image"]) * trainer.world_size
        self._trained = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        super().on_train_epoch_end(trainer, module)
        # GPU work may still be queued at a batch's end; over an epoch that is a few steps at most.
        speed = self._images / max(self._trained - self._began, 1e-9)
        of = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
        parts = [f"epoch {trainer.current_epoch + 1}{of}", f"{time.perf_counter() - self._began:.1f} s"]
        parts += [f"{speed:.0f} images/s"]
        parts += [f"{k} {float(v):.4g}" for k, v in sorted(trainer.callback_metrics.items()) if is_headline(k)]
        self.write(" | ".join(parts))

    def write(self, line: str) -> None:
        raise NotImplementedError


class Bar(Epochs, RichProgressBar):
    """Lightning's, without the end of the logger's id, which says nothing here.

    Drawn five times a second: Lightning's hundred are Python's time, taken from the steps.
    """

    def __init__(self) -> None:
        super().__init__(refresh_rate=5, leave=False)

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics

    def _get_train_description(self, current_epoch: int) -> str:
        return f"epoch {current_epoch + 1}/{self.trainer.max_epochs}"  # Lightning counts from 0, and its lines from 1

    def write(self, line: str) -> None:
        if self.progress is not None and self.is_enabled:
            self.progress.console.print(line, highlight=False, markup=False)


class EpochLines(Epochs):
    """The lines alone, for a log."""

    def __init__(self, name: str = "") -> None:
        super().__init__()
        self._enabled = True
        self._start = f"{name} " if name else ""

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def write(self, line: str) -> None:
        if self._enabled:
            _write(self._start + line)


def is_headline(name: str) -> bool:
    """Validation loss, accuracy or error: what a reader of the log looks for."""
    return name.startswith("val/") and name.rsplit("/", 1)[-1] in ("loss", "accuracy", "mae")


@rank_zero_only
def _write(line: str) -> None:
    print(line, flush=True)
