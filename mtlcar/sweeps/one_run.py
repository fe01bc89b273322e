"""One run as a process of its own: its directory written, its job started, waited for, and told to stop."""

import contextlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mtlcar.errors import UserError
from mtlcar.runs.job import BUSY
from mtlcar.runs.lock import Busy, run_lock
from mtlcar.runs.ranks import is_main_process
from mtlcar.runs.status import read_status
from mtlcar.sweeps.cells import Cell
from mtlcar.sweeps.outcomes import Outcome, is_done
from mtlcar.sweeps.spare import SPARE, job_words
from mtlcar.sweeps.stopping import SIGNALS, Stop
from mtlcar.sweeps.worker import job_environment

JOINING = 600.0
"""Seconds that a further machine's process of a run waits for the first one to write the run directory."""
POLL = 0.25
"""Seconds between two looks at the job and at what may stop it."""
TELLS = {128 + number for number in SIGNALS}
"""Exit statuses of a job that was told to stop."""

Started = Callable[[Outcome], None]


def job_command(directory: Path, *, show_traceback: bool = False, trusted: bool = False) -> list[str]:
    """What is started for one run. It reads the directory's config.yaml and goes on with what is there."""
    words = job_words(directory, show_traceback=show_traceback, trusted=trusted)
    return [sys.executable, "-m", "mtlcar.runs.job", *words]


def run_cell(
    cell: Cell, stop: Stop, *, show_traceback: bool = False, started: Started = lambda outcome: None
) -> Outcome:
    """One cell in a fresh process, unless it is finished already or another process works in its directory."""
    directory, blank = cell.directory, Outcome(cell.id, str(cell.directory), cell.overrides, "unstarted")
    if cell.done:
        return replace_state(blank, "skipped")
    if stop.requested:
        return blank
    try:
        mine = claim(cell)
    except Busy as busy:
        print(f"{busy.holder} works in {directory}.", flush=True)
        return replace_state(blank, "elsewhere")
    if mine is None:
        return replace_state(blank, "skipped")
    print(f"{directory}  ({' '.join(cell.overrides) or 'defaults'})", flush=True)
    # `claim` has just written config.yaml from what was typed, so its job may call what that names.
    outcome = run_directory(blank, stop, show_traceback=show_traceback, started=started, trusted=True)
    if outcome.exit == 2 and mine:
        remove_unbegun(directory)
    return outcome


def claim(cell: Cell) -> bool | None:
    """Writes the cell's directory while nobody works there. Whether this made it; None: it is finished by now.

    Raises:
        Busy: another process works there, and its files stay as they are.
    """
    directory = cell.directory
    if not is_main_process():
        return join(cell)
    for last in (False, False, True):
        directory.parent.mkdir(parents=True, exist_ok=True)
        try:
            directory.mkdir()
            mine = True
        except FileExistsError:
            mine = False
        try:
            with run_lock(directory):
                if cell.done:
                    return None
                cell.write()
            return mine
        except Busy:
            raise
        except UserError:
            if last or directory.exists():  # else another sweep has just taken it away again (`remove_unbegun`)
                raise
    raise AssertionError


def join(cell: Cell) -> bool | None:
    """`claim` on a further machine of a run over several: the first one writes."""
    until = time.monotonic() + JOINING
    while not (cell.directory / "config.yaml").is_file():
        if time.monotonic() > until:
            raise UserError(f"{cell.directory} was not written by the first machine within {JOINING:.0f} seconds.")
        time.sleep(POLL)
    return None if cell.done else False


def remove_unbegun(directory: Path) -> None:
    """A mistake found before training leaves nothing behind."""
    with contextlib.suppress(Busy), run_lock(directory):
        if any((directory / name).exists() for name in ("checkpoints", "search.json")):
            return
        shutil.rmtree(directory)
    for parent in (directory.parent, directory.parent.parent):
        with contextlib.suppress(OSError):  # other runs are in it
            parent.rmdir()


def run_directory(
    blank: Outcome,
    stop: Stop,
    *,
    show_traceback: bool = False,
    started: Started = lambda outcome: None,
    trusted: bool = False,
) -> Outcome:
    """The job of a written run directory, and what became of it. `trusted`: see `mtlcar.runs.trust`."""
    directory, began = Path(blank.directory), time.monotonic()
    started(blank)
    words = job_words(directory, show_traceback=show_traceback, trusted=trusted)
    job = SPARE.take(words) or subprocess.Popen(
        job_command(directory, show_traceback=show_traceback, trusted=trusted),
        env=job_environment(),
        stdin=subprocess.DEVNULL,
        process_group=0,  # a terminal's Ctrl-C reaches us alone, and we hand it on: once, under every launcher
    )

    def trains() -> bool:
        said = read_status(directory)
        return said.get("pid") == job.pid and said.get("first_step") is not None

    status = wait(job, stop, trains)
    said = read_status(directory)
    if said.get("pid") != job.pid:  # of an earlier session: this one ended before it could write
        said = {}
    state, step, seconds = state_of(status, directory), said.get("resumed_step"), time.monotonic() - began
    outcome = replace(blank, state=state, exit=status, seconds=seconds, resumed_step=step)
    if outcome.state == "failed":
        return replace(outcome, error=reason(status, said.get("error"), directory))
    return outcome.with_result() if outcome.state == "finished" else outcome


def wait(job: "subprocess.Popen[bytes]", stop: Stop, trains: Callable[[], bool] = lambda: False) -> int:
    """The job's exit status. Every signal that `stop` has noted is handed on, and the job is given the time to save.

    Args:
        trains: whether the job is past its start, so that the next one may begin to import.
    """
    told = 0
    try:
        while True:
            if not stop.requested:
                SPARE.prepare_next(trains)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return job.wait(timeout=POLL)
            while stop.requested and told < stop.count:
                job.send_signal(stop.signum or signal.SIGTERM)
                told += 1
    except BaseException:  # a launcher's own way of ending a worker
        job.terminate()
        job.wait()
        raise


def state_of(status: int, directory: Path) -> str:
    if status == BUSY:
        return "elsewhere"
    if status in TELLS or (status < 0 and 128 - status in TELLS):
        return "interrupted"
    if status == 0 and not is_main_process():  # the first one may still be writing
        return "finished"
    return "finished" if status == 0 and is_done(directory) else "failed"


def reason(status: int, said: str | None, directory: Path) -> str:
    """Why it failed, in a line."""
    if said:
        return said.removeprefix("UserError: ")
    if status == -signal.SIGKILL:
        return "killed (SIGKILL): by the system for want of memory, or by somebody"
    if status < 0:
        return f"killed by {signal.Signals(-status).name}; see {directory / 'train.log'}"
    if status == 0:
        return f"its job ended without a result; see {directory / 'train.log'}"
    return f"exit status {status}" + (f"; see {directory / 'train.log'}" if (directory / "train.log").exists() else "")


def replace_state(outcome: Outcome, state: str) -> Outcome:
    changed = replace(outcome, state=state)
    return changed.with_result() if state == "skipped" else changed
