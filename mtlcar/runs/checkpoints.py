"""When a run saves itself, and what a checkpoint holds beyond Lightning's part."""

import logging
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from mtlcar.errors import UserError
from mtlcar.finite import NonFiniteLossError, refuse_non_finite
from mtlcar.runs.checkpoint_files import second_name
from mtlcar.runs.files import to_disk
from mtlcar.runs.interrupts import INTERRUPTS, Interrupts, Stopped
from mtlcar.runs.randomness import random_state, restore_random_state

log = logging.getLogger("mtlcar")
AGREE = 10
"""Steps after which the processes of one job tell each other whether one was told to stop, or it is time to save."""
WRITER = ("inline_container", "PytorchStreamWriter")
"""In the messages of torch's own errors while it writes a file."""
Saved = Callable[[int, int], None]


class CheckpointError(RuntimeError):
    """A checkpoint could not be written; the ones before are whole."""


class WholeFiles(TorchCheckpointIO):
    """Writes where it is told to, and waits until it is on the disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        torch.save(checkpoint, path)
        to_disk(Path(path))


class Checkpoints(Checkpoint):
    """`last.ckpt` and `previous.ckpt`, the two newest, and `best.ckpt` by the monitored metric.

    Saved are the end of every validated epoch, and moments after an optimizer step: when `every_minutes` or
    `every_steps` have passed, and when a signal asks the run to end. One file is written, under a temporary name; the
    three are names for it, so that a crash at any moment leaves a whole one. Equal values of the metric go to the later
    epoch: when accuracy reaches its ceiling early, the other tasks go on improving. A NaN is never better than a
    number.

    A training that goes on from one of them is, bit for bit on a CPU, the one that was never stopped: the state has the
    random generators of all processes and the number of rows logged so far.

    Args:
        folder: where the files go.
        monitor, mode: the metric, `max` or `min`.
        every_minutes, every_steps: None: at the ends of epochs only.
        run: fingerprint of the run; a checkpoint of another one is refused.
        config: what of the run's configuration says what its parameters mean (`network_config`), to say in what another
            one differs.
        saved: called with step and epoch in the main process when a checkpoint is there.
    """

    def __init__(
        self,
        folder: Path,
        monitor: str,
        mode: str,
        *,
        every_minutes: float | None = None,
        every_steps: int | None = None,
        run: str = "",
        config: dict[str, Any] | None = None,
        saved: Saved | None = None,
        interrupts: Interrupts = INTERRUPTS,
    ) -> None:
        self.folder = folder
        self.monitor = monitor
        self.mode = mode
        self.every_seconds = math.inf if every_minutes is None else 60 * every_minutes
        self.every_steps = math.inf if every_steps is None else every_steps
        self.run = run
        self.config = config or {}
        self.saved = saved
        self.interrupts = interrupts
        self.value = float("nan")
        self.epoch = -1
        self.step = -1
        self.best_values: dict[str, float] = {}
        self.steps = 0  # of the whole fit so far
        self.finished = False
        self.rows = 0
        self._random: list[dict[str, Any]] = []
        self._validated = False  # Lightning keeps the metrics of earlier epochs; this one's may be missing
        self._saved_at, self._saved_step, self._seen = time.monotonic(), 0, -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step
        self._seen = trainer.global_step
        steps = _of_all(trainer.global_step, trainer.world_size)
        if len(set(steps)) > 1:
            raise UserError(f"The processes of this job found different checkpoints (steps {steps}): start it again.")
        if len(self._random) == trainer.world_size:
            restore_random_state(self._random[trainer.global_rank], pl_module.device)
        elif self._random:
            log.warning(
                "This run began with %d processes and goes on with %d: its random numbers are others from here on.",
                len(self._random),
                trainer.world_size,
            )
            torch.manual_seed(torch.initial_seed() + trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.global_step == self._seen:  # between the micro-batches of a step
            return
        self._seen = trainer.global_step
        if trainer.is_last_batch:  # the epoch's end saves
            return
        stop, due = self._wishes(trainer)
        if stop or due:
            self._save(trainer, pl_module)
        if stop:
            raise Stopped(stop, saved=True)

    def _wishes(self, trainer: Trainer, every: int = AGREE) -> tuple[int, bool]:
        """The signal to obey now (0: none), and whether it is time to save; the same for all processes, which ask each
        other after `every` steps."""
        stop = self.interrupts.requested or 0
        due = time.monotonic() - self._saved_at >= self.every_seconds
        if trainer.world_size > 1:
            if trainer.global_step % every:
                stop, due = 0, False
            else:
                both = torch.tensor([stop, due], device=trainer.strategy.root_device)
                dist.all_reduce(both, dist.ReduceOp.MAX)
                stop, due = both.tolist()
        return int(stop), bool(due) or trainer.global_step - self._saved_step >= self.every_steps

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validated = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epochs = trainer.max_epochs or -1
        self.finished = trainer.should_stop or trainer.current_epoch + 1 >= epochs > 0
        better = self._validated and self._compare(trainer)
        stop, due = self._wishes(trainer, every=1)
        if self._validated or self.finished or stop or due:
            self._save(trainer, pl_module, best=better)
        self._validated = False
        if stop and not self.finished:
            raise Stopped(stop, saved=True)

    def _compare(self, trainer: Trainer) -> bool:
        """Whether this epoch's network is the best so far."""
        values = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        if not math.isfinite(values.get("val/loss", 0.0)):
            raise NonFiniteLossError(
                f"Training stopped: val/loss was {values['val/loss']} after epoch {trainer.current_epoch + 1}. "
                "The last good checkpoint is kept. Try a lower optimizer.lr or trainer.gradient_clip_val=1."
            )
        if self.monitor not in values:
            raise UserError(
                f"monitor={self.monitor} has no value on the validation images (too few labels of that task?). "
                f"There are: {', '.join(sorted(values))}."
            )
        value = values[self.monitor]
        better = math.isnan(self.value) or (value >= self.value if self.mode == "max" else value <= self.value)
        if better:
            self.value, self.epoch, self.step = value, trainer.current_epoch, trainer.global_step
            self.best_values = values
        return better

    def _save(self, trainer: Trainer, pl_module: LightningModule, best: bool = False) -> None:
        refuse_non_finite(trainer, pl_module)
        self.steps = trainer.global_step
        self._random = _of_all(random_state(pl_module.device), trainer.world_size)
        for logger in trainer.loggers:
            logger.sync()  # type: ignore[attr-defined]  # all are RunLogs
            self.rows = logger.count  # type: ignore[attr-defined]
        new = self.folder / ".new.ckpt"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            trainer.save_checkpoint(new)
        except (OSError, RuntimeError) as error:
            new.unlink(missing_ok=True)
            if not isinstance(error, OSError) and not any(word in str(error) for word in WRITER):
                raise
            free = shutil.disk_usage(self.folder).free / 2**20 if self.folder.is_dir() else 0
            first = not (self.folder / "last.ckpt").exists()
            before = "It would have been the first: " if first else "The one before is whole: "
            reason = str(error) if isinstance(error, OSError) else "torch.save failed"
            raise CheckpointError(
                f"The checkpoint of step {self.steps} could not be written to {self.folder} ({reason}); "
                f"{free:,.1f} MB are free there. {before}make room, and the same command goes on."
            ) from error
        if trainer.is_global_zero:
            last = self.folder / "last.ckpt"
            if best:
                second_name(new, self.folder / "best.ckpt")
            if last.exists():
                last.replace(self.folder / "previous.ckpt")
            new.replace(last)
            to_disk(self.folder)
            if self.saved:
                self.saved(self.steps, trainer.current_epoch)
        trainer.strategy.barrier()
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step

    def state_dict(self) -> dict[str, Any]:
        return {
            "value": self.value,
            "epoch": self.epoch,
            "step": self.step,
            "best_values": self.best_values,
            "steps": self.steps,
            "finished": self.finished,
            "run": self.run,
            "config": self.config,
            "rows": self.rows,
            "random": self._random,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.value, self.epoch, self.step = state_dict["value"], state_dict["epoch"], state_dict["step"]
        self.best_values = state_dict["best_values"]
        self.steps, self.finished, self.rows = state_dict["steps"], state_dict["finished"], state_dict["rows"]
        self._random = state_dict["random"]


def _of_all(state: Any, world: int) -> list[Any]:
    """Every process's own, by rank."""
    if world == 1:
        return [state]
    states: list[Any] = [None] * world
    dist.all_gather_object(states, state)
    return states
