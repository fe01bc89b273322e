"""In which state a run is, from what it left in its directory."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtlcar.runs.lock import holder

STATES = ("finished", "failed", "running", "interrupted", "killed", "unstarted")
"""killed: it ended without having been able to say so. unstarted: the directory is written, nothing has run in it."""

DATED = re.compile(r"\d{4}-\d{2}-\d{2} ")


def run_state(directory: Path, status: Mapping[str, Any]) -> str:
    """One of `STATES`. `status` is status.json's content, empty where there is none (older versions)."""
    if (directory / "DONE").is_file():
        return "finished"
    if holder(directory) is not None:
        return "running"
    said = status.get("state")
    if said in ("failed", "interrupted"):
        return str(said)
    return "killed" if said else _state_by_log(directory / "train.log")


def _state_by_log(path: Path) -> str:
    """How train.log ends: with the word of an interruption, with a traceback (which has no dates), or as if cut off."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            lines = [line for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    except OSError:
        return "unstarted"
    if not lines:
        return "killed"
    if "Interrupted" in lines[-1]:
        return "interrupted"
    return "killed" if DATED.match(lines[-1]) else "failed"
