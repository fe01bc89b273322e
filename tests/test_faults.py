"""Jobs that are killed, told to stop, or find their files damaged: the same command goes on, to the same result."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mtlcar.runs.status import read_status
from tests.jobs import FAST, copy_run, die_renaming, finish, results, said, start, write_run
from tests.test_resume import assert_same

EPOCHS = 8
STEPS = 6  # of an epoch


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    return write_run(folder, f"trainer.max_epochs={EPOCHS}", "checkpoint.every_steps=4")


@pytest.fixture(scope="module")
def whole(run: Path) -> tuple[dict[str, Any], float]:
    """What a run that nothing happened to gives, and the seconds it takes."""
    first = FAST.Process()  # starts the process that the others are forked from
    first.start()
    first.join()
    began = time.monotonic()
    directory = copy_run(run, run.parents[2] / "whole")
    assert finish(directory) == 0, said(directory)
    return results(directory), time.monotonic() - began


def wait_for(directory: Path, step: int) -> None:
    """Until a run has saved itself after so many steps."""
    until = time.monotonic() + 120
    while read_status(directory).get("step", 0) < step:
        assert time.monotonic() < until, said(directory)
        time.sleep(0.002)


def killed_at_random(directory: Path, longest: float, draw: random.Random) -> None:
    """Start the run, and kill it between two steps that are drawn, then at some moments of its life; again, until it
    once ends by itself."""
    process = start(directory)
    wait_for(directory, draw.randrange(1, STEPS * EPOCHS - 12))
    process.join(draw.uniform(0, 0.02))
    assert process.exitcode is None, "it was to be killed while it trains"
    process.kill()
    process.join()
    assert 0 < read_status(directory)["step"] < STEPS * EPOCHS
    for _ in range(50):
        process = start(directory)
        process.join(draw.uniform(0.1, 0.7) * longest)
        if process.exitcode is not None:
            assert process.exitcode == 0, said(directory)
            return
        process.kill()
        process.join()
    assert finish(directory) == 0, said(directory)


@pytest.mark.parametrize("trial", [0, 1, *(pytest.param(k, marks=pytest.mark.slow) for k in range(2, 25))])
def test_a_run_killed_at_random_moments_ends_like_one_that_never_was(
    run: Path, whole: tuple[dict[str, Any], float], tmp_path: Path, trial: int
) -> None:
    directory = copy_run(run, tmp_path / "run")
    killed_at_random(directory, whole[1], random.Random(trial))
    assert_same(results(directory), whole[0])


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(5))
def test_the_real_command_killed_ends_like_one_that_never_was(
    run: Path, whole: tuple[dict[str, Any], float], tmp_path: Path, trial: int
) -> None:
    directory = copy_run(run, tmp_path / "run")
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-m", "mtlcar.runs.job", str(directory)])
        wait_for(directory, random.Random(trial).randrange(4, 40))
        process.kill()
        process.wait()
    subprocess.run([sys.executable, "-m", "mtlcar.runs.job", str(directory)], check=True)
    assert_same(results(directory), whole[0])


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGINT, signal.SIGUSR2))]
)
def test_a_signal_saves_within_the_step_and_says_how_to_go_on(
    run: Path, whole: tuple[dict[str, Any], float], tmp_path: Path, number: int
) -> None:
    directory = copy_run(run, tmp_path / "run")
    process = start(directory)
    wait_for(directory, 9)
    assert process.pid
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == 128 + number, said(directory)
    assert f"mtlcar resume {directory}" in said(directory)
    status = read_status(directory)
    assert (status["state"], status["sessions"]) == ("interrupted", 1)
    assert status["ended"]
    assert finish(directory) == 0, said(directory)
    assert read_status(directory)["resumed_step"] == status["step"]
    assert_same(results(directory), whole[0])


@pytest.mark.parametrize(
    ("name", "times"),
    [
        ("last.ckpt", 4),
        ("metrics.json", 1),
        *(
            pytest.param(name, times, marks=pytest.mark.slow)
            for name, times in (("best.ckpt", 2), ("previous.ckpt", 3), ("history.csv", 3), ("status.json", 5),
                                ("predictions.parquet", 1), ("DONE", 1))
        ),
    ],
)  # fmt: skip
def test_a_run_killed_while_it_gives_a_file_its_name_goes_on(
    run: Path, whole: tuple[dict[str, Any], float], tmp_path: Path, name: str, times: int
) -> None:
    directory = copy_run(run, tmp_path / "run")
    assert finish(directory, die_renaming, name, times) == -signal.SIGKILL, "it was to die"
    assert not (directory / "DONE").exists()
    assert finish(directory) == 0, said(directory)
    assert_same(results(directory), whole[0])
    assert not list(directory.rglob(".*.tmp"))


@pytest.fixture
def stopped(run: Path, tmp_path: Path) -> Path:
    """A run that was stopped in its fifth epoch or later."""
    directory = copy_run(run, tmp_path / "run")
    process = start(directory)
    wait_for(directory, 4 * STEPS + 1)
    process.terminate()
    process.join(60)
    assert process.exitcode == 128 + signal.SIGTERM, said(directory)
    return directory


def test_a_checkpoint_of_another_configuration_is_refused(stopped: Path, tmp_path: Path) -> None:
    config = (stopped / "config.yaml").read_text()
    (stopped / "config.yaml").write_text(config.replace("dropout: 0.3", "dropout: 0.2"))
    assert finish(stopped) == 2
    assert "is of another configuration" in said(stopped)
    assert sorted(path.name for path in (stopped / "checkpoints").iterdir()) == [
        "best.ckpt",
        "last.ckpt",
        "previous.ckpt",
    ]


def test_a_finished_run_is_left_alone(whole: tuple[dict[str, Any], float], run: Path) -> None:
    directory = run.parents[2] / "whole"
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.name != "train.log"}
    assert finish(directory) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "finished already" in said(directory)


@pytest.mark.parametrize(
    "names",
    [
        ("last", "previous"),
        *(pytest.param(n, marks=pytest.mark.slow) for n in (("last",), ("best",), ("last", "previous", "best"))),
    ],
)
def test_damaged_checkpoints_are_passed_over(
    whole: tuple[dict[str, Any], float], stopped: Path, names: tuple[str, ...]
) -> None:
    for k, name in enumerate(names):
        path = stopped / "checkpoints" / f"{name}.ckpt"
        content = bytearray(path.read_bytes())
        path.unlink()  # another name for the same file must not be hurt
        if k % 2:
            content[len(content) // 2] ^= 0xFF
        path.write_bytes(content if k % 2 else content[: len(content) // 2])
    assert finish(stopped) == 0, said(stopped)
    resumed = read_status(stopped)["resumed_step"]
    if "last" in names:
        assert "last.ckpt cannot be read" in said(stopped)
        assert resumed is None or resumed < 4 * STEPS + 8
    if len(names) == 3:
        assert resumed is None
    assert_same(results(stopped), whole[0])


def test_lost_rows_and_a_lost_history_do_not_stop_a_run(whole: tuple[dict[str, Any], float], stopped: Path) -> None:
    (stopped / "history.csv").unlink()
    (stopped / "status.json").write_text("{")
    assert finish(stopped) == 0, said(stopped)
    assert_same(results(stopped)["history"], whole[0]["history"])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 6 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not shutil.which("mount"):
        pytest.skip("needs mount")
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", folder], check=False, capture_output=True)
    if made.returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_ends_the_run_and_room_lets_it_go_on(
    run: Path, whole: tuple[dict[str, Any], float], small_disk: Path
) -> None:
    directory = copy_run(run, small_disk / "run")
    filler = small_disk / "filler"
    process = start(directory)
    wait_for(directory, STEPS)
    with pytest.raises(OSError), filler.open("wb", buffering=0) as file:  # noqa: PT012
        while True:
            file.write(b"0" * 4096)
    process.join(120)
    assert process.exitcode == 1
    status = read_status(directory)
    assert status["state"] == "failed", "also where there is no room to say so"
    assert "could not be written" in status["error"] or "No space left" in status["error"]
    filler.unlink()
    assert finish(directory) == 0, said(directory)
    assert read_status(directory)["resumed_step"] >= 4
    assert_same(results(directory), whole[0])


def test_a_directory_that_cannot_be_written_is_refused(run: Path, small_disk: Path) -> None:
    directory = copy_run(run, small_disk / "run")
    (small_disk / "run.out").touch()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    done = subprocess.run([sys.executable, "-m", "mtlcar.runs.job", str(directory)],
                          check=False, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "Read-only file system" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_two_processes_of_one_job_stop_and_go_on_together(tmp_path: Path) -> None:
    ddp = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.max_epochs=10")
    run = write_run(tmp_path, *ddp, "checkpoint.every_steps=7")
    command = [sys.executable, "-m", "mtlcar.runs.job"]
    undisturbed, directory = copy_run(run, tmp_path / "undisturbed"), copy_run(run, tmp_path / "run")
    subprocess.run([*command, str(undisturbed)], check=True)
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGTERM):
        before = read_status(directory).get("step", 0)
        process = subprocess.Popen([*command, str(directory)], start_new_session=True)
        wait_for(directory, before + 4)
        if number == signal.SIGKILL:
            os.killpg(process.pid, number)
        else:
            process.terminate()
        assert process.wait(60) == (-number if number == signal.SIGKILL else 128 + number)
    subprocess.run([*command, str(directory)], check=True)
    assert_same(results(directory), results(undisturbed))
