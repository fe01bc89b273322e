"""Reading status.json."""

from pathlib import Path
from typing import Any

from mtlcar.runs.files import read_json

NAME = "status.json"


def read_status(run_dir: Path) -> dict[str, Any]:
    """What status.json says; empty where there is none or it is damaged."""
    try:
        values = read_json(run_dir / NAME)
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
