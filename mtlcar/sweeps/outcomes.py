"""What became of the cells of a sweep, and the file in which all processes of a sweep write it down."""

import fcntl
import json
import os
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from mtlcar.runs.files import read_json


@dataclass(frozen=True)
class Outcome:
    """What became of one cell in this call.

    Attributes:
        state: finished, joined (another process finished it during this call), skipped (was finished before), failed,
            interrupted (told to stop), elsewhere (another process works there), lost (its worker ended without a word),
            unstarted.
        exit: exit status of the job; negative: the signal that killed it; None: no job of ours ran.
        error: why it failed, one line.
        seconds: wall time of the job.
        resumed_step: optimizer step at which it went on; None: from the start.
        metric, value: the monitored one, at its best.
    """

    cell: str
    directory: str
    overrides: tuple[str, ...]
    state: str
    exit: int | None = None
    error: str | None = None
    seconds: float | None = None
    resumed_step: int | None = None
    metric: str | None = None
    value: float | None = None

    @property
    def key(self) -> str:
        """Tells it from others of the call: a fingerprint may be in several folders."""
        return self.directory or self.cell

    @property
    def ended_well(self) -> bool:
        return self.state in ("finished", "joined", "skipped")

    def with_result(self) -> "Outcome":
        """With the monitored value of metrics.json, as far as it is there."""
        try:
            best = read_json(Path(self.directory) / "metrics.json")["best"]
            return replace(self, metric=str(best["monitor"]), value=float(best["value"]))
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return self


def is_done(directory: Path) -> bool:
    return (directory / "DONE").is_file()


class Journal:
    """A file of lines to which several processes, of one call or of several, append what happens to cells.

    Args:
        path: beside the run directories, where every worker can reach it.
        call: which of the calls this is; `read` gives its lines alone.
    """

    def __init__(self, path: Path, call: str) -> None:
        self.path = path
        self.call = call
        self._offset = 0

    def add(self, event: str, outcome: Outcome) -> None:
        """`event`: started or ended. Never raises: the cell counts, and its directory says most of this too."""
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        line = json.dumps({"call": self.call, "when": now, "event": event, **asdict(outcome)}) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file:
                with suppress(OSError):  # a disk without locks; appending keeps a line whole
                    fcntl.flock(file, fcntl.LOCK_EX)
                if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                    line = "\n" + line  # a killed process left half a line
                file.write(line.encode())
        except OSError as error:
            print(f"mtlcar: {self.path} cannot be written: {error.strerror}", file=sys.stderr, flush=True)

    def read(self) -> list[tuple[str, Outcome]]:
        """This call's events since the last `read`."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        found = []
        for entry in entries(whole):
            if entry.get("call") == self.call:
                with suppress(KeyError, TypeError):  # a line of another version, or not of ours
                    found.append((str(entry["event"]), as_outcome(entry)))
        return found


def entries(content: bytes) -> list[dict[str, Any]]:
    """The whole lines of a journal; half ones are passed over."""
    found = []
    for line in content.splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict):
            found.append(entry)
    return found


def as_outcome(entry: dict[str, Any]) -> Outcome:
    known = {key: value for key, value in entry.items() if key in Outcome.__dataclass_fields__}
    return Outcome(**{**known, "overrides": tuple(known["overrides"])})


def overrides_in(directory: Path) -> tuple[str, ...]:
    """overrides.txt of a run directory."""
    try:
        return tuple((directory / "overrides.txt").read_text(encoding="utf-8").split("\n")[:-1])
    except (OSError, ValueError):
        return ()
