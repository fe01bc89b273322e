"""Picture files that a user names: by themselves, or by the folders that hold them."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from mtlcar.data.file_bytes import shown
from mtlcar.errors import UserError

ENDINGS = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".jp2", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Of the files that are taken from folders; a file that is named itself may have any."""


def picture_files(words: Sequence[str]) -> list[Path]:
    """The pictures that `words` name, each once: files as given, and all below folders in the order of their names.

    Hidden files and folders, and links to folders, are left out of folders.

    Raises:
        UserError: something that is not there, or a folder without a picture.
    """
    found: dict[str, Path] = {}
    for word in words:
        try:
            path = Path(word).expanduser()
            is_folder, there = path.is_dir(), path.exists()
        except (OSError, ValueError, RuntimeError) as error:  # too long, what no name can hold, `~` of nobody
            raise UserError(
                f"{word[:200]!r} cannot be looked up ({error}). Give picture files or folders of them."
            ) from None
        if not there:
            raise UserError(f"{shown(word)}: no such file or folder. Give picture files or folders of them.")
        files = list(_below(path)) if is_folder else [path]
        if not files:
            raise UserError(
                f"{shown(word)}: no pictures in this folder. Looked for {', '.join(e[1:] for e in ENDINGS)} files."
            )
        for file in files:
            found.setdefault(os.path.realpath(file), file)
    if not found:
        raise UserError("No pictures were given. Give picture files or folders of them.")
    return list(found.values())


def _below(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise UserError(f"{shown(error.filename)}: this folder cannot be read ({error.strerror}).")

    for where, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and name.lower().endswith(ENDINGS):
                yield Path(where) / name
