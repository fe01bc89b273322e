"""Runs for tests that hurt them: a written run directory, and jobs in processes of their own that start fast."""

import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from mtlcar.runs.files import read_json
from mtlcar.sweeps.cells import CellMaker

CARS = ("data.makes=2", "data.models_per_make=2", "data.images=72", "data.size=48", "data.image_size=32",
        "data.batch_size=8", "trainer=cpu", "threads=1", "logger=none", "trainer.log_every_n_steps=2",
        "head.dropout=0.3", "weighting=pcgrad", "weighting.level=representation")  # fmt: skip

# A process that has imported everything once and makes each job by a fork: five seconds less a job.
FAST = multiprocessing.get_context("forkserver")
FAST.set_forkserver_preload(["tests.jobs", "tests.warm"])


def write_run(folder: Path, *overrides: str) -> Path:
    """A run directory as the parent of a sweep leaves it, below `folder`; pictures are shared in `folder/cache`."""
    paths = (f"paths.runs={folder / 'runs'}", f"paths.cache={folder / 'cache'}")
    cell = CellMaker().make([*CARS, *paths, *overrides])
    cell.write()
    return cell.directory


def copy_run(run: Path, to: Path) -> Path:
    """The same run somewhere else, not begun."""
    to.mkdir(parents=True)
    for name in ("config.yaml", "overrides.txt", "tasks.json", "digests.json"):
        shutil.copy(run / name, to / name)
    return to


def _job(run_dir: Path, before: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    from mtlcar.runs import job

    sys.stdout = sys.stderr = (run_dir.parent / f"{run_dir.name}.out").open("a", buffering=1)
    if before:
        before(*arguments)
    os._exit(job.main(run_dir))


def start(run_dir: Path, before: Callable[..., None] | None = None, *arguments: Any) -> BaseProcess:
    """A job; `before(*arguments)` is called in its process first."""
    process = FAST.Process(target=_job, args=(run_dir, before, arguments))
    process.start()
    return process


def finish(run_dir: Path, before: Callable[..., None] | None = None, *arguments: Any) -> int:
    """A job to its end -> exit status; a negative signal number if it was killed."""
    process = start(run_dir, before, *arguments)
    process.join(240)
    assert process.exitcode is not None
    return process.exitcode


def said(run_dir: Path) -> str:
    """All that the jobs of a run printed."""
    return (run_dir.parent / f"{run_dir.name}.out").read_text()


def die_renaming(name: str, times: int = 1) -> None:
    """The process is killed when it is about to give a file its name, for the `times`-th time."""
    real, left = Path.replace, [times]

    def replace(self: Path, target: Any) -> Path:
        if Path(target).name == name:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
        return real(self, target)

    Path.replace = replace  # type: ignore[method-assign, assignment]


def results(run_dir: Path) -> dict[str, Any]:
    """Everything that a run computes, and nothing of when or how fast."""
    metrics = read_json(run_dir / "metrics.json")
    found: dict[str, Any] = {key: metrics[key] for key in ("status", "best", "val", "test", "digests")}
    for name in ("last", "best"):
        state = torch.load(run_dir / "checkpoints" / f"{name}.ckpt", weights_only=True)
        found[name] = {key: state[key] for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step")}
    found["history"] = pd.read_csv(run_dir / "history.csv").drop(columns="seconds").to_dict("list")
    found["rows"] = (run_dir / "rows.jsonl").read_text()
    found["predictions"] = pd.read_parquet(run_dir / "predictions.parquet").to_json(double_precision=15)
    return found
