"""Best and last checkpoint of a run."""

import math
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from mtlcar.errors import UserError
from mtlcar.finite import NonFiniteLossError


class Checkpoints(Checkpoint):
    """`last.ckpt` and `previous.ckpt` of the latest validated epochs, `best.ckpt` by the monitored metric.

    One file is written an epoch, under a temporary name; the three are names for it, so that a crash at any moment
    leaves a whole one. Equal values go to the later epoch: when accuracy reaches its ceiling early, the other tasks
    go on improving. A NaN is never better than a number.

    Args:
        folder: where the files go.
        monitor, mode: the metric, `max` or `min`.
    """

    def __init__(self, folder: Path, monitor: str, mode: str) -> None:
        self.folder = folder
        self.monitor = monitor
        self.mode = mode
        self.value = float("nan")
        self.epoch = -1
        self.step = -1
        self.best_values: dict[str, float] = {}
        self.steps = 0  # of the whole fit so far
        self._validated = False  # Lightning keeps the metrics of earlier epochs; this one's may be missing

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validated = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._validated:
            return
        self._validated = False
        self.steps = trainer.global_step
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
        new = self.folder / ".new.ckpt"
        trainer.save_checkpoint(new)
        if trainer.is_global_zero:
            last = self.folder / "last.ckpt"
            if better:
                second_name(new, self.folder / "best.ckpt")
            if last.exists():
                last.replace(self.folder / "previous.ckpt")
            new.replace(last)
        trainer.strategy.barrier()

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value, "epoch": self.epoch, "step": self.step, "best_values": self.best_values}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.value, self.epoch, self.step = state_dict["value"], state_dict["epoch"], state_dict["step"]
        self.best_values = state_dict["best_values"]


def second_name(file: Path, name: Path) -> None:
    """`name` becomes the same file, or a copy where the file system has no hard links; whole at any moment."""
    temporary = name.with_name(f".{name.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(file, temporary)
    except OSError:
        shutil.copyfile(file, temporary)
    temporary.replace(name)


def load_weights(module: torch.nn.Module, path: Path) -> None:
    """The module's state from a checkpoint of plain tensors, to predict with: how tasks were weighted in training says
    nothing about that and is left out.

    Raises:
        UserError: no such file, not a checkpoint of plain tensors, or one of another configuration.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint. The run may not have finished its first epoch.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    except Exception as error:
        raise UserError(
            f"{path}: not a checkpoint of plain tensors ({type(error).__name__}). Nothing in it was run."
        ) from error
    own, state = ({k: v for k, v in d.items() if not k.startswith("weighting.")} for d in (module.state_dict(), state))
    faults = {
        "missing from it": [k for k in own if k not in state],
        "not of this network": [k for k in state if k not in own],
        "of another shape": [k for k in state if k in own and state[k].shape != own[k].shape],
    }
    if any(faults.values()):
        said = "; ".join(f"{len(v)} {what} (first: {', '.join(v[:3])})" for what, v in faults.items() if v)
        raise UserError(f"{path} is a checkpoint of another configuration. Parameters: {said}.")
    module.load_state_dict(state, strict=False)
