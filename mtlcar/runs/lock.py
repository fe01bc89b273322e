"""Two processes never work in one run directory, be they on one machine or on two that share a disk.

`.lock` carries a flock, which ends with its process. Some network file systems keep flocks to each machine, or have
none; there `.owner` decides, in which the process that works counts up every few seconds. No clocks are compared.
"""

import errno
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from mtlcar.errors import UserError
from mtlcar.runs import flock
from mtlcar.runs.owner import OWNER, Busy, Holder, Owner, parsed, read
from mtlcar.runs.ranks import is_main_process

LOCK = ".lock"
BEAT = 10.0
"""Seconds between two counts of the process that works in a run directory."""
WATCH = 25.0
"""Seconds without a count after which another machine's process is dead."""
NO_FLOCK = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK})


@contextmanager
def run_lock(run_dir: Path, *, beat: float = BEAT, watch: float = WATCH) -> Iterator[None]:
    """The run directory is this process's while the block runs. Processes that Lightning started beside the first of a
    job take no lock: the first has it.

    Args:
        beat, watch: seconds, see `BEAT` and `WATCH`.

    Raises:
        Busy: another process works there; found at once, or for another machine's within `watch` seconds.
        UserError: nothing can be written there.
    """
    if not is_main_process():
        yield
        return
    fd = None
    owner = Owner(run_dir, beat)
    try:
        try:
            fd = flock.take(run_dir / LOCK)
        except OSError as error:
            if error.errno not in NO_FLOCK:
                raise
        else:
            if fd is None:
                raise Busy(run_dir, holder(run_dir))
        owner.claim(flocked=fd is not None, watch=watch)
    except BaseException as error:
        if fd is not None:
            flock.give(fd)
        if isinstance(error, OSError):
            raise UserError(
                f"{run_dir} cannot be worked in: {error.strerror}. A run needs a directory that you may write to, on "
                "a disk with space left; paths.runs=DIR puts runs elsewhere."
            ) from error
        raise
    try:
        yield
    finally:
        owner.end()
        if fd is not None:
            flock.give(fd)


def holder(run_dir: Path) -> Holder | None:
    """Who works in the run directory now; None: nobody. Changes nothing, and never makes a starting job fail.

    Of this machine's processes it is certain; another machine's is named for as long as its `.owner` is there.
    """
    for _ in range(20):
        held = flock.taken(run_dir / LOCK)
        owner = parsed(read(run_dir / OWNER))
        if held is False:
            return None if owner is None or owner.sure else replace(owner, sure=False)
        if owner is not None:
            return owner if held else replace(owner, sure=False)
        if held is None:
            return None
        time.sleep(0.02)  # it has just started, or is just ending
    return Holder(None, socket.gethostname(), None)


def wait_until_free(run_dir: Path, poll: float = 2.0, *, watch: float = WATCH) -> Iterator[Holder]:
    """Yields who works in the run directory, every `poll` seconds, until nobody does. Another machine's process that
    has not counted for `watch` seconds is nobody."""
    seen, since = read(run_dir / OWNER), time.monotonic()
    while (there := holder(run_dir)) is not None:
        now = read(run_dir / OWNER)
        if there.sure or now != seen:
            seen, since = now, time.monotonic()
        elif time.monotonic() - since > watch:
            return
        yield there
        time.sleep(poll)
