"""What run directories say of their runs: read in milliseconds, without torch, and never changed."""

import contextlib
import csv
import datetime
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import yaml

from mtlcar.config import with_defaults
from mtlcar.errors import UserError
from mtlcar.listing.life import run_state
from mtlcar.metrics.direction import lower_is_better
from mtlcar.runs.trust import refuse_unfolding
from mtlcar.tasks import TaskSet

FINGERPRINT = re.compile(r"[0-9a-f]{12}")
OURS = ("config.yaml", "overrides.txt", "tasks.json", "status.json", "metrics.json", "train.log", "checkpoints", "DONE")
"""What a run directory holds; a folder that is named as one and has some of it is one, even without config.yaml."""
NEEDED = ("data", "architecture", "weighting", "trainer", "sweep")
"""Keys by which a config.yaml is known as a run's."""
BLOCKS = ("best", "val", "test", "timing", "cost", "versions")
"""The mappings in metrics.json; one that is missing or null is empty."""
BAD_TASKS = (KeyError, TypeError, ValueError, AttributeError, OverflowError, UserError)
"""What `TaskSet.from_dict` raises for JSON that is no task set."""
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass
class StoredRun:
    """One run, in whatever state it is.

    Attributes:
        config: the composed configuration, younger top-level keys at their defaults.
        status: status.json; empty in directories of older versions.
        metrics: metrics.json; empty before the run is finished.
        digests: of the annotations and of a weight file; empty in directories of older versions.
        state: one of `life.STATES`.
        problems: files that are there and cannot be read, with the reason.
    """

    directory: Path
    config: dict[str, Any]
    tasks: TaskSet | None
    status: dict[str, Any]
    metrics: dict[str, Any]
    digests: dict[str, str]
    state: str
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """`<sweep>/<fingerprint>`: the same wherever the runs folder lies."""
        return f"{self.directory.parent.name}/{self.directory.name}"

    @property
    def task_names(self) -> tuple[str, ...]:
        return tuple(self.tasks.names) if self.tasks else ()

    @property
    def parts(self) -> dict[str, str]:
        """The method, where the run has one, and each group's choice."""
        chosen = {
            key: str(node["name"]) for key, node in self.config.items() if isinstance(node, dict) and "name" in node
        }
        method = self.config.get("method")
        return {"method": str(method), **chosen} if method else chosen

    @cached_property
    def history(self) -> list[dict[str, str]]:
        """history.csv, one row an epoch; empty where it is missing."""
        try:
            with (self.directory / "history.csv").open(newline="", encoding="utf-8") as file:
                return list(csv.DictReader(file))
        except (OSError, ValueError, csv.Error):
            return []

    @property
    def epochs_done(self) -> int | None:
        """Whole epochs trained; None where nothing says it."""
        done = mapping(self.metrics, "timing").get("epochs")
        if isinstance(done, int):
            return done
        with contextlib.suppress(IndexError, KeyError, TypeError, ValueError, OverflowError):
            return int(float(self.history[-1]["epoch"])) + 1
        return None

    @property
    def epochs(self) -> int | None:
        """Epochs asked for."""
        found = mapping(self.config, "trainer").get("max_epochs")
        return found if isinstance(found, int) and found >= 0 else None

    @property
    def monitor(self) -> str | None:
        """The metric that picks the best checkpoint, as `mtlcar.build.resolve_monitor` finds it."""
        named = mapping(self.metrics, "best").get("monitor") or self.config.get("monitor")
        if named or self.tasks is None:
            return str(named) if named else None
        finest = self.tasks.finest()
        return f"val/{finest.name}/" + ("accuracy" if finest.kind == "classification" else "mae")

    @property
    def best(self) -> float | None:
        """Best value of the monitored metric so far."""
        if (value := as_float(mapping(self.metrics, "best").get("value"))) is not None:
            return value
        numbers = []
        for row in self.history:
            with contextlib.suppress(KeyError, TypeError, ValueError):
                numbers.append(float(row[str(self.monitor)]))
        numbers = [number for number in numbers if number == number]
        if not numbers:
            return None
        return min(numbers) if self.minimized else max(numbers)

    @property
    def minimized(self) -> bool:
        """Whether a lower value of the monitored metric is better."""
        mode = self.config.get("monitor_mode")
        return mode == "min" if mode else lower_is_better(str(self.monitor))

    @property
    def numbers(self) -> dict[str, float]:
        """`val/...`, `test/...`, `parameters` and `fit_seconds` of a finished run."""
        found = {f"{part}/{k}": v for part in ("val", "test") for k, v in mapping(self.metrics, part).items()}
        found["parameters"] = mapping(self.metrics, "cost").get("parameters")
        found["fit_seconds"] = mapping(self.metrics, "timing").get("fit_seconds")
        return {key: number for key, value in found.items() if (number := as_float(value)) is not None}

    @property
    def overrides(self) -> list[str]:
        """What the user typed for it."""
        try:
            return [
                line for line in (self.directory / "overrides.txt").read_text(encoding="utf-8").splitlines() if line
            ]
        except (OSError, ValueError):
            return []

    @cached_property
    def updated(self) -> float:
        """When it last gave a sign of life, seconds since 1970."""
        files = ("DONE",) if self.state == "finished" else ("history.csv", "train.log", "config.yaml")
        times = [(self.directory / name).stat().st_mtime for name in files if (self.directory / name).exists()]
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            times.append(datetime.datetime.fromisoformat(self.status.get("updated", "")).timestamp())
        return max(times, default=0.0)


def as_float(value: Any) -> float | None:
    """A number of JSON; None for anything else, and for whole numbers that no float has."""
    with contextlib.suppress(OverflowError):
        return float(value) if isinstance(value, int | float) else None
    return None


def mapping(parent: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = parent.get(key)
    return found if isinstance(found, Mapping) else {}


def read(path: Path) -> StoredRun | str | None:
    """One run; why it cannot be read; or None for somebody else's folder."""
    try:
        content = (path / "config.yaml").read_bytes()
        refuse_unfolding(content, path / "config.yaml")
        config = yaml.load(content, LOADER)
    except FileNotFoundError:
        return "config.yaml is missing"
    except (OSError, ValueError, RecursionError, UserError, yaml.YAMLError) as error:
        return f"config.yaml: {_first_line(error)}" if _is_ours(path) else None
    if not isinstance(config, dict) or any(key not in config for key in NEEDED):
        return "config.yaml holds no run's configuration" if _is_ours(path) else None
    problems: list[str] = []
    status, metrics, tasks, digests = (
        _read_json(path / f"{name}.json", problems) for name in ("status", "metrics", "tasks", "digests")
    )
    state = run_state(path, status)
    if state == "finished" and not metrics and not problems:
        problems.append("metrics.json is missing")
    made = None
    try:
        made = TaskSet.from_dict(tasks) if tasks else None
    except BAD_TASKS as error:
        problems.append(f"tasks.json: {_first_line(error)}")
    metrics |= {block: {} for block in BLOCKS if block in metrics and not isinstance(metrics[block], dict)}
    digests = digests or dict(mapping(metrics, "digests"))
    digests = {name: digest for name, digest in digests.items() if isinstance(digest, str)}
    return StoredRun(path, {**_defaults(), **config}, made, status, metrics, digests, state, problems)


@cache
def _defaults() -> dict[str, Any]:
    return with_defaults({})


def _is_ours(path: Path) -> bool:
    named = FINGERPRINT.fullmatch(path.name) is not None
    return named or sum((path / name).exists() for name in OURS) > 2


def _read_json(path: Path, problems: list[str]) -> dict[str, Any]:
    """The file's mapping; empty where there is no file, or none that can be read, which joins `problems`."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{path.name}: {_first_line(error)}")
        return {}
    if isinstance(found, dict):
        return found
    problems.append(f"{path.name} holds no mapping")
    return {}


def _first_line(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text.splitlines() or [type(error).__name__])[0]
