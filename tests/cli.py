"""The command `mtlcar` as a process, forked from one that has imported everything once; its jobs likewise."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from tests.jobs import FAST


def mtlcar(
    *words: str, expect: int = 0, cwd: Path | None = None, fresh_jobs: bool = False
) -> "subprocess.CompletedProcess[str]":
    """What the command printed; fails if its exit status is not the expected one.

    Args:
        fresh_jobs: runs are `python -m mtlcar.runs.job`, as for a user, and each imports everything again. Needed where
            how a job starts matters: several processes of one run, a launcher, the waiting job.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        place = (str(out), str(err), str(cwd or Path.cwd()), dict(os.environ))
        ours, theirs = FAST.Pipe()
        process = FAST.Process(target=_main, args=(words, *place, None if fresh_jobs else theirs))
        process.start()
        theirs.close()
        _start_jobs(ours, str(out), str(err))
        process.join()
        done = subprocess.CompletedProcess(words, process.exitcode or 0, out.read_text(), err.read_text())
    assert done.returncode == expect, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def _main(
    words: Sequence[str], out: str, err: str, cwd: str, environment: dict[str, str], starter: Connection | None
) -> None:
    from mtlcar.cli import main

    _become(out, err, cwd, environment)
    if starter:
        _fork_jobs(starter)
    sys.argv = ["mtlcar", *words]
    try:
        code = main(words)
    except SystemExit as stop:  # argparse
        code = stop.code if isinstance(stop.code, int) else 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _job(words: list[str], out: str, err: str, cwd: str, environment: dict[str, str]) -> None:
    from mtlcar.runs import job
    from mtlcar.runs.output import lasting_output

    _become(out, err, cwd, environment)
    with lasting_output():
        status = job.start(words)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _become(out: str, err: str, cwd: str, environment: dict[str, str]) -> None:
    """The streams, working directory and environment that a process would have been started with."""
    for number, name in enumerate((os.devnull, out, err)):
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)


def _start_jobs(asked: Connection, out: str, err: str) -> None:
    """Starts the jobs that a command asks for, here: it would have to import everything for a fork server of its own.
    Returns when the command has ended."""
    job = None
    while True:
        ready = wait([asked, *([job.sentinel] if job else [])])
        if job and job.sentinel in ready:
            job.join()
            with suppress(OSError):  # nobody waits for it
                asked.send(job.exitcode)
            job = None
        if asked in ready:
            try:
                words, cwd, environment = asked.recv()
            except EOFError:
                break
            assert job is None
            job = FAST.Process(target=_job, args=(words, out, err, cwd, environment))
            job.start()
            asked.send(job.pid)
    asked.close()
    if job:  # of a command that was killed
        job.terminate()
        job.join()


def _fork_jobs(starter: Connection) -> None:
    """From here on the runs of this command are forked too."""
    from mtlcar.sweeps import one_run
    from mtlcar.sweeps.spare import SPARE

    class Subprocess:
        """What `one_run` uses of it."""

        TimeoutExpired, DEVNULL = subprocess.TimeoutExpired, subprocess.DEVNULL

        @staticmethod
        def Popen(command: list[str], *, env: dict[str, str], **_: Any) -> "_Job":  # noqa: N802
            assert command[1:3] == ["-m", "mtlcar.runs.job"], command
            parent = {"MTLCAR_PARENT"}  # it would end with this process, and another one forks it
            return _Job(starter, command[3:], {key: value for key, value in env.items() if key not in parent})

    one_run.subprocess = Subprocess  # type: ignore[attr-defined]
    SPARE.expect = lambda runs, **options: None  # type: ignore[method-assign, assignment]


class _Job:
    """What `one_run` uses of a Popen."""

    def __init__(self, starter: Connection, words: list[str], env: dict[str, str]) -> None:
        self._starter = starter
        starter.send((words, os.getcwd(), env))  # noqa: PTH109
        self.pid: int = starter.recv()

    def wait(self, timeout: float | None = None) -> int:
        if not self._starter.poll(timeout):
            raise subprocess.TimeoutExpired("job", timeout or 0.0)
        status: int = self._starter.recv()
        return status

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)
