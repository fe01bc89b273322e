"""What a run logs, once for life: its own record (rows.jsonl), handed on to W&B, CSV or TensorBoard."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from lightning.fabric.loggers.logger import _DummyExperiment as DummyExperiment
from lightning.pytorch.loggers import Logger

from mtlcar.logs.ledger import LEDGER, Ledger, Row, numbers, read_rows
from mtlcar.logs.wandb_sink import WandbSink
from mtlcar.runs.ranks import is_main_process

log = logging.getLogger("mtlcar")


class Sink(Protocol):
    """A place that rows are handed on to. Whatever it raises after the start is a warning, training goes on."""

    title: str

    @property
    def experiment(self) -> Any:
        """What user callbacks write to directly; None: nothing."""

    def resume(self, rows: Iterable[Row]) -> None:
        """Bring itself up to date with all rows that the run has so far. Comes once, before the first `log`."""

    def log(self, row: Row) -> None: ...

    def sync(self) -> None:
        """Write what should be on disk when a checkpoint is."""

    def finish(self, exit_code: int) -> None:
        """End; `exit_code` is the job's: 0 finished, 128 + signal interrupted, else failed."""


class RunLog(Logger):
    """The Lightning logger of every run. Rows are numbered, so a row trained twice is logged once.

    Write a row for each logging interval with `log_metrics`, keep `count` in the checkpoint, call `sync` when one is
    written and `resume(count)` before training goes on from it. In processes other than the main one it only counts.

    Args:
        run_dir: rows.jsonl lies in it.
        run_id: W&B's id of the run, for life.
    """

    def __init__(self, run_dir: Path, run_id: str, sinks: Sequence[Sink] = ()) -> None:
        super().__init__()
        self.run_dir, self.run_id = Path(run_dir), run_id
        self.sinks = list(sinks) if is_main_process() else []
        self._ledger = Ledger(self.run_dir / LEDGER) if is_main_process() else None
        self._count = self._step = 0
        self._ready = False
        self._broken: list[Sink] = []

    @property
    def count(self) -> int:
        """Rows so far; the index of the next one."""
        return self._count

    def resume(self, count: int | None = None) -> None:
        """Go on after the first `count` rows (None: after all there are); later ones are dropped and come again.

        Where rows are missing, because files were lost, it goes on with those there are, and indices go on at `count`.
        """
        self._ready = True
        kept = self._ledger.cut(count) if self._ledger else 0
        self._count = kept if count is None else count
        if not self._ledger:
            return
        self._step = max((row.step for row in read_rows(self._ledger.path)), default=0)
        if kept < self._count:
            log.warning("%s ends at row %d of the %d logged before.", self._ledger.path, kept, self._count)
        for sink in self.sinks:
            self._tell(sink, "resume", read_rows(self.run_dir / LEDGER))

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log one row.

        Args:
            metrics: name -> number, or tensor with one element.
            step: optimizer step; None: that of the row before.

        Raises:
            OSError: rows.jsonl cannot be written.
        """
        if not self._ready:
            self.resume()
        values = numbers(metrics)
        step = self._step if step is None else int(step)
        if any(name.startswith("test/") for name in values):
            # A trainer that only tests carries a smaller step and epoch 0; the row is about the trained network.
            values.pop("epoch", None)
            step = max(step, self._step)
        self._step = step
        row = Row(self._count, step, values)
        if self._ledger:
            self._ledger.append(row)
        self._count += 1
        for sink in self.sinks:
            if sink not in self._broken:
                self._tell(sink, "log", row)

    def sync(self) -> None:
        """Return when every row so far is on disk.

        Raises:
            OSError: it cannot be.
        """
        if not self._ledger or not self._ready:
            return
        self._ledger.sync()
        for sink in self.sinks:
            self._tell(sink, "sync")

    def finish(self, exit_code: int) -> None:
        """End the log, for a `finally`: else W&B would not know how the run ended. Never raises.

        Args:
            exit_code: of the job: 0 finished, 128 + signal interrupted, else failed.
        """
        for sink in self.sinks:
            self._tell(sink, "finish", exit_code)
        self.sinks = []
        if self._ledger:
            self._ledger.close()
        self._ready = False

    def _tell(self, sink: Sink, what: str, *values: Any) -> None:
        """Call a sink. What it cannot do is no reason to lose the run."""
        try:
            getattr(sink, what)(*values)
        except Exception as error:
            if sink not in self._broken:
                log.warning("%s takes no more rows (%s: %s); the run goes on, %s has them all.",
                            sink.title, type(error).__name__, error, LEDGER)  # fmt: skip
            self._broken.append(sink)

    @property
    def wandb(self) -> WandbSink | None:
        """The W&B run's sink, None without W&B or after `finish`."""
        return next((sink for sink in self.sinks if isinstance(sink, WandbSink)), None)

    @property
    def wandb_info(self) -> dict[str, str] | None:
        """`{"id", "mode"}` for metrics.json, or None without W&B."""
        return {"id": self.run_id, "mode": self.wandb.mode} if self.wandb else None

    def summarize(self, values: Mapping[str, Any]) -> None:
        """Final values for W&B's run table; nested mappings become `a/b` keys."""
        if self.wandb:
            self._tell(self.wandb, "summarize", values)

    def update_config(self, values: Mapping[str, Any]) -> None:
        """Top-level keys of the configuration that W&B shows, as they are now."""
        if self.wandb:
            self._tell(self.wandb, "update_config", values)

    def log_figures(self, files: Sequence[Path]) -> None:
        """Show PNG files in W&B as `figures/<stem>`, once for life."""
        if self.wandb:
            self._tell(self.wandb, "log_figures", files)

    @property
    def experiment(self) -> Any:
        """The W&B run, else TensorBoard's writer, else an object that takes every call and does nothing."""
        if not self._ready and self.sinks:
            self.resume()
        found = (sink.experiment for sink in self.sinks)
        return next((experiment for experiment in found if experiment is not None), DummyExperiment())

    @property
    def name(self) -> str:
        return self.run_dir.name

    @property
    def version(self) -> str:
        return self.run_id

    @property
    def save_dir(self) -> str:
        return str(self.run_dir)

    @property
    def log_dir(self) -> str:
        return str(self.run_dir)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: W&B got the whole configuration when it started."""
