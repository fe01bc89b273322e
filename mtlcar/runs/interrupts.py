"""What a run does when it is told to stop: finish the step, save, end."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from mtlcar.runs.ranks import started_by_lightning

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
"""Ctrl-C; a shutdown or `kill`; a closed terminal; what Slurm and submitit send before they take a machine away."""
AGAIN = 1.0
"""Seconds after which a second Ctrl-C is meant as one, and not the first one's echo from another process."""


class Stopped(BaseException):
    """A signal ended the run. No `Exception`: nothing on the way may take it for a failure of its own."""

    def __init__(self, signum: int, saved: bool = False) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum
        self.saved = saved

    @property
    def status(self) -> int:
        """Exit status, as shells give it."""
        return 128 + self.signum


class Interrupts:
    """Turns signals into `Stopped`: at once, or inside `deferred` when whoever holds it asks.

    Attributes:
        requested: the signal that waits to be obeyed.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self._deferred = False
        self._since = 0.0

    def install(self) -> None:
        """From the main thread. What the caller made this process ignore (nohup) stays ignored."""
        for name in SIGNALS:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._handle)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        first = self.requested is None
        if first:  # kept: Python drops an exception that is raised while it cleans up an object
            self.requested, self._since = signum, time.monotonic()
        if not self._deferred:
            raise Stopped(signum)
        if first:
            say(f"{signal.Signals(signum).name}: saving after this step, then ending. Ctrl-C again ends at once.\n")
        elif signum == signal.SIGINT and time.monotonic() - self._since > AGAIN:
            raise Stopped(signum)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal only sets `requested`; one that nobody obeyed, here or before, is raised."""
        if self.requested is not None:
            raise Stopped(self.requested)
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self.requested is not None:
            raise Stopped(self.requested)


INTERRUPTS = Interrupts()
"""Signals belong to the process."""


def say(text: str) -> None:
    """Past Python's buffers, which a signal may have interrupted while they were written."""
    try:
        os.write(2, f"\n{text}".encode())
    except OSError:  # the terminal is gone
        return


def die_with_parent() -> None:
    """Have the system end this process with the one that started it: a job of a killed sweep saves itself (SIGTERM),
    one that Lightning started beside a job's first has nothing to save and would wait for the first for ever (SIGKILL).
    `MTLCAR_PARENT` names a sweep; elsewhere than on Linux nothing happens."""
    parent = os.environ.pop("MTLCAR_PARENT", "")
    if not sys.platform.startswith("linux"):
        return
    prctl, death = ctypes.CDLL(None).prctl, 1  # PR_SET_PDEATHSIG
    if started_by_lightning():
        prctl(death, int(signal.SIGKILL), 0, 0, 0)
    elif parent.isdecimal():
        prctl(death, int(signal.SIGTERM), 0, 0, 0)
        if os.getppid() != int(parent):  # it ended before the call
            raise Stopped(signal.SIGTERM)
