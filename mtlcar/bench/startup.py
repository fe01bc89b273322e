"""`mtlcar bench startup`: how long it takes until a run trains, next to the imports that nobody can do without."""

import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from mtlcar.bench.overrides import completed
from mtlcar.bench.table import machine, stderr, table, times
from mtlcar.bench.timing import quartiles
from mtlcar.build import build_data
from mtlcar.errors import UserError
from mtlcar.runs.status import NAME, read_status
from mtlcar.sweeps.cells import CellMaker
from mtlcar.sweeps.stopping import Stop, SweepInterrupted

SETTING = {"backbone": "resnet18", "data.image_size": "64", "data.batch_size": "16", "logger": "none"}
"""Where the command line says nothing else."""
HELP = "mtlcar --help"
IMPORTS = "import torch, lightning, torchvision, torchmetrics"
FIRST_STEP = "first step"
POLL = 0.02
"""Seconds between two looks at a process."""
LONGEST = 600.0
"""Seconds that any of them may take."""
SAVES = 60.0
"""Seconds that a stopped run has to save itself."""
LAST_LINES = 5


def command(overrides: Sequence[str], *, rounds: int, as_json: bool = False) -> int:
    """Prints the rows: JSON, or a Markdown table. Processes are fresh ones, in an order drawn anew every round."""
    say = stderr()
    words = completed(overrides, SETTING, ours=("paths.runs",))
    cfg = CellMaker().make(words).cfg
    build_data(cfg)  # decoding is not what is measured
    python = (sys.executable, "-m", "mtlcar")
    found: dict[str, list[float]] = {HELP: [], IMPORTS: [], FIRST_STEP: []}
    with (
        Stop() as stop,
        tempfile.TemporaryDirectory(prefix="mtlcar-bench-", ignore_cleanup_errors=True) as folder,
        Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress,
    ):
        bar = progress.add_task("", total=rounds * len(found))
        log = Path(folder) / "out.txt"

        def measure(name: str, runs: Path) -> float:
            if name == HELP:
                return seconds_of([*python, "--help"], log, stop)
            if name == IMPORTS:
                # the first step is timed to its end, not to that of its process
                return seconds_of([sys.executable, "-c", f"import os; {IMPORTS}; os._exit(0)"], log, stop)
            return seconds_to_first_step([*python, "train", *words, f"paths.runs='{runs}'"], runs, log, stop)

        order = random.Random(0)
        try:
            for n in range(rounds):
                for name in order.sample(list(found), len(found)):
                    progress.update(bar, description=name)
                    found[name].append(measure(name, Path(folder) / f"round{n}"))
                    progress.advance(bar)
        except SweepInterrupted:
            return stop.status
    rows, where = as_rows(found), machine(cfg)
    print(json.dumps(rows, indent=1) if as_json else f"{markdown(rows)}\n\n{where}")
    if as_json:
        say(where)
    return 0


def seconds_of(command: Sequence[str], log: Path, stop: Stop) -> float:
    """From the start of a process to its end.

    Raises:
        UserError: it failed.
        SweepInterrupted: this one was told to stop.
    """
    began = time.perf_counter()
    ended = watched(command, log, stop, lambda: False)
    if ended is not None:
        raise failed(command, log, f"exit status {ended}")
    return time.perf_counter() - began


def seconds_to_first_step(command: Sequence[str], runs: Path, log: Path, stop: Stop) -> float:
    """From the start of `mtlcar train` to the end of its run's first optimizer step, by the run's own status.json. The
    run is stopped then.

    Args:
        runs: the run's `paths.runs`, empty.

    Raises:
        UserError: it failed before.
        SweepInterrupted: this one was told to stop.
    """
    began = time.time()  # as the run gives it: nothing else is common to two processes
    step: list[float] = []

    def look() -> bool:
        found = [read_status(path.parent).get("first_step") for path in runs.glob(f"*/*/{NAME}")]
        step[:] = [when for when in found if when is not None]
        return bool(step)

    ended = watched(command, log, stop, look)
    if not step and not look():
        raise failed(command, log, f"exit status {ended}, and no training step was made")
    return step[0] - began


def watched(command: Sequence[str], log: Path, stop: Stop, seen: Callable[[], bool]) -> int | None:
    """The exit status of a process that failed, None for one that ended well or was stopped because what was waited for
    is `seen`. Nothing is left running, whatever happens.

    Raises:
        UserError: neither came.
    """
    until = time.monotonic() + LONGEST
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            process_group=0,  # a terminal's Ctrl-C reaches us alone
        )
    try:
        while not seen():
            stop.check()
            if time.monotonic() > until:
                raise failed(command, log, f"nothing after {LONGEST:.0f} seconds")
            with suppress(subprocess.TimeoutExpired):
                return process.wait(POLL) or None
        return None
    finally:
        end(process)


def end(process: "subprocess.Popen[bytes]") -> None:
    """A run saves itself and ends; the system ends the job of a killed command."""
    process.terminate()
    try:
        process.wait(SAVES)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def failed(command: Sequence[str], log: Path, what: str) -> UserError:
    last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-LAST_LINES:]
    return UserError("\n".join([f"{' '.join(map(str, command))}: {what}.", *last]))


def as_rows(found: Mapping[str, Sequence[float]]) -> list[dict[str, Any]]:
    """Medians and quartiles; the ratio is the median of the rounds' own."""
    rows: list[dict[str, Any]] = []
    for name, seconds in found.items():
        low, middle, high = (round(value, 4) for value in quartiles(seconds))
        rows.append({"name": name, "seconds": middle, "seconds_low": low, "seconds_high": high})
    ratios = [own / base for own, base in zip(found[FIRST_STEP], found[IMPORTS], strict=True)]
    low, middle, high = (round(value, 4) for value in quartiles(ratios))
    rows[-1] |= {"ratio_to_imports": middle, "ratio_low": low, "ratio_high": high}
    return rows


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A line a process: seconds with the middle half of the rounds; the first step also in units of the imports."""
    lines = [
        [
            r["name"],
            f"{r['seconds']:.2f} ({r['seconds_low']:.2f} to {r['seconds_high']:.2f})",
            times(r, "imports") if "ratio_to_imports" in r else "",
        ]
        for r in rows
    ]
    return table(["process", "seconds", "times imports"], lines, words=1)
