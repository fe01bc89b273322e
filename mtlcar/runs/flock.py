"""File locks that end with the process that holds them (flock), and a question that disturbs nobody."""

import errno
import fcntl
import os
import random
import time
from pathlib import Path

PATIENCE = 10.0
"""Seconds that `take` goes on against processes that only ask."""
ELSEWHERE = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES})

_open: set[int] = set()


def take(path: Path) -> int | None:
    """An exclusive lock on the file, made where it is missing, without waiting for another holder. The descriptor that
    holds it (for `give`), or None: another process holds it.

    The lock ends with this process, however that dies: programs that it starts do not inherit the descriptor, and
    processes that it forks close it.

    Raises:
        OSError: the file cannot be opened for writing, or this file system has no flock.
    """
    until = time.monotonic() + PATIENCE
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        _open.add(fd)
        try:
            if _locked(fd, fcntl.LOCK_EX):
                if _is_at(fd, path):
                    return fd
            elif not _locked(fd, fcntl.LOCK_SH) or time.monotonic() > until:
                give(fd)
                return None
            # Else somebody was only asking (`taken`), or the file was removed since it was opened: again.
        except BaseException:
            give(fd)
            raise
        give(fd)
        time.sleep(random.uniform(0.0005, 0.005))


def give(fd: int) -> None:
    """Ends a lock of `take` or `share`. In a forked child, which has closed it, nothing happens."""
    if fd in _open:
        try:
            fcntl.flock(fd, fcntl.LOCK_UN)  # at once, also where a program about to be started still has a copy
        except OSError:
            pass  # closing ends it as well
        finally:
            _open.discard(fd)
            os.close(fd)


def taken(path: Path) -> bool | None:
    """Whether a process holds `take`'s lock on the file; None where that cannot be known (not readable, no flock).

    It asks with a shared lock, held for an instant, which `take` can tell from a holder's.
    """
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        return not _locked(fd, fcntl.LOCK_SH)
    except OSError:
        return None
    finally:
        os.close(fd)


def share(path: Path) -> int:
    """A shared lock on a file or folder that is there. Raises BlockingIOError where it is not to be had now."""
    fd = os.open(path, os.O_RDONLY)
    _open.add(fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BaseException:
        give(fd)
        raise
    return fd


def _locked(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in ELSEWHERE:
            return False
        raise
    return True


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


def _forget() -> None:
    """A forked child (a loader's worker) may outlive this process; the lock may not."""
    for fd in _open:
        os.close(fd)
    _open.clear()


os.register_at_fork(after_in_child=_forget)
