"""A job that imports what every job needs while it is not yet known which run it will do."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mtlcar.runs.trust import TRUSTED
from mtlcar.sweeps.worker import GPUS, job_environment

PACKAGE = Path(__file__).resolve().parent.parent
AWAIT = ("-m", "mtlcar.runs.job", "--await")
NOT_COMPARED = (GPUS, "RAY_", "PYTORCH_NVML_BASED_CUDA_CHECK", "TORCHINDUCTOR_CACHE_DIR")
"""Beginnings of variables that are set in the middle of a command: for launchers, and by Lightning and torch in every
process that imports them, a job too."""


@dataclass(frozen=True)
class Place:
    """What a process has from the moment in which it starts.

    Attributes:
        changed: when this package was last changed, nanoseconds since the epoch: a job imports some of it when it waits
            and the rest when it runs.
    """

    directory: str
    environment: dict[str, str]
    changed: int

    @staticmethod
    def here() -> "Place":
        """Raises OSError: the working directory is gone, or the package."""
        words = {key: value for key, value in job_environment().items() if not key.startswith(NOT_COMPARED)}
        changed = max((file.stat().st_mtime_ns for file in PACKAGE.rglob("*.py")), default=0)
        return Place(os.getcwd(), words, changed)  # noqa: PTH109


class Spare:
    """At most one waiting job, for as many runs as are expected to start from this process.

    It reads what to do from a pipe that nobody else writes to, so it ends with this process, whatever ends that.

    Attributes:
        expected: runs that have not been started yet.
        ahead: whether a job may import while another one trains. Where training has all cores, that would cost it more
            than the import takes: the threads of a step wait for the slowest.
    """

    def __init__(self) -> None:
        self.expected = 0
        self.ahead = False
        self._job: subprocess.Popen[bytes] | None = None
        self._place: Place | None = None

    def expect(self, runs: int, *, ahead: bool = False) -> None:
        """So many runs will be started from here; the first job begins to import at once."""
        self.expected, self.ahead = runs, ahead
        if runs:
            self._prepare()
        else:
            self.discard()

    def prepare_next(self, trains: Callable[[], bool]) -> None:
        """While another job works: when it `trains`, if one will be needed. Cheap where there is nothing to do."""
        if self.ahead and self.expected and self._job is None and trains():
            self._prepare()

    def _prepare(self) -> None:
        if self._job is not None:
            return
        with contextlib.suppress(OSError):  # no room for one more process, say: a run can start without
            self._place = Place.here()
            self._job = subprocess.Popen(
                [sys.executable, *AWAIT],
                env=job_environment(),
                stdin=subprocess.PIPE,
                process_group=0,
            )

    def take(self, words: Sequence[str]) -> "subprocess.Popen[bytes] | None":
        """The waiting job, set to work on `words`: run directory and options. None: there is none that a job started
        now would equal, or it has died."""
        self.expected = max(0, self.expected - 1)
        job = self._job
        if job is None:
            return None
        assert job.stdin is not None
        with contextlib.suppress(OSError):
            if self._place == Place.here():
                with job.stdin:
                    job.stdin.write(json.dumps(list(words)).encode() + b"\n")
                self._job = None
                return job
        self.discard()
        return None

    def discard(self) -> None:
        """The waiting job has nothing that could be lost."""
        job, self._job = self._job, None
        if job is not None:
            job.kill()
            job.wait()
            assert job.stdin is not None
            with contextlib.suppress(OSError):
                job.stdin.close()


SPARE = Spare()
"""The process's own."""


def job_words(directory: Path, *, show_traceback: bool = False, trusted: bool = False) -> list[str]:
    """What a job is told. `trusted`: its configuration was typed here, and may call any code (`mtlcar.runs.trust`)."""
    return [str(directory), *(["--traceback"] if show_traceback else []), *([TRUSTED] if trusted else [])]
