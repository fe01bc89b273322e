"""A job that imports what every job needs while it is not yet known which run it will do."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mtlcar.sweeps.worker import GPUS, job_environment

AWAIT = ("-m", "mtlcar.runs.job", "--await")
FOR_LAUNCHERS = (GPUS, "RAY_")
"""Beginnings of variables that are set in the middle of a command and say nothing to a job."""


@dataclass(frozen=True)
class Place:
    """What a process has from the one that starts it."""

    directory: str
    environment: dict[str, str]

    @staticmethod
    def here() -> "Place":
        words = {key: value for key, value in job_environment().items() if not key.startswith(FOR_LAUNCHERS)}
        return Place(os.getcwd(), words)  # noqa: PTH109


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

    def prepare_next(self) -> None:
        """While another job trains."""
        if self.ahead and self.expected:
            self._prepare()

    def _prepare(self) -> None:
        if self._job is not None:
            return
        self._place = Place.here()
        self._job = subprocess.Popen(
            [sys.executable, *AWAIT],
            env=self._place.environment,
            stdin=subprocess.PIPE,
            process_group=0,
        )

    def take(self, words: Sequence[str]) -> "subprocess.Popen[bytes] | None":
        """The waiting job, set to work on `words`: run directory and options. None: there is none that a job started
        now would equal, or it has died."""
        self.expected = max(0, self.expected - 1)
        job, place = self._job, self._place
        if job is None or place != Place.here():
            self.discard()
            return None
        self._job = None
        assert job.stdin is not None
        try:
            with job.stdin:
                job.stdin.write(json.dumps(list(words)).encode() + b"\n")
        except OSError:
            job.kill()
            job.wait()
            return None
        return job

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


def job_words(directory: Path, *, show_traceback: bool = False) -> list[str]:
    """What a job is told."""
    return [str(directory), *(["--traceback"] if show_traceback else [])]
