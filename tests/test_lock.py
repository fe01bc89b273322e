"""Two processes never work in one run directory, on one machine or on two that share a disk."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mtlcar.errors import UserError
from mtlcar.runs import flock
from mtlcar.runs.lock import Busy, Holder, holder, run_lock, wait_until_free
from mtlcar.runs.owner import Owner

Start = Callable[..., "subprocess.Popen[str]"]

HOLD = """
import sys, time
from pathlib import Path
from mtlcar.runs.lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("mine", flush=True)
    sys.stdin.read()
"""
LEAVES_CHILDREN = """
import os, subprocess, sys, time
from pathlib import Path
from mtlcar.runs.lock import run_lock
with run_lock(Path(sys.argv[1])):
    program = subprocess.Popen(["sleep", "60"], close_fds=False)
    ready, go_on = os.pipe()
    forked = os.fork()
    if forked == 0:
        os.write(go_on, b".")
        time.sleep(60)
    os.read(ready, 1)
    print(program.pid, forked, flush=True)
    time.sleep(60)
"""
FORKS = """
import os, sys, time
from pathlib import Path
from mtlcar.runs.lock import run_lock
with run_lock(Path(sys.argv[1])):
    if os.fork() == 0:
        sys.exit()
    os.wait()
    print("left", flush=True)
    time.sleep(60)
"""
ASKS = """
import sys
from pathlib import Path
from mtlcar.runs.lock import holder
print("asking", flush=True)
while True:
    holder(Path(sys.argv[1]))
"""
ONE_OF_MANY_MACHINES = """
import errno, fcntl, sys, time
from pathlib import Path

def flock(fd, kind):
    raise OSError(errno.ENOLCK, "No locks available")

fcntl.flock = flock
from mtlcar.errors import UserError
from mtlcar.runs.lock import run_lock
print("ready", flush=True)
sys.stdin.readline()
try:
    with run_lock(Path(sys.argv[1]), beat=0.1, watch=2.0):
        print("mine", flush=True)
        sys.stdin.readline()
except UserError as error:
    print(error, flush=True)
"""


@pytest.fixture
def start() -> Iterator[Start]:
    begun: list[subprocess.Popen[str]] = []

    def start(code: str, *words: object) -> "subprocess.Popen[str]":
        command = [sys.executable, "-c", code, *map(str, words)]
        begun.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.communicate()


def said(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def write_owner(run_dir: Path, beat: int = 0, **other: object) -> None:
    known = {"pid": 7, "host": "elsewhere", "machine": "?", "started": "2026-01-01T00:00:00+00:00", "beat": beat}
    (run_dir / ".owner").write_text(json.dumps(known | other))


def test_a_second_process_is_told_who_works_there_and_what_to_do(tmp_path: Path, start: Start) -> None:
    first = start(HOLD, tmp_path)
    assert said(first) == "mine"
    with pytest.raises(Busy) as refused, run_lock(tmp_path):
        pass
    there = json.loads((tmp_path / ".owner").read_text())
    for part in (str(tmp_path), f"process {first.pid}", there["host"], there["started"], f"kill {first.pid}"):
        assert part in str(refused.value)
    assert refused.value.holder == holder(tmp_path) == Holder(first.pid, there["host"], there["started"])
    first.communicate()
    assert not (tmp_path / ".owner").exists()
    with run_lock(tmp_path):
        assert json.loads((tmp_path / ".owner").read_text())["pid"] == os.getpid()
        with pytest.raises(Busy), run_lock(tmp_path):
            pass
        assert (tmp_path / ".owner").exists()
    assert holder(tmp_path) is None


def test_a_killed_job_frees_its_directory_though_its_children_live_on(tmp_path: Path, start: Start) -> None:
    job = start(LEAVES_CHILDREN, tmp_path)
    children = [int(pid) for pid in said(job).split()]
    try:
        assert len(children) == 2
        assert holder(tmp_path) is not None
        job.kill()
        job.wait()
        for pid in children:
            os.kill(pid, 0)  # alive
        assert (tmp_path / ".owner").exists()
        assert holder(tmp_path) is None
        with run_lock(tmp_path):
            pass
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)


def test_a_forked_child_that_leaves_the_block_takes_nothing_away(tmp_path: Path, start: Start) -> None:
    job = start(FORKS, tmp_path)
    assert said(job) == "left"
    there = holder(tmp_path)
    assert there is not None
    assert there.pid == job.pid
    assert (tmp_path / ".owner").exists()


def test_asking_who_works_there_leaves_nothing_behind(tmp_path: Path) -> None:
    assert holder(tmp_path) is None
    assert holder(tmp_path / "missing") is None
    assert not list(tmp_path.iterdir())


def test_asking_never_makes_a_starting_job_fail(tmp_path: Path, start: Start) -> None:
    for _ in range(3):
        assert said(start(ASKS, tmp_path)) == "asking"
    for _ in range(300):
        with run_lock(tmp_path):
            pass
    asking = flock.share(tmp_path / ".lock")
    assert holder(tmp_path) is None  # nor do two questions take each other for a job
    threading.Timer(0.3, flock.give, [asking]).start()
    with run_lock(tmp_path):  # even where the question takes its time
        assert holder(tmp_path) is not None


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"pid": "x"}'])
def test_a_holder_that_has_not_yet_said_who_it_is_holds(tmp_path: Path, content: str | None) -> None:
    fd = flock.take(tmp_path / ".lock")
    assert fd is not None
    if content is not None:
        (tmp_path / ".owner").write_text(content)
    there = holder(tmp_path)
    assert there is not None
    assert there.pid is None
    with pytest.raises(Busy, match="has just started"), run_lock(tmp_path):
        pass
    flock.give(fd)
    assert holder(tmp_path) is None
    with run_lock(tmp_path, watch=0.1):
        pass


def test_another_machines_dead_process_is_taken_over(tmp_path: Path) -> None:
    write_owner(tmp_path, beat=3)
    assert holder(tmp_path) == Holder(7, "elsewhere", "2026-01-01T00:00:00+00:00", sure=False)
    assert "alive unknown" in str(holder(tmp_path))
    with run_lock(tmp_path, watch=0.2):
        assert json.loads((tmp_path / ".owner").read_text())["pid"] == os.getpid()
    assert [p.name for p in tmp_path.iterdir()] == [".lock"]


def test_another_machines_living_process_is_respected(tmp_path: Path) -> None:
    write_owner(tmp_path)
    threading.Timer(0.2, write_owner, [tmp_path, 1]).start()
    with pytest.raises(Busy, match="process 7 on elsewhere"), run_lock(tmp_path, watch=30):
        pass
    assert json.loads((tmp_path / ".owner").read_text())["host"] == "elsewhere"
    assert flock.taken(tmp_path / ".lock") is False


def test_another_machines_process_may_end_while_it_is_watched(tmp_path: Path) -> None:
    write_owner(tmp_path)
    threading.Timer(0.2, (tmp_path / ".owner").unlink).start()
    with run_lock(tmp_path, watch=30):
        there = holder(tmp_path)
        assert there is not None
        assert there.pid == os.getpid()


def test_of_two_machines_of_one_name_each_is_another(tmp_path: Path) -> None:
    with run_lock(tmp_path):
        here = json.loads((tmp_path / ".owner").read_text())
    write_owner(tmp_path, **(here | {"machine": "another"}))
    assert holder(tmp_path) is not None
    write_owner(tmp_path, **here)
    assert holder(tmp_path) is None


def test_where_flocks_are_each_machines_own_one_of_many_gets_a_dead_ones_run(tmp_path: Path, start: Start) -> None:
    write_owner(tmp_path)
    processes = [start(ONE_OF_MANY_MACHINES, tmp_path) for _ in range(4)]
    for process in processes:
        assert said(process) == "ready"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [said(process) for process in processes]
    assert answers.count("mine") == 1
    assert sum("is in use by process" in answer for answer in answers) == 3


def test_without_flocks_one_machines_processes_watch_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_flock)
    with run_lock(tmp_path, beat=0.05):
        there = holder(tmp_path)
        assert there is not None
        assert (there.pid, there.sure) == (os.getpid(), False)
        with pytest.raises(Busy, match=f"process {os.getpid()}"), run_lock(tmp_path, watch=30):
            pass
    assert holder(tmp_path) is None


def test_only_the_dead_processs_file_is_replaced_and_by_one_at_a_time(tmp_path: Path) -> None:
    write_owner(tmp_path, beat=4)
    there = (tmp_path / ".owner").read_bytes()
    assert not Owner(tmp_path, 1.0).replace(b"what the dead one had written", 0)  # another machine was faster
    (tmp_path / ".owner.turn0.tmp").touch()
    assert not Owner(tmp_path, 1.0).replace(there, 0)
    assert (tmp_path / ".owner").read_bytes() == there
    with run_lock(tmp_path, watch=0.1):  # whoever had its turn has died
        assert json.loads((tmp_path / ".owner").read_text())["pid"] == os.getpid()


def test_a_process_counts_on_while_it_works(tmp_path: Path) -> None:
    def beat() -> int:
        return int(json.loads((tmp_path / ".owner").read_text())["beat"])

    with run_lock(tmp_path, beat=0.02):
        size = (tmp_path / ".owner").stat().st_size
        wait_for(lambda: beat() >= 10)
        assert (tmp_path / ".owner").stat().st_size == size  # a full disk does not stop it
        (tmp_path / ".owner").unlink()
        wait_for((tmp_path / ".owner").exists)  # cleared away by hand
        before = beat()
        wait_for(lambda: beat() > before)
    assert not (tmp_path / ".owner").exists()


def test_a_process_that_was_taken_over_ends_without_another_word(tmp_path: Path, start: Start) -> None:
    code = HOLD.replace("(Path(sys.argv[1]))", "(Path(sys.argv[1]), beat=0.05)")
    sleeper = start(code, tmp_path)
    assert said(sleeper) == "mine"
    (tmp_path / "other").mkdir()
    write_owner(tmp_path / "other")
    (tmp_path / "other" / ".owner").rename(tmp_path / ".owner")
    assert sleeper.wait(timeout=30) == os.EX_TEMPFAIL
    assert json.loads((tmp_path / ".owner").read_text())["host"] == "elsewhere"


def test_a_directory_that_cannot_be_written_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"No such file.*paths\.runs"), run_lock(tmp_path / "missing"):
        pass
    tmp_path.chmod(0o555)
    read_only = Path("/sys/kernel") if os.geteuid() == 0 else tmp_path  # permissions would not stop root
    with pytest.raises(UserError, match=r"denied|Read-only"), run_lock(read_only):
        pass
    tmp_path.chmod(0o755)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="No space left"), run_lock(tmp_path):
            pass
    assert holder(tmp_path) is None
    assert not (tmp_path / ".owner").exists()
    with run_lock(tmp_path):
        pass


def test_waiting_ends_with_the_other_process(tmp_path: Path, start: Start) -> None:
    other = start(HOLD, tmp_path)
    assert said(other) == "mine"
    seen = []
    for there in wait_until_free(tmp_path, 0.01):
        seen.append(there.pid)
        if len(seen) == 3:
            other.kill()
            other.wait()
    assert set(seen) == {other.pid}
    assert len(seen) >= 3
    assert list(wait_until_free(tmp_path, 0.01)) == []


def test_waiting_ends_when_another_machines_process_no_longer_counts(tmp_path: Path) -> None:
    write_owner(tmp_path)
    seen = 0
    for there in wait_until_free(tmp_path, 0.05, watch=1.0):
        assert not there.sure
        seen += 1
        if seen < 30:  # for longer than it is watched
            write_owner(tmp_path, beat=seen)
    assert seen > 30


def test_the_other_processes_of_a_job_take_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    with run_lock(tmp_path), run_lock(tmp_path):
        assert not list(tmp_path.iterdir())


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)
