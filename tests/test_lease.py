"""A GPU for each job: real processes over the GPUs of a made-up `nvidia-smi`."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mtlcar.errors import UserError
from mtlcar.runs import lease as lease_module
from mtlcar.runs.gpus import narrowed, parsed, visible
from mtlcar.runs.lease import Claim, choose, deciding, gpus_wanted, lease

A, B = "GPU-aaaaaaaa-1111-2222-3333-444444444444", "GPU-bbbbbbbb-1111-2222-3333-444444444444"
MIG0, MIG1 = "MIG-cccccccc-1111-2222-3333-444444444444", "MIG-dddddddd-1111-2222-3333-444444444444"
TWO = f"GPU 0: NVIDIA H100 80GB HBM3 (UUID: {A})\nGPU 1: NVIDIA H100 80GB HBM3 (UUID: {B})\n"
CUT = (
    f"GPU 0: NVIDIA A100-SXM4-40GB (UUID: {A})\n"
    f"  MIG 3g.20gb     Device  0: (UUID: {MIG0})\n"
    f"  MIG 3g.20gb     Device  1: (UUID: {MIG1})\n"
    f"GPU 1: NVIDIA A100-SXM4-40GB (UUID: {B})\n"
)

JOB = """
import logging, os, sys, time
from mtlcar.runs import lease as module
module.POLL = 0.02
logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.INFO)
gpus, jobs_per_gpu, seconds = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
log = os.open(os.environ["EVENTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def say(what):
    os.write(log, f"{time.monotonic_ns()} {os.getpid()} {jobs_per_gpu} {what}\\n".encode())

try:
    with module.lease(gpus, jobs_per_gpu) as ids:
        assert "torch" not in sys.modules
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ",".join(ids)
        say("takes " + ",".join(ids))
        print("has", *ids, flush=True)
        sys.stdin.readline() if seconds == "None" else time.sleep(float(seconds))
        say("gives " + ",".join(ids))
except KeyboardInterrupt:
    sys.exit(130)
"""
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Gives this machine GPUs: two, until called with another answer of `nvidia-smi -L`."""
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "LOCAL_RANK", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MTLCAR_LEASES", str(tmp_path / "leases"))
    monkeypatch.setenv("EVENTS", str(tmp_path / "events"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(lease_module, "POLL", 0.02)

    def answers(text: str, status: int = 0) -> None:
        program = tmp_path / "bin" / "nvidia-smi"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n[ \"$1\" = -L ] || exit 1\ncat <<'END'\n{text}END\nexit {status}\n")
        program.chmod(0o755)

    answers(TWO)
    return answers


@pytest.fixture
def start(machine: object) -> Iterator[Start]:
    begun: list[subprocess.Popen[str]] = []

    def start(gpus: int, jobs_per_gpu: int, seconds: float | None = None) -> "subprocess.Popen[str]":
        """None: until it is told to `end`."""
        command = [sys.executable, "-c", JOB, *map(str, (gpus, jobs_per_gpu, seconds))]
        begun.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


def line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def most_together() -> dict[str, int]:
    """Most jobs at once on each GPU; no job was there with more than it allows."""
    there: dict[str, dict[str, int]] = {}
    most: dict[str, int] = {}
    events = Path(os.environ["EVENTS"]).read_text().splitlines()
    for event in sorted(events, key=lambda e: int(e.split()[0])):
        _, pid, allows, what, ids = event.split()
        for gpu in ids.split(","):
            jobs = there.setdefault(gpu, {})
            if what == "gives":
                del jobs[pid]
                continue
            jobs[pid] = int(allows)
            most[gpu] = max(most.get(gpu, 0), len(jobs))
            assert len(jobs) <= min(jobs.values()), event
    return most


@pytest.mark.parametrize("jobs_per_gpu", [1, 2])
def test_each_gpu_is_filled_and_never_more(start: Start, jobs_per_gpu: int) -> None:
    jobs = [start(1, jobs_per_gpu) for _ in range(6)]
    first = [line(job) for job in jobs]
    assert sorted(word for word in first if word.startswith("has")) == sorted([f"has {A}", f"has {B}"] * jobs_per_gpu)
    assert sum(word.startswith("Waiting for a GPU of 2") for word in first) == 6 - 2 * jobs_per_gpu
    for job in jobs:
        end(job)
    assert [job.wait() for job in jobs] == [0] * 6
    assert most_together() == {A: jobs_per_gpu, B: jobs_per_gpu}
    assert [p.name for p in Path(os.environ["MTLCAR_LEASES"]).iterdir()] == ["deciding.lock"]


def test_sweeps_of_different_sharing_keep_to_the_smallest(start: Start) -> None:
    jobs = [start(1, jobs_per_gpu, 0.15) for jobs_per_gpu in (3, 1, 2, 3, 2, 1, 3, 3)] + [start(2, 3, 0.15)]
    assert [job.wait() for job in jobs] == [0] * 9
    assert set(most_together()) == {A, B}


def test_a_job_of_several_gpus_has_them_alone_and_is_not_overtaken(start: Start) -> None:
    first = [start(1, 3), start(1, 3)]
    assert sorted(line(job) for job in first) == [f"has {A}", f"has {B}"]
    big = start(-1, 3)
    assert line(big).startswith("Waiting for 2 GPUs of 2; processes that use them: ")
    late = start(1, 3)
    assert line(late).endswith(f"behind processes that came first: {big.pid}.")
    for job in first:
        end(job)
        assert job.wait() == 0
    assert line(big).startswith("Goes on with")
    assert line(big) == f"has {A} {B}"
    end(big)
    end(late)
    assert late.wait() == big.wait() == 0
    assert most_together() == {A: 1, B: 1}  # `late` came after `big`, though a GPU was free before


def test_a_killed_jobs_gpu_goes_to_the_next_and_ctrl_c_ends_waiting(start: Start) -> None:
    holders = [start(1, 1), start(1, 1)]
    has = [line(job) for job in holders]
    assert sorted(has) == [f"has {A}", f"has {B}"]
    waiting = [start(1, 1, 0.0)]
    found = line(waiting[0])
    assert found.startswith("Waiting for a GPU of 2; ")
    assert all(str(job.pid) in found for job in holders)
    waiting.append(start(1, 1, 0.0))
    assert line(waiting[1]).endswith(f"behind processes that came first: {waiting[0].pid}.")
    waiting[0].send_signal(signal.SIGINT)
    assert waiting[0].wait() == 130
    holders[1].kill()
    assert line(waiting[1]).startswith("Goes on with")
    assert line(waiting[1]) == has[1]
    assert waiting[1].wait() == 0


def test_a_stopped_job_is_overtaken(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = start(2, 1)
    assert line(holder) == f"has {A} {B}"
    stopped = start(2, 1)
    assert line(stopped).startswith("Waiting")
    with deciding(Path(os.environ["MTLCAR_LEASES"])):  # so it does not stop in the middle of a decision
        stopped.send_signal(signal.SIGSTOP)
        os.waitpid(stopped.pid, os.WUNTRACED)
    holder.kill()
    holder.wait()
    monkeypatch.setattr(lease_module, "ASLEEP", 0.5)
    with lease(1, 1) as ids:
        assert ids == [A]
    stopped.kill()


def test_the_lease_is_the_processs_own(machine: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    with lease(1, 2) as first:
        assert first == [B]
        with lease(1, 2) as second:  # what is left of it
            assert second == [B]
        assert os.environ["CUDA_VISIBLE_DEVICES"] == B
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1,0"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with lease(-1, 1) as ids:
        assert ids == [A, B]
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_a_forked_child_keeps_no_gpu(machine: object, tmp_path: Path) -> None:
    forks = JOB.replace('say("takes', 'if os.fork() == 0: time.sleep(60)\n        say("takes')
    assert forks != JOB
    job = subprocess.Popen(
        [sys.executable, "-c", forks, "2", "1", "60"], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert line(job) == f"has {A} {B}"
        job.kill()
        job.wait()
        with lease(2, 1) as ids:
            assert ids == [A, B]
        os.killpg(job.pid, 0)  # the child lives
    finally:
        os.killpg(job.pid, signal.SIGKILL)
        job.communicate()


def test_where_there_is_nothing_to_lease_nothing_happens(
    machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(gpus: int = 1, jobs_per_gpu: int | None = 1) -> None:
        before = os.environ.get("CUDA_VISIBLE_DEVICES")
        with lease(gpus, jobs_per_gpu) as ids:
            assert ids == []
            assert os.environ.get("CUDA_VISIBLE_DEVICES") == before
        assert not Path(os.environ["MTLCAR_LEASES"]).exists()

    nothing(gpus=0)
    nothing(jobs_per_gpu=None)
    for name, value in (
        ("LOCAL_RANK", "1"),  # started by Lightning beside the first, whose lease it inherits
        ("TORCHELASTIC_RUN_ID", "x"),
        ("SLURM_STEP_NUM_TASKS", "2"),
        ("CUDA_VISIBLE_DEVICES", ""),
        ("CUDA_VISIBLE_DEVICES", "NoDevFiles"),
        ("CUDA_VISIBLE_DEVICES", "-1"),
        ("PATH", "/nowhere"),
    ):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            nothing()
    machine("No devices were found\n")
    nothing()
    machine(TWO, 9)  # a driver that does not answer
    nothing()
    machine(TWO)
    with lease(1, 1) as ids:
        assert ids == [A]


def test_what_cannot_be_leased_says_so_at_once(
    machine: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="asks for 3 GPUs; 2 can be used"), lease(3, 1):
        pass
    with pytest.raises(UserError, match="jobs_per_gpu=0"), lease(1, 0):
        pass
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", A[:6])
    with pytest.raises(UserError, match=f"2 GPUs; 1 can be used here .*={A[:6]}"), lease(2, 1):
        pass
    (tmp_path / "file").touch()
    monkeypatch.setenv("MTLCAR_LEASES", str(tmp_path / "file"))
    with pytest.raises(UserError, match="MTLCAR_LEASES=DIR"), lease(1, 1):
        pass


def test_the_folder_is_this_users_alone(machine: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MTLCAR_LEASES")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with lease(1, 1):
        (folder,) = tmp_path.glob("mtlcar-leases-*")
        assert folder.stat().st_mode & 0o777 == 0o700
        assert len(list(folder.glob("*.job"))) == 1
    (folder / "deciding.lock").unlink()
    folder.rmdir()
    (tmp_path / "trap").mkdir()
    folder.symlink_to(tmp_path / "trap")
    with pytest.raises(UserError, match="a folder of your own"), lease(1, 1):
        pass
    assert not list((tmp_path / "trap").iterdir())


def test_stale_and_broken_files_take_no_gpu(machine: object, tmp_path: Path) -> None:
    folder = tmp_path / "leases"
    folder.mkdir()
    (folder / "1-0.job").write_text("{")
    (folder / "2-0.job").write_bytes(Claim(2, 1, 1, 0.0, [A, B], [A, B]).encoded())
    with lease(2, 1) as ids:
        assert ids == [A, B]
        assert len(list(folder.glob("*.job"))) == 1


@pytest.mark.parametrize(
    ("chosen", "found"),
    [
        ("0", [A]), ("1,0", [B, A]), (" 1 ", [B]), (B, [B]), ("GPU-b", [B]), (f"{A},1", [A, B]), ("0,0", [A]),
        ("", []), ("2", []), ("0,-1,1", [A]), ("0,x,1", [A]), ("GPU-", []), ("NoDevFiles", []), ("0,", [A]),
    ],
)  # fmt: skip
def test_cuda_visible_devices_is_read_as_cuda_reads_it(chosen: str, found: list[str]) -> None:
    assert narrowed(parsed(TWO), chosen) == found


def test_a_gpu_that_was_cut_is_its_instances() -> None:
    devices = parsed(CUT)
    assert [d.ids[0] for d in devices] == [MIG0, MIG1, B]
    assert narrowed(devices, "0") == narrowed(devices, A) == [MIG0, MIG1]
    assert narrowed(devices, "1") == [B]
    assert narrowed(devices, MIG1[:9]) == [MIG1]


def test_indices_are_doubtful_where_gpus_differ(
    machine: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    machine(TWO.replace("H100", "A2", 1))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert visible() == [B]
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in caplog.text
    caplog.clear()
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert visible() == [B]
    assert not caplog.text


def test_the_gpu_with_the_fewest_jobs_is_preferred() -> None:
    def job(number: int, has: list[str], k: int = 4) -> Claim:
        return Claim(number, number, k, time.monotonic(), [A, B], has)

    mine = job(9, [])
    assert choose(1, mine, []) == [A]
    assert choose(1, mine, [job(1, [A]), job(2, [A]), job(3, [B])]) == [B]
    assert choose(1, mine, [job(1, [A], k=1), job(2, [B]), job(3, [B])]) == [B]
    assert choose(2, mine, [job(1, [A], k=1)]) == []
    assert choose(1, mine, [job(1, [A], k=1), job(2, [B], k=1)]) == []
    assert choose(1, job(9, [], k=2), [job(1, [A]), job(2, [A]), job(3, [B]), job(4, [B])]) == []
    assert choose(1, mine, [Claim(1, 1, 1, time.monotonic(), ["GPU-another"], [])]) == [
        A
    ]  # it waits for something else


@pytest.mark.parametrize(
    ("accelerator", "devices", "gpus"),
    [
        ("cpu", 4, 0), ("mps", 1, 0), ("auto", 1, 1), ("gpu", 2, 2), ("cuda", "2", 2), ("auto", "auto", -1),
        ("gpu", -1, -1), ("gpu", "-1", -1), ("gpu", None, -1), ("gpu", [1], 0), ("gpu", [0, 1], 0), ("gpu", "0,1", 0),
        ("gpu", "1,", 0), ("gpu", 0, 0),
    ],
)  # fmt: skip
def test_gpus_wanted_by_the_trainers_keys(accelerator: str, devices: object, gpus: int) -> None:
    assert gpus_wanted(accelerator, devices) == gpus


@pytest.mark.parametrize("devices", ["two", -2, {"a": 1}])
def test_devices_that_are_no_number_are_refused(devices: object) -> None:
    with pytest.raises(UserError, match=r"trainer\.devices"):
        gpus_wanted("gpu", devices)
