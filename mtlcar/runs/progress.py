"""What a run shows while it trains: a bar on a terminal, one plain line an epoch in a log."""

import sys
import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from lightning.pytorch.utilities.rank_zero import rank_zero_only


def progress(terminal: bool | None = None) -> ProgressBar:
    """Rich's progress bar on a terminal (None: look whether stdout is one), else `EpochLines`.

    Either replaces Lightning's own bar; leave `enable_progress_bar` at its default.
    """
    shown = sys.stdout.isatty() if terminal is None else terminal
    return Bar(leave=True) if shown else EpochLines()


class Bar(RichProgressBar):
    """Lightning's, without the end of the logger's id, which says nothing here."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


class EpochLines(ProgressBar):
    """One line an epoch: `epoch 3/8 | 41.2 s | 512 images/s | val/model/accuracy 0.6512 | ...`.

    Seconds are the whole epoch with its validation; images per second count training batches alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self._enabled = True
        self._began = self._trained = 0.0
        self._images = 0

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.on_train_epoch_start(trainer)  # Lightning leaves that out when it resumes within an epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._began = self._trained = time.perf_counter()
        self._images = 0

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._images += len(batch["image"]) * trainer.world_size
        self._trained = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if not self._enabled:
            return
        # GPU work may still be queued at a batch's end; over an epoch that is a few steps at most.
        speed = self._images / max(self._trained - self._began, 1e-9)
        of = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
        parts = [f"epoch {trainer.current_epoch + 1}{of}", f"{time.perf_counter() - self._began:.1f} s"]
        parts += [f"{speed:.0f} images/s"]
        parts += [f"{k} {float(v):.4g}" for k, v in sorted(trainer.callback_metrics.items()) if is_headline(k)]
        _write(" | ".join(parts))


def is_headline(name: str) -> bool:
    """Validation loss, accuracy or error: what a reader of the log looks for."""
    return name.startswith("val/") and name.rsplit("/", 1)[-1] in ("loss", "accuracy", "mae")


@rank_zero_only
def _write(line: str) -> None:
    print(line, flush=True)
