"""Folders of targets that read files: in memory where the system has such, gone when Python ends."""

import atexit
import shutil
import tempfile
from pathlib import Path


def folder(name: str) -> Path:
    """A new, empty one."""
    memory = Path("/dev/shm")
    made = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-", dir=memory if memory.is_dir() else None))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made
