"""Run directories found below some folders, and what is read of each."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from mtlcar.config import with_defaults
from mtlcar.errors import UserError
from mtlcar.listing.finding import all_run_directories
from mtlcar.listing.stored import BAD_TASKS, BLOCKS, LOADER, as_float
from mtlcar.runs.trust import refuse_unfolding
from mtlcar.tasks import TaskSet


@dataclass
class Run:
    """A finished run; everything is read from its directory, nothing is computed on the network again."""

    directory: Path
    config: dict[str, Any]
    metrics: dict[str, Any]
    tasks: TaskSet
    finished: float

    @property
    def name(self) -> str:
        """`<sweep>/<fingerprint>`: the same wherever the runs folder lies."""
        return f"{self.directory.parent.name}/{self.directory.name}"

    @property
    def test(self) -> dict[str, float]:
        """Test metrics, without the consistency of levels of which one is implied by another: it is 1 by definition."""
        found = {k: x for k, v in self.metrics.get("test", {}).items() if (x := as_float(v)) is not None}
        if self.implied:
            found.pop("hierarchy/consistency", None)
        return found

    @property
    def implied(self) -> set[str]:
        """The coarse tasks that the network does not predict itself: those without a loss, where others have one."""
        test = self.metrics.get("test", {})
        if not any(f"{task.name}/loss" in test for task in self.tasks):
            return set()
        return {str(task.parent) for task in self.tasks if task.parent and f"{task.parent}/loss" not in test}

    @property
    def digests(self) -> dict[str, str]:
        """What the annotations and the weight file contained; empty in old files."""
        found = self.metrics.get("digests")
        return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}

    @property
    def fingerprint(self) -> str:
        return str(self.metrics.get("fingerprint", self.directory.name))

    @cached_property
    def groups(self) -> np.ndarray | None:
        """Which group each row of `predictions` belongs to, or None where every image is one of its own."""
        df = self.predictions
        if df is None or "group" not in df:
            return None
        codes = pd.factorize(df["group"])[0]
        codes = np.where(codes < 0, codes.max(initial=0) + 1 + np.arange(len(codes)), codes)  # no group: its own
        return codes if len(np.unique(codes)) < len(codes) else None

    @cached_property
    def predictions(self) -> pd.DataFrame | None:
        """predictions.parquet without the class scores, or None where it is missing or unreadable."""
        import pyarrow
        import pyarrow.parquet as pq

        try:
            names = pq.read_schema(self.directory / "predictions.parquet").names
            kept = [n for n in names if not n.endswith("/scores")]
            found = pq.read_table(self.directory / "predictions.parquet", columns=kept).to_pandas()
        except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException):
            return None
        lone = [n for n in found if n.endswith("/prediction") and f"{n.removesuffix('prediction')}target" not in found]
        return found.drop(columns=lone)  # without labels nothing can be said of them

    @cached_property
    def history(self) -> pd.DataFrame:
        """history.csv, one row an epoch; empty where it is missing."""
        file = self.directory / "history.csv"
        try:
            found = pd.read_csv(file).apply(pd.to_numeric, errors="coerce")
        except (OSError, ValueError):
            return pd.DataFrame()
        return found if "epoch" in found else pd.DataFrame()


@dataclass
class Found:
    """What lies below the folders: finished runs, and the others with the reason."""

    runs: list[Run] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)


def collect(directories: Iterable[Path]) -> Found:
    """Every run at or below `directories`, in the order of their paths, each once.

    Raises:
        UserError: a folder does not exist, or there is no finished run.
    """
    wanted = [Path(d) for d in directories]
    found = Found()
    for path in all_run_directories(wanted):
        reason = _read(path, found)
        if reason:
            found.left_out.append((f"{path.parent.name}/{path.name}", reason))
    if not found.runs:
        unfinished = ""
        if found.left_out:
            name, reason = found.left_out[0]
            unfinished = (
                f" {len(found.left_out)} runs there are not finished (the first, {name}: {reason}); `mtlcar resume "
                "DIR` goes on with what was begun."
            )
        raise UserError(
            f"No finished run below {', '.join(str(d) for d in wanted)}.{unfinished}\n"
            "Looked for folders with config.yaml, metrics.json and DONE, as `mtlcar train` writes them to "
            "<paths.runs>/<sweep>/<fingerprint>."
        )
    return found


def _read(path: Path, found: Found) -> str:
    """Add the run, or say why not."""
    done = path / "DONE"
    if not done.is_file():
        return "not finished (no DONE)"
    try:
        content = (path / "config.yaml").read_bytes()
        refuse_unfolding(content, path / "config.yaml")
        config = yaml.load(content, LOADER)
        metrics = json.loads((path / "metrics.json").read_text(encoding="utf-8"))
        tasks = TaskSet.from_dict(json.loads((path / "tasks.json").read_text(encoding="utf-8")))
        if not isinstance(config, dict) or not isinstance(metrics, dict):
            return "config.yaml or metrics.json holds no mapping"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, RecursionError, yaml.YAMLError, *BAD_TASKS) as error:
        return f"unreadable: {(str(error).splitlines() or [type(error).__name__])[0]}"
    for block in BLOCKS:
        metrics[block] = found_block if isinstance(found_block := metrics.get(block), dict) else {}
    if metrics.get("status") != "finished":
        return f"status {metrics.get('status')!r}"
    found.runs.append(Run(path, with_defaults(config), metrics, tasks, done.stat().st_mtime))
    return ""
