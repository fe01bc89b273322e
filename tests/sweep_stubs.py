"""`mtlcar` with stub jobs, in processes forked from one that has imported everything, for tests of sweeps."""

import os
import signal
import sys
import textwrap
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from mtlcar.sweeps import one_run, progress, sweep
from mtlcar.sweeps.spare import SPARE
from tests.jobs import FAST

SMALL = (
    "data.image_size=32", "data.images=160", "data.size=48", "data.makes=2", "data.models_per_make=2",
    "data.batch_size=16", "trainer=cpu", "trainer.max_epochs=2", "threads=1", "logger=none",
)  # fmt: skip
JOB = """\
import json, os, signal, sys, time
from pathlib import Path
from mtlcar.runs.lock import Busy, run_lock

run = Path(sys.argv[1])
steps, seconds = int(os.environ.get("STUB_STEPS", "4")), float(os.environ.get("STUB_SECONDS", "0.05"))
words = (run / "overrides.txt").read_text().split()
seed = int(next((word.removeprefix("seed=") for word in words if word.startswith("seed=")), 0))

def note(word):
    with (run.parent.parent / "ledger.txt").open("a") as file:
        file.write(f"{word} {run.name}\\n")

def say(state, **more):
    text = json.dumps({"state": state, "pid": os.getpid(), "resumed_step": first or None, **more})
    (run / "status.tmp").write_text(text)
    (run / "status.tmp").replace(run / "status.json")

def stop(signum, frame):
    note("stopped")
    say("interrupted")
    sys.exit(128 + signum)

try:
    with run_lock(run):
        ledger = run.parent.parent / "ledger.txt"  # one write is a step taken, whenever the job is killed
        first = ledger.read_text().split("\\n").count(f"step {run.name}") if ledger.exists() else 0
        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        note("began")
        if seed == int(os.environ.get("STUB_BAD_SEED", "-1")):
            say("failed", error="ValueError: a bad seed")
            sys.exit(1)
        for step in range(first, steps):
            time.sleep(seconds)
            note("step")
        best = {"monitor": "val/x", "value": 0.5 + seed / 100}
        (run / "metrics.json").write_text(json.dumps({"best": best}))
        say("finished")
        (run / "DONE").touch()
        note("finished")
except Busy:
    sys.exit(75)
"""
"""Takes the run directory's lock, counts steps in the ledger and goes on from there, like a run and much faster."""


def serve(asked: Connection, environment: dict[str, str]) -> None:
    """The process that commands are forked from: it starts one a message, or waits for one."""
    os.environ.clear()
    os.environ.update(environment)
    one_run.job_command = lambda directory, **_: [sys.executable, os.environ["STUB_JOB"], str(directory)]
    one_run.POLL, sweep.POLL, progress.EVERY = 0.05, 0.2, 0.2
    SPARE.expect = lambda runs, **_: None  # type: ignore[method-assign, assignment]
    while True:
        try:
            what = asked.recv()
        except EOFError:
            os._exit(0)
        if "wait" in what:
            asked.send(os.waitstatus_to_exitcode(os.waitpid(what["wait"], 0)[1]))
            continue
        if not (pid := os.fork()):
            asked.close()
            _command(**what)
        asked.send(pid)


def _command(words: list[str], environment: dict[str, str], out: str, cwd: str) -> None:
    from mtlcar.cli import main

    os.setsid()
    os.chdir(cwd)
    os.environ.update(environment)
    for name, numbers in ((out, (1, 2)), (os.devnull, (0,))):
        opened = os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        for number in numbers:
            os.dup2(opened, number)
    status: Any = 99
    try:
        status = main(words)
    except SystemExit as end:
        status = end.code
    finally:
        sys.stdout.flush()
        os._exit(status)


class Server:
    """Starts commands. `cache`: for the embedded pictures."""

    def __init__(self, folder: Path) -> None:
        self.cache = folder / "cache"
        self._pipe, theirs = FAST.Pipe()
        self._process = FAST.Process(target=serve, args=(theirs, dict(os.environ)))
        self._process.start()
        theirs.close()

    def ask(self, **what: Any) -> int:
        self._pipe.send(what)
        return int(self._pipe.recv())

    def close(self) -> None:
        self._pipe.close()
        self._process.join()


class Command:
    """A running `mtlcar`."""

    def __init__(self, server: Server, pid: int, out: Path) -> None:
        self.server, self.pid, self.out = server, pid, out

    def tell(self, signum: int) -> None:
        os.kill(self.pid, signum)

    def wait(self) -> int:
        """Its exit status; negative: the signal that killed it."""
        return self.server.ask(wait=self.pid)

    def until(self, words: str) -> None:
        """It has printed this."""
        deadline = time.monotonic() + 60
        while words not in self.out.read_text():
            assert time.monotonic() < deadline, self.out.read_text()
            time.sleep(0.02)

    def ended(self, expect: int = 0) -> str:
        """What it printed."""
        status, text = self.wait(), self.out.read_text()
        assert status == expect, f"exit {status}\n{text}"
        return text

    def kill_with_its_job(self) -> None:
        """As a power cut does: nobody has the time to save."""
        self.tell(signal.SIGSTOP)  # starts nothing now
        jobs = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        for pid in (self.pid, *map(int, jobs)):
            os.kill(pid, signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL


class Place:
    """A folder in which commands run; its `runs`, and what the jobs noted: began, step, stopped, finished."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server, self.folder, self.runs, self.job = server, folder, folder / "runs", folder / "job.py"
        self.job.write_text(textwrap.dedent(JOB))
        self.started = 0

    def start(self, *words: str, **environment: str) -> Command:
        self.started += 1
        out = self.folder / f"out{self.started}.txt"
        environment["STUB_JOB"] = str(self.job)
        pid = self.server.ask(words=words, environment=environment, out=str(out), cwd=str(self.folder))
        return Command(self.server, pid, out)

    def run(self, *words: str, expect: int = 0, **environment: str) -> str:
        return self.start(*words, **environment).ended(expect)

    def sweep(self, *words: str) -> list[str]:
        return ["train", "-m", *self.common(), *words]

    def common(self) -> list[str]:
        return [*SMALL, "paths.runs=runs", f"paths.cache={self.server.cache}", "sweep=a"]

    def done(self, sweep: str = "runs/a") -> list[str]:
        return [path.parent.name for path in (self.folder / sweep).glob("*/DONE")]

    def ledger(self) -> Counter[str]:
        path = self.runs / "ledger.txt"
        return Counter(path.read_text().splitlines() if path.exists() else [])

    def count(self, word: str) -> int:
        return sum(n for line, n in self.ledger().items() if line.startswith(word))

    def until(self, word: str, at_least: int) -> None:
        deadline = time.monotonic() + 60
        while self.count(word) < at_least:
            assert time.monotonic() < deadline, f"no {at_least} x {word}: {self.ledger()}"
            time.sleep(0.01)
