"""The rows of a run's log: one an epoch, which history.csv keeps, and single steps now and then."""

import contextlib
import csv
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger

from mtlcar.runs.files import replacing

COLUMNS = ("epoch", "step", "seconds", "lr")
"""First columns: epoch (from 0), optimizer steps so far, wall seconds of this epoch, largest learning rate in use."""


class History(Checkpoint):
    """Writes `path` (`<run dir>/history.csv`), rewritten atomically at each epoch's end, and hands the trainer's
    loggers their rows.

    Further columns are all metrics of training and validation. The loggers get the same row without its seconds, and
    every `log_every_n_steps` steps a row `step/<task>/loss` of that step alone. Lightning itself would log some of
    these only after the checkpoint of that moment was written, and a run resumed from there would lack them.

    Rows are part of the checkpoint: a resumed run has those up to it, whatever became of the file.

    A `Checkpoint` by type alone: Lightning calls those after the module and all other callbacks, which may log too.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self._seconds = 0.0  # of this epoch, in earlier sessions
        self._began = 0.0
        self._validated = False
        self._step = -1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._began = time.perf_counter()
        self._step = trainer.global_step

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._began, self._seconds = time.perf_counter(), 0.0
        self._validated = False

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        step, every = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        losses = getattr(pl_module, "step_losses", None)
        if not every or step == self._step or step % every or losses is None:
            return
        self._step = step
        names = (f"step/{name}/loss" for name in pl_module.architecture.tasks.names)
        log_row(trainer.loggers, dict(zip(names, losses.tolist(), strict=True)), step)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validated = self._validated or not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        rates = [float(group["lr"]) for optimizer in trainer.optimizers for group in optimizer.param_groups]
        row = {"epoch": trainer.current_epoch, "lr": max(rates, default=math.nan)}
        for name, value in sorted(trainer.callback_metrics.items()):
            if name.startswith("train/") or (name.startswith("val/") and self._validated):
                row[name] = float(value)
        step = trainer.global_step
        self.rows.append({**row, "step": step, "seconds": round(self._elapsed(), 3)})
        if trainer.is_global_zero:
            write_history(self.path, self.rows)
        log_row(trainer.loggers, row, step)

    def _elapsed(self) -> float:
        return self._seconds + time.perf_counter() - self._began

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "seconds": self._elapsed()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows, self._seconds = list(state_dict["rows"]), state_dict["seconds"]


def log_row(loggers: Sequence[Logger], row: Mapping[str, float], step: int) -> None:
    for logger in loggers:
        logger.log_metrics(dict(row), step)


def read_history(path: Path) -> list[dict[str, Any]]:
    """Rows of a history.csv, empty cells left out; an absent file or a broken line gives no row."""
    if not path.is_file():
        return []
    rows: list[dict[str, Any]] = []
    with path.open(newline="", encoding="utf-8", errors="replace") as file, contextlib.suppress(csv.Error):
        for line in csv.DictReader(file):
            try:
                numbers = {key: float(value) for key, value in line.items() if key and value not in ("", None)}
                rows.append({**numbers, "epoch": int(numbers["epoch"]), "step": int(numbers["step"])})
            except (ValueError, KeyError, TypeError, OverflowError):
                continue
    return rows


def write_history(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rewrite the file under a temporary name and rename it; columns are the union of all rows'."""
    columns = [*COLUMNS, *sorted({key for row in rows for key in row} - set(COLUMNS))]
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
