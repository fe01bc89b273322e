"""`mtlcar bench sweep`: what several small runs at once on this machine give, against one after another."""

import json
import math
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from mtlcar.bench.overrides import completed
from mtlcar.bench.startup import LAST_LINES
from mtlcar.bench.table import machine, stderr, table
from mtlcar.build import build_data
from mtlcar.checks.parts import check_parts
from mtlcar.config import compose_config, cores, finish, parse
from mtlcar.errors import UserError
from mtlcar.runs.files import read_json
from mtlcar.runs.gpus import VISIBLE, visible
from mtlcar.runs.status import read_status
from mtlcar.sweeps.cells import Cell, CellMaker
from mtlcar.sweeps.one_run import job_command, reason, state_of, wait
from mtlcar.sweeps.stopping import Stop, SweepInterrupted
from mtlcar.sweeps.worker import job_environment

SETTING = {"backbone": "tiny", "data.image_size": "64", "trainer.max_epochs": "10", "logger": "none"}
"""Where the command line says nothing else: about a cell of the demo."""
OURS = ("seed", "jobs_per_gpu", "paths.runs")
FEWEST = 4
"""Runs of a measurement."""
MOST = 8
"""Runs at once on a CPU, where the command line does not say."""
ALIKE = 0.03
"""Share of the throughput for which nobody would have more runs at once."""


class JobError(UserError):
    """A run did not finish."""


def command(
    overrides: Sequence[str], *, rounds: int, at_once: Sequence[int] | None = None, as_json: bool = False
) -> int:
    """Prints the rows, JSON or a Markdown table, and how many runs at once are the fastest.

    Every run is a fresh process, and its imports count in every row: give it a run long enough for them not to matter.
    Other work on this machine disturbs the figures; runs that hold the GPU's leases are waited for.

    Args:
        at_once: numbers of runs at once; 1 is always measured too. None: 1, 2 and 4 on a GPU; on a CPU the powers of
            two up to its cores, at most 8.
    """
    say = stderr()
    words = completed(overrides, SETTING, ours=OURS)
    cfg = finish(compose_config(words))
    gpu = torch.cuda.is_available() and cfg.trainer.accelerator in ("auto", "gpu", "cuda")
    numbers = chosen_numbers(at_once, gpu=gpu)
    waves = math.lcm(*numbers)  # the last group of each number is as large as the others
    runs = -(-FEWEST // waves) * waves
    fixed = gpu or any(o.key_or_group == "threads" for o in parse(overrides))
    threads = {k: cfg.threads if fixed else max(1, cores() // k) for k in numbers}
    maker = CellMaker()
    check_parts(cfg, maker.from_config(cfg.copy(), words).tasks)
    build_data(cfg)  # decoding is not what is measured

    def cells(k: int, folder: Path) -> Iterator[Cell]:
        for seed in range(runs):
            own = cfg.copy()
            own.seed, own.threads, own.jobs_per_gpu, own.paths.runs = seed, threads[k], k, str(folder)
            yield maker.from_config(own, [*words, f"seed={seed}"])

    say(
        f"{runs} runs of {cfg.trainer.max_epochs} epochs for each of {', '.join(map(str, numbers))} at once, "
        f"{rounds} x, and one before"
    )
    found: dict[int, list[dict[str, float]]] = {k: [] for k in numbers}
    with (
        Stop() as stop,
        tempfile.TemporaryDirectory(prefix="mtlcar-bench-", ignore_cleanup_errors=True) as folder,
        Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress,
    ):
        bar = progress.add_task("a first run, untimed", total=rounds * len(numbers) * runs)
        order = random.Random(0)
        try:
            first = [next(cells(1, Path(folder, "first")))]  # finds files and kernels that are not in memory yet
            measure(first, 1, environment(1, gpu=gpu), stop, lambda: None)
            for n, k in [(n, k) for n in range(rounds) for k in order.sample(numbers, len(numbers))]:
                if k not in found:
                    continue
                progress.update(bar, description=f"{k} at once")
                group = list(cells(k, Path(folder, f"round{n}", str(k))))
                try:
                    found[k].append(measure(group, k, environment(k, gpu=gpu), stop, lambda: progress.advance(bar)))
                except JobError as error:
                    if k == 1:
                        raise
                    del found[k]  # too little memory for so many, perhaps
                    say(f"left out: {k} at once: {error}")
                    continue
                say(f"{k} at once: {runs} runs in {found[k][-1]['seconds']:.0f} s")
        except SweepInterrupted:
            return stop.status
    rows = as_rows(found, runs, threads)
    where = f"{machine(cfg)}\n\n{advice(rows, gpu=gpu)}"
    print(json.dumps(rows, indent=1) if as_json else f"{markdown(rows)}\n\n{where}")
    if as_json:
        say(where)
    return 0


def chosen_numbers(at_once: Sequence[int] | None, *, gpu: bool) -> list[int]:
    """Numbers of runs at once, ascending from 1."""
    if at_once is None:
        return [1, 2, 4] if gpu else [2**i for i in range(MOST.bit_length()) if 2**i <= min(cores(), MOST)] or [1]
    if not at_once or min(at_once) < 1:
        raise UserError(f"--jobs should be numbers of at least 1, such as --jobs 1 2 4. Found {list(at_once)}.")
    return sorted({1, *at_once})


def environment(at_once: int, *, gpu: bool) -> dict[str, str]:
    """Of a job, as a sweep's workers have it; on one GPU, however many there are."""
    env = job_environment()
    if at_once > 1:
        env.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if gpu and (devices := visible()):
        env[VISIBLE] = devices[0]
    return env


def measure(
    cells: Sequence[Cell], at_once: int, environment: Mapping[str, str], stop: Stop, tick: Callable[[], None]
) -> dict[str, float]:
    """Seconds from the start of the first job to the end of the last, images a second of the runs that train at once,
    and the median run's milliseconds a step.

    Raises:
        JobError: the first run that did not finish; those beside it have ended, no further one was started.
        SweepInterrupted: this command was told to stop, and the jobs have ended.
    """
    for cell in cells:
        cell.write()
    failed = threading.Event()

    def one(cell: Cell) -> None:
        try:
            if not failed.is_set():
                run(cell, environment, stop)
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(at_once) as pool:
        began = time.perf_counter()
        for done in as_completed([pool.submit(one, cell) for cell in cells]):
            done.result()
            tick()
        seconds = time.perf_counter() - began
    timings = [read_json(cell.directory / "metrics.json")["timing"] for cell in cells]
    return {
        "seconds": seconds,
        "images_per_second": at_once * statistics.median(t["train_images_per_second"] for t in timings),
        "step_ms": statistics.median(t["step_ms_median"] for t in timings),
    }


def run(cell: Cell, environment: Mapping[str, str], stop: Stop) -> None:
    """One job, from its start to its end."""
    stop.check()
    directory = cell.directory
    log = directory / "out.txt"
    with log.open("wb") as out:
        job = subprocess.Popen(
            job_command(directory, trusted=True),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            process_group=0,  # a terminal's Ctrl-C reaches us alone, and `wait` hands it on
        )
    status = wait(job, stop)
    stop.check()
    if state_of(status, directory) != "finished":
        said = read_status(directory).get("error")
        last = [] if said else log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-LAST_LINES:]
        raise JobError("\n".join([f"the run with seed={cell.cfg.seed}: {reason(status, said, directory)}", *last]))


def as_rows(found: Mapping[int, Sequence[Mapping[str, float]]], runs: int, threads: Mapping[int, int]) -> list[Any]:
    """Medians over the rounds; the ratio is that of the runs an hour."""
    rows = []
    for k, rounds in found.items():
        seconds = statistics.median(r["seconds"] for r in rounds)
        ratios = [one["seconds"] / own["seconds"] for one, own in zip(found[1], rounds, strict=True)]
        rows.append(
            {
                "name": f"{k} at once",
                "jobs": k,
                "threads": threads[k],
                "runs": runs,
                "seconds": round(seconds, 3),
                "runs_per_hour": round(3600 * runs / seconds, 2),
                "images_per_second": round(statistics.median(r["images_per_second"] for r in rounds), 2),
                "step_ms": round(statistics.median(r["step_ms"] for r in rounds), 4),
                "ratio_to_one": round(statistics.median(ratios), 4),
            }
        )
    return rows


def advice(rows: Sequence[Mapping[str, Any]], *, gpu: bool) -> str:
    """What to set, for the fewest runs at once that come close to the fastest."""
    most = max(row["ratio_to_one"] for row in rows)
    best = next(row for row in rows if row["ratio_to_one"] >= (1 - ALIKE) * most)
    k = best["jobs"]
    if k == 1:
        return "One after another is the fastest here."
    launcher = f"hydra/launcher=joblib hydra.launcher.n_jobs={k}"
    words = f"jobs_per_gpu={k} with {launcher}" if gpu else f"{launcher} threads={best['threads']}"
    return f"{words} is the fastest here (x {best['ratio_to_one']:.2f})."


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line a number of runs at once."""
    heads = ["runs", "threads", "seconds", "runs an hour", "images/s", "step ms", "times one after another"]
    lines = [
        [
            f"{r['runs']}, {r['name']}",
            str(r["threads"]),
            f"{r['seconds']:.1f}",
            f"{r['runs_per_hour']:.0f}",
            f"{r['images_per_second']:.0f}",
            f"{r['step_ms']:.1f}",
            f"{r['ratio_to_one']:.2f}",
        ]
        for r in rows
    ]
    return table(heads, lines, words=1)
