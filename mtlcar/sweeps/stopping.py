"""How a command that starts jobs is stopped: the jobs are told, they save and end, and no further one starts."""

import os
import signal
import socket
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from mtlcar.runs.interrupts import SIGNALS as NAMES
from mtlcar.runs.interrupts import say

SIGNALS = tuple(int(getattr(signal, name)) for name in NAMES if hasattr(signal, name))


class SweepInterrupted(BaseException):
    """Leaves a launcher or sweeper that would go on. No `Exception`: Hydra takes those for failed cells."""


class Stop:
    """Whether this command was told to stop, by a signal here or, in a launcher's worker process, by its parent.

    A context: signals are noted instead of obeyed, so that a job can be given the time to save. Launchers kill their
    workers when an exception leaves the parent, the jobs below them too; hence a file tells the workers.

    Args:
        flag: file that the parent writes on a signal and its workers look for; None: there are no workers.
        worker: this is a worker.
        parent: of a worker, the parent's process id if it can be seen from here; its death is a stop.
        at_once: the jobs are somebody else's (a queue's), so that a signal ends the command and no job.

    Attributes:
        signum: the first signal; None: none came.
        count: how many came. Each is handed on to the job; a second Ctrl-C ends it without saving.
    """

    def __init__(
        self, flag: Path | None = None, *, worker: bool = False, parent: int | None = None, at_once: bool = False
    ) -> None:
        self.flag = flag
        self.worker = worker
        self.parent = parent
        self.at_once = at_once
        self.signum: int | None = None
        self.count = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in SIGNALS:
            before = signal.getsignal(number)
            # nohup's SIG_IGN and a handler of the process around us (Ray's, submitit's) stay
            if before in (signal.SIG_DFL, signal.default_int_handler):
                try:
                    signal.signal(number, self._note)
                except ValueError:  # not the main thread: whoever has it hears the signals
                    return self
                self._before[number] = before
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._restore()
        if self.flag is not None and not self.worker:
            self.flag.unlink(missing_ok=True)

    def _restore(self) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before.clear()

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.signum is None:
            self.signum = signum
            if not self.worker:
                say(f"mtlcar: {signal.Signals(signum).name}: what runs is told to end, nothing further starts.\n")
        if self.count > 1:
            self._restore()  # the third one is obeyed as if we were not here
        if self.flag is not None and not self.worker and not self.at_once:
            self.flag.write_text(f"{self.signum} {self.count}\n", encoding="utf-8")
        if self.at_once:
            raise SweepInterrupted

    @property
    def requested(self) -> bool:
        """Looks at the flag and at the parent too."""
        if self.worker and self.flag is not None:
            with suppress(OSError):
                words = self.flag.read_text(encoding="utf-8").split()
                if len(words) == 2:  # else it is being written
                    self.signum, self.count = int(words[0]), max(self.count, int(words[1]))
        if self.signum is None and self.parent is not None and not alive(self.parent):
            self.signum, self.count = int(signal.SIGTERM), 1
        return self.signum is not None

    def check(self) -> None:
        """Raises SweepInterrupted if a stop was requested."""
        if self.requested:
            raise SweepInterrupted

    @property
    def status(self) -> int:
        """Exit status as shells give it; 0: never stopped."""
        return 0 if self.signum is None else 128 + self.signum


def alive(pid: int) -> bool:
    """Whether this machine has such a process. That of another user counts."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def worker_stop(flag: Path, parent: int, host: str) -> Stop:
    """The stop of a launcher's worker. It looks after its parent where that is on this machine, except in a job of
    Slurm, which outlives the command that queued it."""
    seen = host == socket.gethostname() and "SLURM_JOB_ID" not in os.environ
    return Stop(flag, worker=True, parent=parent if seen else None)
