"""Wall-clock time of training, per epoch and per step."""

import statistics
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class Timing(Callback):
    """Seconds of the whole fit, images a second while training (validation not counted), median time of a batch
    (a step, but for accumulation).

    Times are the host's; nothing is synchronised, so single steps on a GPU say when work was queued and only their
    sum over an epoch says how long it took.
    """

    def __init__(self) -> None:
        self.fit_seconds = 0.0
        self.search_seconds = 0.0  # of trainings before this one, to choose constants by
        self.epochs = 0
        self.images = 0
        self.steps: list[float] = []
        self._fit_start = self._last = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._fit_start = time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        self.steps.append(now - self._last)
        self._last = now
        self.images += len(batch["index"]) * trainer.world_size

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.fit_seconds = time.perf_counter() - self._fit_start
        self.epochs = trainer.current_epoch

    def summary(self) -> dict[str, float]:
        return {
            "fit_seconds": round(self.search_seconds + self.fit_seconds, 3),
            "search_seconds": round(self.search_seconds, 3),
            "epochs": self.epochs,
            "train_images_per_second": round(self.images / sum(self.steps), 3) if self.steps else 0.0,
            "step_ms_median": round(1e3 * statistics.median(self.steps), 3) if self.steps else 0.0,
        }
