"""A file's bytes, where it is a file: a named pipe would be waited for without end, a device never ends."""

import errno
import os
import stat
from pathlib import Path

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def regular_bytes(file: Path, most: int) -> bytes:
    """All bytes of a regular file, or of one that a link leads to, also outside of the data's folder: many keep the
    pictures on another disk.

    Raises:
        OSError: no such file, one that may not be read, something else than a file, or more than `most` bytes;
            `strerror` says which.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except ValueError as error:  # a name with a zero in it
        raise FileNotFoundError(errno.ENOENT, str(error), str(file)) from None
    try:
        state = os.fstat(descriptor)
        kind = stat.S_IFMT(state.st_mode)
        if kind != stat.S_IFREG:
            raise OSError(errno.EINVAL, f"it is {KINDS.get(kind, 'something else')}, not a file", str(file))
        if state.st_size > most:
            raise OSError(errno.EFBIG, f"{state.st_size / 1e6:.0f} MB, more than {most / 1e6:.0f} MB", str(file))
        with open(descriptor, "rb", closefd=False) as stream:
            return stream.read()
    finally:
        os.close(descriptor)


def shown(path: object) -> str:
    r"""A path as text that can be printed and written: bytes that are no UTF-8 as `\xe9`."""
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
