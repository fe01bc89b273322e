"""What a folder that cannot be written means to the user."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mtlcar.errors import UserError

UNWRITABLE = frozenset(
    getattr(errno, name)
    for name in ("ENOENT", "EEXIST", "ENOTDIR", "EACCES", "EPERM", "EROFS", "ENOSPC", "EDQUOT", "EIO")
    if hasattr(errno, name)
)
"""ENOENT too: /proc and other virtual file systems answer it to a new folder."""


@contextmanager
def must_be_writable(what: str, folder: Path, advice: str) -> Iterator[None]:
    """Turns the operating system's refusals to write inside `with` into a UserError.

    Args:
        what: what is written, to begin the message.
        folder: where.
        advice: the message's second line.
    """
    try:
        yield
    except OSError as error:
        if error.errno in UNWRITABLE:
            raise UserError(f"{what} under {folder} cannot be written: {error.strerror}.\n{advice}") from error
        raise
