"""What a Hydra launcher calls for one cell, in the sweep's own process or in a worker somewhere else."""

import hashlib
import os
import shlex
import signal
import socket
import sys
import threading
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mtlcar.errors import UserError
from mtlcar.runs.lock import wait_until_free
from mtlcar.runs.output import lasting_output
from mtlcar.sweeps.cells import Cell, CellMaker
from mtlcar.sweeps.one_run import run_cell
from mtlcar.sweeps.outcomes import Journal, Outcome
from mtlcar.sweeps.stopping import Stop, worker_stop

MAKER = CellMaker()
"""One for the process: a sweep's cells share the annotations that were read to check them."""
HERE: dict[str, Stop] = {}
"""The stops of the calls that this process is the parent of."""


class CellFailedError(Exception):
    """For sweepers that ask for a value: there is none."""


@dataclass(frozen=True)
class CellTask:
    """A call's task, sent to workers as it is.

    Attributes:
        call: which call of a sweep command this is.
        journal: file that outcomes are written to.
        answers: the sweeper optimises what the task returns: a cell that another process works on is waited for, and
            one without a value raises.
        threads: what `threads: null` means; the parent's number, or the cells would be others on another machine.
        cwd: the parent's, for relative paths.
    """

    call: str
    journal: Path
    answers: bool = False
    show_traceback: bool = False
    threads: int | None = None
    cwd: str = field(default_factory=os.getcwd)
    parent: int = field(default_factory=os.getpid)
    host: str = field(default_factory=socket.gethostname)

    @property
    def flag(self) -> Path:
        return self.journal.with_name(f".stop-{self.call}")

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In a worker, which a terminal's signals reach too: an exception there would have the launcher kill all its
        workers and their jobs. The flag tells it to stop."""
        self.__dict__.update(state)
        if self.call not in HERE and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGHUP):
                if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                    signal.signal(number, lambda *_: None)  # the job would inherit SIG_IGN

    def __call__(self, cfg: DictConfig) -> float:
        """Returns the best monitored value, NaN where there is none."""
        with lasting_output():
            return self.value_of(cfg)

    def value_of(self, cfg: DictConfig) -> float:
        from hydra.core.hydra_config import HydraConfig

        if os.getcwd() != self.cwd and Path(self.cwd).is_dir():  # noqa: PTH109
            os.chdir(self.cwd)
        overrides = tuple(HydraConfig.get().overrides.task)
        own = OmegaConf.create(OmegaConf.to_container(cfg, resolve=False))  # Hydra's is read-only
        assert isinstance(own, DictConfig)
        blank = Outcome(unnamed(overrides), "", overrides, "failed")
        try:
            cell = MAKER.from_config(own, overrides, threads=self.threads)
            blank = Outcome(cell.id, str(cell.directory), overrides, "failed")
            outcome = self.work(cell)
            if outcome.state == "skipped" and not self.answers:
                outcome = replace(outcome, state="joined")  # it was not finished when the launcher was given it
        except Exception as error:  # nothing that one cell does may stop the others
            words = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            print(f"mtlcar: error: {words}\nThis is the cell {shlex.join(overrides)}", file=sys.stderr)
            outcome = replace(blank, error=(words.splitlines() or [""])[0])
        Journal(self.journal, self.call).add("ended", outcome)
        if outcome.value is not None and outcome.ended_well:
            return outcome.value
        if self.answers and outcome.state != "unstarted":  # that is a stop's; no sweeper takes NaN
            raise CellFailedError(outcome.error or f"{outcome.state}, no value")
        return float("nan")

    def work(self, cell: Cell) -> Outcome:
        """Runs the cell, or hears what another process makes of it."""
        mine = HERE.get(self.call)
        journal = Journal(self.journal, self.call)
        with worker_stop(self.flag, self.parent, self.host) if mine is None else nullcontext(mine) as stop:
            while True:
                outcome = run_cell(
                    cell,
                    stop,
                    show_traceback=self.show_traceback,
                    started=lambda blank: journal.add("started", blank),
                )
                if not (self.answers and outcome.state == "elsewhere") or stop.requested:
                    return outcome
                for _ in wait_until_free(cell.directory, poll=1.0):
                    if stop.requested:
                        break


def unnamed(overrides: tuple[str, ...]) -> str:
    """Stands for the fingerprint of a cell that could not be made."""
    return f"?{hashlib.sha256(shlex.join(overrides).encode()).hexdigest()[:8]}"
