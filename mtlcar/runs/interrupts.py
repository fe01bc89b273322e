"""What a run does when it is told to stop: finish the step, save, end."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

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
        self._numbers: list[int] = []

    def install(self) -> None:
        """From the main thread. What the caller made this process ignore (nohup) stays ignored."""
        numbers = [int(getattr(signal, name)) for name in SIGNALS if hasattr(signal, name)]
        self._numbers = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
        self.restore()

    def restore(self) -> None:
        """Take back what somebody else has taken since `install`: Lightning's trainer wraps the handler of SIGTERM, to
        end without saving, and with a collective of all processes within the handler."""
        for number in self._numbers:
            signal.signal(number, self._handle)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if not self._deferred:
            raise Stopped(signum)
        if self.requested is None:
            self.requested, self._since = signum, time.monotonic()
            say(f"{signal.Signals(signum).name}: saving after this step, then ending. Ctrl-C again ends at once.\n")
        elif signum == signal.SIGINT and time.monotonic() - self._since > AGAIN:
            raise Stopped(signum)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal only sets `requested`; one that nobody obeyed is raised at the end."""
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
    """Have the system send SIGTERM when the process that started this one ends, so that no job of a killed sweep runs
    on unnoticed. `MTLCAR_PARENT` names it; without that, or elsewhere than on Linux, nothing happens."""
    import ctypes
    import sys

    parent = os.environ.pop("MTLCAR_PARENT", "")
    if not parent.isdecimal() or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(1, int(signal.SIGTERM), 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != int(parent):  # it ended before the call
        raise Stopped(signal.SIGTERM)
