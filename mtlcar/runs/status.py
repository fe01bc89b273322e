"""status.json: where a run is in its life, for people and for sweeps."""

import contextlib
import datetime
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from mtlcar.runs.files import read_json, write_json

NAME = "status.json"


class Status:
    """Writes RUN_DIR/status.json when a session begins, after every checkpoint, and when it ends.

    Keys: `state` (running, finished, failed, interrupted), `started`, `updated`, `ended` (ISO 8601, UTC, of this
    session), `first_step` (when this session's first optimizer step was done, seconds since the epoch; None: none yet),
    `pid`, `host`, `sessions` (how often the run was started), `resumed_step` (optimizer step at which this session went
    on; None: from the start), `step`, `epoch`, `seconds` (wall, this session), `error` (first line). A `running` whose
    process is gone was killed.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / NAME
        self._began = time.monotonic()
        earlier = read_status(run_dir)
        said = earlier.get("error") if earlier.get("state") == "failed" else None
        self.earlier_error = None if said is None else str(said)
        """Why the session before failed, one line; None: it did not."""
        sessions = earlier.get("sessions")
        self.values: dict[str, Any] = {
            "state": "running",
            "started": now(),
            "updated": now(),
            "ended": None,
            "first_step": None,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "sessions": (sessions if isinstance(sessions, int) else 0) + 1,
            "resumed_step": None,
            "step": 0,
            "epoch": 0,
            "seconds": 0.0,
            "error": None,
        }

    def write(self, **changes: Any) -> None:
        self.values |= {"updated": now(), "seconds": round(time.monotonic() - self._began, 1), **changes}
        write_json(self.path, self.values)

    def end(self, state: str, error: str | None = None) -> None:
        """Never raises: what ended the run is what matters."""
        try:
            self.write(state=state, ended=now(), error=error)
        except OSError:  # a full disk, perhaps the reason: the old file's place is still there
            with contextlib.suppress(OSError), self.path.open("r+", encoding="utf-8") as file:
                file.write(json.dumps(self.values))
                file.truncate()

    def saved(self, step: int, epoch: int) -> None:
        """A checkpoint is there. The disk may have had room for no more."""
        with contextlib.suppress(OSError):
            self.write(step=step, epoch=epoch)

    def stepped(self, when: float) -> None:
        """The first optimizer step of this session was done then. As `saved`, never at the cost of the run."""
        with contextlib.suppress(OSError):
            self.write(first_step=when)


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def read_status(run_dir: Path) -> dict[str, Any]:
    """What status.json says; empty where there is none or it is damaged."""
    try:
        values = read_json(run_dir / NAME)
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
