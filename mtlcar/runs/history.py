"""history.csv: one row an epoch, in the run directory whatever the logger."""

import csv
import math
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from mtlcar.runs.files import replacing

COLUMNS = ("epoch", "step", "seconds", "lr")
"""First columns: epoch (from 0), optimizer steps so far, wall seconds of this epoch, largest learning rate in use."""


class History(pl.Callback):
    """Writes `path` (`<run dir>/history.csv`), rewritten atomically at each epoch's end.

    Further columns are all metrics logged at epoch level, of training and validation (not `test/`, nor `step/`, which
    are single steps). A resumed run goes on in the same file: rows of epochs that are trained again are dropped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self._began = 0.0
        self._validated = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.rows = [row for row in read_history(self.path) if row["epoch"] < trainer.current_epoch]

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._complete(trainer)
        self._began = time.perf_counter()
        self._validated = False

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validated = self._validated or not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        epoch = trainer.current_epoch
        self.rows = [row for row in self.rows if row["epoch"] < epoch]
        rates = [float(group["lr"]) for optimizer in trainer.optimizers for group in optimizer.param_groups]
        row = {"epoch": epoch, "step": trainer.global_step, "seconds": round(time.perf_counter() - self._began, 3)}
        self.rows.append({**row, "lr": max(rates, default=math.nan)})
        self._complete(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._complete(trainer)

    def _complete(self, trainer: pl.Trainer) -> None:
        """Add the metrics to the last row: also those that the module logged after this callback's own epoch end."""
        if not self.rows or not self._began:
            return
        for name, value in sorted(trainer.callback_metrics.items()):
            stale = name.startswith("val/") and not self._validated
            if not name.startswith(("test/", "step/")) and name not in COLUMNS and not stale:
                self.rows[-1][name] = float(value)
        if trainer.is_global_zero:
            write_history(self.path, self.rows)


def read_history(path: Path) -> list[dict[str, Any]]:
    """Rows of a history.csv, empty cells left out; an absent file or a broken line gives no row."""
    if not path.is_file():
        return []
    rows: list[dict[str, Any]] = []
    with path.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            try:
                numbers = {key: float(value) for key, value in line.items() if key and value not in ("", None)}
                rows.append({**numbers, "epoch": int(numbers["epoch"]), "step": int(numbers["step"])})
            except (ValueError, KeyError, TypeError):
                continue
    return rows


def write_history(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rewrite the file under a temporary name and rename it; columns are the union of all rows'."""
    columns = [*COLUMNS, *sorted({key for row in rows for key in row} - set(COLUMNS))]
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
