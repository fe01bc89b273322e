"""Folders of pictures that a dataset of ours draws: named after a digest of their options, whole or not there."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from filelock import FileLock

from mtlcar.data.writing import must_be_writable
from mtlcar.errors import UserError

OPTIONS = "options.json"
"""What was drawn, beside `labels.csv` and `images/`."""


class DrawnSet(Protocol):
    """A dataclass of plain values that says what is drawn."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def images(self) -> int: ...

    @property
    def size(self) -> int:
        """Side of a picture, pixels."""


Made = TypeVar("Made", bound=DrawnSet)


def file_name(i: int) -> str:
    """Picture i, relative to the folder."""
    return f"images/{i:06d}.png"


def drawn_folder(name: str, root: Path, made: Made, version: int, write: Callable[[Made, Path], None]) -> Path:
    """The folder with all pictures of `made`: found, or written beside it and renamed when complete.

    Safe when several processes ask at once: one draws, the others wait.

    Args:
        name: of the dataset, for messages.
        root: holds a folder for each set of options.
        version: part of the folder's name.
        write: to a folder that is not there: the pictures as `file_name` calls them, and `labels.csv`.

    Raises:
        UserError: no room on the disk, or a folder that cannot be written.
    """
    advice = "Choose another folder with data.root=..., or paths.cache=... where data.root is not set."
    with must_be_writable(f"The pictures of {name}", root, advice):
        return _found_or_drawn(name, root, made, version, write)


def is_complete(folder: Path, images: int) -> bool:
    """Whether the labels and as many pictures are there, so that nothing would be drawn again."""
    if not (folder / "labels.csv").is_file():
        return False
    have = {entry.name for entry in os.scandir(folder / "images")} if (folder / "images").is_dir() else set()
    return all(Path(file_name(i)).name in have for i in range(images))


def drawn_sets(root: Path) -> dict[Path, dict[str, Any]]:
    """The folders of `root`, each with its options, nested ones put beside the others; there are several in one
    cache. What cannot be read is left out."""
    found = {}
    for file in sorted(root.glob(f"*/{OPTIONS}")):
        try:
            options = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(options, dict):
            nested = {key: value for node in options.values() if isinstance(node, dict) for key, value in node.items()}
            found[file.parent] = options | nested
    return found


def _found_or_drawn(name: str, root: Path, made: Made, version: int, write: Callable[[Made, Path], None]) -> Path:
    options = json.dumps({"version": version, **asdict(made)}, sort_keys=True)
    folder = root / hashlib.sha256(options.encode()).hexdigest()[:16]
    if is_complete(folder, made.images):
        return folder
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f"{folder.name}.lock"):
        if is_complete(folder, made.images):
            return folder
        for leftover in (folder, *sorted(root.glob(f"{folder.name}.part*"))):
            shutil.rmtree(leftover, ignore_errors=True)
        needed, free = made.images * made.size**2 * 3, shutil.disk_usage(root).free
        if free < needed:
            raise UserError(
                f"{name}: drawing {made.images} pictures may need {needed / 1e6:.0f} MB, but {root} has "
                f"{free / 1e6:.0f} MB left. Free some room, ask for fewer data.images or set another data.root."
            )
        part = root / f"{folder.name}.part{os.getpid()}"
        try:
            write(made, part)
            (part / OPTIONS).write_text(options + "\n", encoding="utf-8")
            part.replace(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return folder
