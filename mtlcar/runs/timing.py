"""Wall-clock time of training, per epoch and per step."""

import statistics
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

KEPT = 10_000
"""Latest batch times that the median is of, and that a checkpoint holds."""


class Timing(Callback):
    """Seconds of the whole fit, images a second while training (validation not counted), median time of a batch
    (a step, but for accumulation). A resumed run goes on counting; what was lost after its checkpoint is not in it.

    Times are the host's; nothing is synchronised, so single steps on a GPU say when work was queued and only their
    sum over an epoch says how long it took.
    """

    def __init__(self) -> None:
        self.search_seconds = 0.0  # of trainings before this one, to choose constants by
        self.epochs = 0
        self.sessions = 1
        self.images = 0
        self.training = 0.0  # seconds of all batches
        self.steps: deque[float] = deque(maxlen=KEPT)
        self._before = 0.0  # seconds of earlier sessions
        self._fit_start: float | None = None
        self._last = 0.0

    @property
    def fit_seconds(self) -> float:
        return self._before + (0.0 if self._fit_start is None else time.perf_counter() - self._fit_start)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._fit_start = time.perf_counter()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last = time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        self.steps.append(now - self._last)
        self.training += now - self._last
        self._last = now
        self.images += len(batch["index"]) * trainer.world_size

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.epochs = trainer.current_epoch + 1

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._before, self._fit_start = self.fit_seconds, None

    def state_dict(self) -> dict[str, Any]:
        return {
            "seconds": self.fit_seconds,
            "epochs": self.epochs,
            "sessions": self.sessions,
            "images": self.images,
            "training": self.training,
            "steps": list(self.steps),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before, self.epochs = state_dict["seconds"], state_dict["epochs"]
        self.sessions = state_dict["sessions"] + 1
        self.images, self.training = state_dict["images"], state_dict["training"]
        self.steps = deque(state_dict["steps"], maxlen=KEPT)

    def summary(self) -> dict[str, float]:
        return {
            "fit_seconds": round(self.search_seconds + self.fit_seconds, 3),
            "search_seconds": round(self.search_seconds, 3),
            "sessions": self.sessions,
            "epochs": self.epochs,
            "train_images_per_second": round(self.images / self.training, 3) if self.training else 0.0,
            "step_ms_median": round(1e3 * statistics.median(self.steps), 3) if self.steps else 0.0,
        }


class FirstStep(Callback):
    """Says when the first optimizer step of this session was done, on the device too: from then on a run computes. It
    waits for the device at that step alone.

    Args:
        say: called once, with seconds since the epoch, in the main process.
    """

    def __init__(self, say: Callable[[float], None]) -> None:
        self.say = say
        self._before: int | None = None  # optimizer steps of earlier sessions; None: nothing to say (any more)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._before = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if self._before is None or trainer.global_step == self._before:
            return
        self._before = None
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self.say(time.time())
