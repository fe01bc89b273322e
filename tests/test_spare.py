"""A job that waits for its run: it is used once, where it equals a fresh one, and never outlives who started it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from mtlcar.sweeps import spare
from mtlcar.sweeps.spare import Spare
from mtlcar.sweeps.stopping import alive
from mtlcar.sweeps.worker import GPUS

ECHO = ("-c", "import sys; print(sys.stdin.readline(), file=open(sys.argv[1], 'w')); sys.exit(7)")


@pytest.fixture
def waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Spare]:
    """One whose jobs write what they are told to `tmp_path/told` and exit with 7."""
    monkeypatch.setattr(spare, "AWAIT", (*ECHO, str(tmp_path / "told")))
    found = Spare()
    take, taken = found.take, list[subprocess.Popen[bytes] | None]()

    def kept(words: Sequence[str]) -> "subprocess.Popen[bytes] | None":
        taken.append(take(words))
        return taken[-1]

    monkeypatch.setattr(found, "take", kept)
    yield found
    found.expect(0)
    for job in taken:
        if job is not None:
            job.wait(20)


def job_of(spare: Spare) -> "subprocess.Popen[bytes] | None":
    return spare._job


def test_the_waiting_job_does_the_run_that_it_is_given(waiting: Spare, tmp_path: Path) -> None:
    waiting.expect(1)
    first = job_of(waiting)
    job = waiting.take(["runs/a b/0123", "--traceback"])
    assert job is first
    assert job is not None
    assert job.wait(20) == 7
    assert json.loads((tmp_path / "told").read_text()) == ["runs/a b/0123", "--traceback"]
    assert waiting.take(["another"]) is None


def test_there_are_never_more_than_are_expected(waiting: Spare) -> None:
    waiting.expect(2, ahead=True)
    first = job_of(waiting)
    waiting.prepare_next(lambda: True)
    assert job_of(waiting) is first
    assert waiting.take(["a"]) is first
    waiting.prepare_next(lambda: False)  # it still imports, decodes, waits for a GPU
    assert job_of(waiting) is None
    waiting.prepare_next(lambda: True)
    assert job_of(waiting) not in (None, first)
    assert waiting.take(["b"]) is not None
    waiting.prepare_next(lambda: True)
    assert job_of(waiting) is None


def test_none_imports_beside_a_training_that_has_all_cores(waiting: Spare) -> None:
    waiting.expect(3)
    waiting.take(["a"])
    waiting.prepare_next(lambda: True)
    assert job_of(waiting) is None


def test_a_job_from_another_place_is_not_used(waiting: Spare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting.expect(1)
    job = job_of(waiting)
    assert job is not None
    monkeypatch.setenv(GPUS, "0")  # a launcher's word, in the middle of a command
    monkeypatch.chdir(tmp_path)
    assert waiting.take(["a"]) is None
    assert job.returncode == -signal.SIGKILL
    waiting.expect(1)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    assert waiting.take(["a"]) is None
    waiting.expect(1)
    monkeypatch.setenv(GPUS, "1")
    assert waiting.take(["a"]) is not None


def test_a_job_of_older_code_is_not_used(waiting: Spare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "architectures").mkdir()
    (tmp_path / "architectures" / "own.py").touch()
    monkeypatch.setattr(spare, "PACKAGE", tmp_path)
    waiting.expect(1)
    os.utime(tmp_path / "architectures" / "own.py", (2e9, 2e9))
    assert waiting.take(["a"]) is None
    waiting.expect(1)
    assert waiting.take(["a"]) is not None


def test_a_run_starts_without_where_there_can_be_none(waiting: Spare, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: object, **options: object) -> None:
        raise BlockingIOError("Resource temporarily unavailable")

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", refused)
        waiting.expect(2, ahead=True)
        waiting.prepare_next(lambda: True)
        assert waiting.take(["a"]) is None
    waiting.expect(1)
    job = job_of(waiting)
    monkeypatch.setattr(spare, "PACKAGE", Path("gone"))
    assert job is not None
    assert waiting.take(["a"]) is None
    assert job.returncode == -signal.SIGKILL


def test_a_job_that_has_died_is_replaced_by_a_fresh_one(waiting: Spare) -> None:
    waiting.expect(1)
    job = job_of(waiting)
    assert job is not None
    job.kill()
    job.wait()
    assert waiting.take(["a"]) is None


def test_a_job_that_is_not_needed_is_gone_at_once(waiting: Spare) -> None:
    waiting.expect(1)
    job = job_of(waiting)
    assert job is not None
    waiting.expect(0)
    assert job.returncode == -signal.SIGKILL


def gone(pid: int, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while alive(pid) and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere it ends when it has imported")
def test_a_waiting_job_ends_with_a_killed_command() -> None:
    code = (
        "import time; from mtlcar.sweeps.spare import SPARE as spare\n"
        "spare.expect(1); print(spare._job.pid, flush=True); time.sleep(60)"
    )
    command = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert command.stdout is not None
    with command.stdout:
        job = int(command.stdout.readline())
    time.sleep(0.5)
    assert alive(job)
    command.kill()
    command.wait()
    assert gone(job, 20)


BEGIN = """
import json, os, runpy, sys, torch
def touched(*args): os.write(2, b"CUDA was asked"); os._exit(99)
torch._C._cuda_init = torch._C._cuda_getDeviceCount = torch.cuda._lazy_init = torch.cuda._device_count_nvml = touched
torch.cuda.is_available = torch.cuda.device_count = touched
sys.argv = ["job", "--await"]
try:
    runpy.run_module("mtlcar.runs.job", run_name="__main__")
except SystemExit as end:
    here = {"imported": "mtlcar.runs.run" in sys.modules, "argv": sys.argv[1:], "stdin": os.read(0, 9).decode()}
    print(json.dumps({"status": end.code, **here}))
"""


def test_a_job_imports_all_but_touches_no_gpu_before_it_knows_its_run(tmp_path: Path) -> None:
    """Else the lease, which hides the GPUs of others, would come too late."""
    words = [str(tmp_path), "--traceback"]
    command, told = [sys.executable, "-W", "ignore", "-c", BEGIN], json.dumps(words) + "\nmore"
    done = subprocess.run(command, input=told, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"status": 2, "imported": True, "argv": words, "stdin": ""}
    assert f"{tmp_path} is no run directory" in done.stderr


IMPORT = """
import subprocess, sys
from mtlcar.sweeps import launch, spare
spare.AWAIT = ("-c", "import sys; sys.stdin.readline()")
spare.SPARE.expect(1)
import mtlcar.build  # what a sweep does to check its cells
job = spare.SPARE.take(["a"])
sys.exit(1 if job is None else job.wait())
"""


def test_checking_the_cells_of_a_sweep_leaves_the_waiting_job_of_use() -> None:
    """Lightning and torch set variables when they are imported."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTORCH_", "TORCHINDUCTOR_"))}
    subprocess.run([sys.executable, "-W", "ignore", "-c", IMPORT], check=True, env=environment)


def test_a_job_without_a_run_says_so() -> None:
    done = subprocess.run([sys.executable, "-m", "mtlcar.runs.job"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "which run?" in done.stderr
