"""Best and last checkpoint of a run."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from mtlcar.errors import UserError


class Checkpoints(Checkpoint):
    """`last.ckpt` and `previous.ckpt` of the latest epochs, `best.ckpt` by the monitored metric.

    One file is written an epoch, under a temporary name; the three are names for it, so that a crash at any moment
    leaves a whole one. Equal values go to the later epoch: when accuracy reaches its ceiling early, the other tasks
    go on improving. A NaN is never better.

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

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor not in trainer.callback_metrics:
            return  # no validation this epoch
        value = float(trainer.callback_metrics[self.monitor])
        better = self.epoch < 0 or (value >= self.value if self.mode == "max" else value <= self.value)
        if better:
            self.value, self.epoch, self.step = value, trainer.current_epoch, trainer.global_step
            self.best_values = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        new = self.folder / ".new.ckpt"
        trainer.save_checkpoint(new)
        if trainer.is_global_zero:
            last, best = self.folder / "last.ckpt", self.folder / "best.ckpt"
            if last.exists():
                last.replace(self.folder / "previous.ckpt")
            new.replace(last)
            if better:
                link = self.folder / ".best.ckpt"
                link.unlink(missing_ok=True)
                os.link(last, link)
                link.replace(best)
        trainer.strategy.barrier()

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value, "epoch": self.epoch, "step": self.step, "best_values": self.best_values}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.value, self.epoch, self.step = state_dict["value"], state_dict["epoch"], state_dict["step"]
        self.best_values = state_dict["best_values"]


def load_weights(module: torch.nn.Module, path: Path) -> None:
    """The module's state from a checkpoint of plain tensors.

    Raises:
        UserError: no such file, not a checkpoint of plain tensors, or one of another configuration.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint. The run may not have finished its first epoch.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    except Exception as error:
        raise UserError(
            f"{path}: not a checkpoint of plain tensors ({type(error).__name__}). Nothing was run."
        ) from error
    missing, unexpected = module.load_state_dict(state, strict=False)
    if missing or unexpected:
        raise UserError(
            f"{path} is a checkpoint of another configuration: "
            f"{len(missing)} parameters are missing from it (first: {', '.join(missing[:3]) or '-'}), "
            f"{len(unexpected)} are not of this network (first: {', '.join(unexpected[:3]) or '-'})."
        )
