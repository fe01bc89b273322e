"""`mtlcar report DIR... --watch`: the report again whenever a run has finished."""

import math
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mtlcar.errors import UserError
from mtlcar.listing.finding import run_directories
from mtlcar.listing.life import STATES, run_state
from mtlcar.runs.files import write_text
from mtlcar.runs.lock import holder
from mtlcar.runs.status import read_status
from mtlcar.sweeps.record import SweepRecord, fingerprints, read_record, records

EVERY = 30.0
"""Seconds between two looks, unless it is said."""
TELLING = ("DONE", "metrics.json")
"""Files of a run directory that change when there is something new to report. The report shows finished runs, and to
build it takes processor time from the others, so that a validated epoch alone is no reason."""
OVER = ("finished", "failed")
"""States that nobody has to end: a failed run is not tried again by itself."""
REFRESH = re.compile(r'<meta http-equiv="refresh" content="[^"]*">')
"""How the page is told to load itself again (`page_html`'s `refresh`)."""

Marks = dict[Path, tuple[tuple[int, int] | None, ...]]


@dataclass(frozen=True)
class Look:
    """How far the runs are at one moment.

    Attributes:
        counts: runs by state; unstarted ones include cells of a sweep that have no directory yet.
        held: a sweep that chooses its cells as it goes is at work.
        marks: run directory -> time and size of each of the `TELLING` files, None where it is missing.
    """

    counts: Counter[str]
    held: bool
    marks: Marks

    @property
    def over(self) -> bool:
        """Nothing will change unless somebody gives a command."""
        return not self.held and bool(self.counts) and all(state in OVER for state in self.counts)

    def __str__(self) -> str:
        return ", ".join(f"{self.counts[state]} {state}" for state in STATES if self.counts[state]) or "no runs"


def look(directories: Sequence[Path]) -> Look:
    """What there is at or below the directories now; a directory that is gone counts as empty. Reads no configuration,
    so that looking costs little beside what is looked at."""
    given = [Path(d) for d in directories if Path(d).is_dir()]
    runs = list(dict.fromkeys(path.resolve() for folder in given for path in run_directories(folder)))
    counts = Counter(run_state(run, read_status(run)) for run in runs)
    held = False
    for folder in _sweep_folders(given):
        counts["unstarted"] += _without_directory(folder, runs)
        held |= any(holder(study) is not None for study in folder.glob(".optuna-*"))
    # After the states: what finishes in between is new at the next look, and none is missed.
    return Look(+counts, held, {run: tuple(_mark(run / name) for name in TELLING) for run in runs})


def _without_directory(folder: Path, runs: Sequence[Path]) -> int:
    """Cells that the commands given in a sweep's folder have, and of which there is no run directory yet."""
    here = {run.name for run in runs if run.parent == folder.resolve()}
    anywhere = {run.name for run in runs}
    missing: set[str] = set()
    with suppress(OSError):  # it is being removed
        for path in records(folder):
            with suppress(UserError, OSError):  # it is being written, or damaged
                # One command may be for several folders, and each has its record.
                missing |= fingerprints(path) - (anywhere if _places(read_record(path)) > 1 else here)
    # What a journal calls ?... could not be made into a cell, and never will have a directory.
    return sum(not cell.startswith("?") for cell in missing)


def _places(record: SweepRecord) -> int:
    return len({tuple(o for o in cell.overrides if o.startswith(("sweep=", "paths.runs="))) for cell in record.cells})


def _sweep_folders(given: Sequence[Path]) -> Iterator[Path]:
    """Where records of sweeps may be: the directories themselves, and the folders in them."""
    for folder in given:
        if (folder / "config.yaml").is_file():
            continue  # a run
        yield folder
        with suppress(OSError):
            yield from sorted(child for child in folder.iterdir() if child.is_dir() and not child.is_symlink())


def _mark(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def watch(
    build: Callable[[], Path | None],
    directories: Sequence[Path],
    *,
    every: float = EVERY,
    clear: bool = False,
    stop: Callable[[], bool] | None = None,
    sleep: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
    say: Callable[[str], object] | None = None,
) -> int:
    """Build the report now and after each change, until no run is open any more.

    A run is open while it runs, waits for its turn in a sweep, or was interrupted or killed: those may go on. A build
    that fails is said and tried again. Ctrl-C ends it, with the last report in place; the page then no longer loads
    itself again.

    Args:
        build: writes the report and gives the page's path.
        directories: run, sweep or runs folders.
        every: seconds between two looks, and so the least time between two reports; longer where a report takes longer,
            for training needs the processors too.
        clear: clear the terminal before each report.
        stop: asked before each look; True ends it.
        sleep, clock: wait so many seconds, and tell them.
        say: prints a line.

    Returns:
        0; 1 when all is over and there is no report: no run finished, or it could not be built.

    Raises:
        UserError: a folder does not exist, or `every` is no time.
    """
    if not (every > 0 and math.isfinite(every)):
        raise UserError(f"--watch takes the seconds between two looks, more than 0. Found {every:g}.")
    for directory in directories:
        if not Path(directory).is_dir():
            raise UserError(f"{directory}: no such folder. Give run, sweep or runs folders to watch.")
    tell = _Teller(say or partial(print, flush=True))
    built: Marks | None = None
    page: Path | None = None
    failures = 0
    try:
        while stop is None or not stop():
            began, now = clock(), look(directories)
            if now.marks != built and now.counts["finished"]:
                if clear and sys.stdout.isatty():
                    print("\033[2J\033[H", end="", flush=True)
                try:
                    page = build() or page
                    built, failures = now.marks, 0
                    tell.always(f"{now}{f': {page}' if page else ''}")
                except Exception as error:
                    failures += 1
                    words = (str(error).strip().splitlines() or [""])[0]
                    tell.once(f"{now}: no report ({type(error).__name__}: {words}); it is tried again")
            elif not now.counts["finished"]:
                tell.once(f"{now}: waiting for the first finished run")
            elif _asleep(now):
                tell.once(f"{now}: nothing is at work; waiting for somebody to go on with it (Ctrl-C ends)")
            if now.over and (built == now.marks or failures > 1 or not now.counts["finished"]):
                return 0 if built == now.marks else 1
            sleep(max(every, clock() - began))
    except KeyboardInterrupt:
        tell.always("stopped")
    finally:
        if page is not None:
            keep_still(page)
    return 0


def _asleep(now: Look) -> bool:
    """Runs are open, and no process works on any of them; a sweep between two of its cells looks the same."""
    return not now.over and not now.held and not now.counts["running"]


def keep_still(page: Path) -> None:
    """A page that will not change any more does not load itself again. Nothing where it is not there."""
    try:
        text = page.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return
    head, end, rest = text.partition("</head>")  # not in the page's own words
    still = REFRESH.sub("", head)
    if still != head:
        write_text(page, still + end + rest)


class _Teller:
    """Says lines with the time of day; what is said `once` only where it is not what was said last."""

    def __init__(self, say: Callable[[str], object]) -> None:
        self.say, self.last = say, ""

    def always(self, words: str) -> None:
        self.last = words
        self.say(f"{time.strftime('%H:%M:%S')} {words}")

    def once(self, words: str) -> None:
        if words != self.last:
            self.always(words)
