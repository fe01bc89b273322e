"""A sweep: its cells through Hydra's launcher or sweeper, those of other processes waited for, the closing table."""

import os
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from mtlcar.errors import UserError
from mtlcar.runs.lock import holder, wait_until_free
from mtlcar.runs.status import read_status
from mtlcar.sweeps.cell_task import HERE, CellTask, unnamed
from mtlcar.sweeps.closing import labels_of, print_closing
from mtlcar.sweeps.outcomes import Journal, Outcome, is_done
from mtlcar.sweeps.progress import SweepProgress
from mtlcar.sweeps.stopping import Stop, SweepInterrupted

POLL = 2.0
"""Seconds between two looks at cells that other processes work on."""


@dataclass(frozen=True)
class Planned:
    """A cell that is known before it runs."""

    id: str
    directory: Path
    overrides: tuple[str, ...]

    @property
    def done(self) -> bool:
        return is_done(self.directory)

    def outcome(self, state: str) -> Outcome:
        return Outcome(self.id, str(self.directory), self.overrides, state)


Work = Callable[[Sequence[Planned], CellTask, Stop], None]
"""Runs cells, all that are given, and writes what becomes of each to the task's journal."""


def carry_out(
    planned: Sequence[Planned],
    work: Work,
    task: CellTask,
    *,
    go_on: str,
    queued: bool = False,
    resumed: bool = False,
) -> int:
    """Run what is not finished, wait for what other processes run, and print the closing table.

    Args:
        go_on: the command that goes on with this sweep.
        queued: the launcher's jobs are a queue's and outlive this command.
        resumed: the sweep was begun elsewhere.

    Returns:
        0 all finished, 1 some not, 128 + signal stopped.
    """
    skipped = [p for p in planned if p.done]
    pending = [p for p in planned if not p.done]
    if not pending:
        print(f"All {len(planned)} cells were finished before.")
        wrap_up([p.directory for p in planned], if_missing=True)
        return 0
    if skipped:
        print(f"{len(skipped)} of {len(planned)} cells were finished before.")
    labels = labels_of({str(p.directory): p.overrides for p in planned})
    journal = Journal(task.journal, task.call)
    progress = SweepProgress(journal, len(planned), len(skipped), lambda outcome: labels.get(outcome.key, ""))
    with Stop(task.flag, at_once=queued) as stop:
        HERE[task.call] = stop
        try:
            with progress:
                broken = _passes(pending, work, task, stop, progress)
        finally:
            del HERE[task.call]
    outcomes = [p.outcome("skipped") for p in skipped] + [ended_as(p.outcome("unstarted"), progress) for p in pending]
    print_closing(outcomes, labels, stopped=bool(stop.status), resumed=resumed, threads=task.threads)
    if stop.status:
        print(f"Stopped. The same command goes on, or: {go_on}")
        return stop.status
    if not queued:
        wrap_up([p.directory for p in planned])
    return 0 if all(o.ended_well for o in outcomes) and not broken else 1


def wrap_up(directories: Sequence[Path], *, if_missing: bool = False) -> None:
    """At the end of a sweep that logs to W&B: its summary there.

    Args:
        if_missing: not where there is one that knows of all finished runs.
    """
    if len(directories) < 2 or not any((directory / "wandb").is_dir() for directory in directories):
        return
    from mtlcar.sweeps.summary_run import is_current, summarize_sweep

    for folder in dict.fromkeys(directory.parent for directory in directories):
        cells = [directory for directory in directories if directory.parent == folder]
        if not (if_missing and is_current(folder, cells)):
            summarize_sweep(folder, cells)


def _passes(pending: Sequence[Planned], work: Work, task: CellTask, stop: Stop, progress: SweepProgress) -> bool:
    """All cells once, and those that another process worked on again when it has ended. Whether the launcher failed."""
    todo, busy = list(pending), list[Planned]()
    journal = Journal(task.journal, task.call)
    while (todo or busy) and not stop.requested:
        if todo and not survived(partial(work, todo, task, stop)):
            return True
        progress.look()
        busy += [p for p in todo if (told := progress.ended.get(str(p.directory))) and told.state == "elsewhere"]
        try:
            todo, busy = _wait_for_any(busy, journal, stop)
        except SweepInterrupted:
            break
    return False


def survived(work: Callable[[], object]) -> bool:
    """Whether the launcher or sweeper came to its end. What stopped it is printed; the cells have their own words."""
    try:
        work()
    except SweepInterrupted:
        return True
    except UserError:
        raise
    except Exception as error:
        line = (str(error).strip().splitlines() or [""])[0]
        print(f"mtlcar: the launcher or sweeper ended with {type(error).__name__}: {line}", flush=True)
        return False
    return True


def _wait_for_any(busy: list[Planned], journal: Journal, stop: Stop) -> tuple[list[Planned], list[Planned]]:
    """Those whose processes have ended without finishing them, and those that are still worked on. Cells that another
    process has finished are written down."""
    if busy:
        print(f"Other processes work on {len(busy)} cell{'s' * (len(busy) > 1)}; waiting for them.", flush=True)
    watches = {p.directory: wait_until_free(p.directory, 0.0) for p in busy}
    while busy and not stop.requested:
        time.sleep(POLL)
        free = [p for p in busy if next(watches[p.directory], None) is None]
        busy = [p for p in busy if p not in free]
        for cell in [p for p in free if p.done]:
            journal.add("ended", cell.outcome("joined").with_result())
        if left := [p for p in free if not p.done]:
            return left, busy
    return [], busy


def ended_as(blank: Outcome, progress: SweepProgress) -> Outcome:
    """What the cell's directory says, and the journal where that says more."""
    told = progress.ended.get(blank.key) or progress.ended.get(unnamed(blank.overrides))
    directory = Path(blank.directory)
    if blank.directory and is_done(directory):
        return told if told is not None and told.ended_well else replace(blank, state="joined").with_result()
    if told is not None and not told.ended_well:
        return told
    if blank.key not in progress.started:
        return blank
    if holder(directory) is not None:
        return replace(blank, state="elsewhere")
    return replace(blank, state="lost", error=read_status(directory).get("error"))


def new_call() -> str:
    """A name for this call of a command."""
    return f"{os.getpid()}-{secrets.token_hex(4)}"
