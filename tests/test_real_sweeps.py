"""A sweep of real runs that is killed hard, again and again, beside one that is left alone."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mtlcar.runs.files import read_json
from mtlcar.runs.status import read_status
from tests.jobs import CARS, results
from tests.test_resume import assert_same

CELLS = 12
SWEEP = (*CARS[:-2], "trainer.max_epochs=12", "checkpoint.every_steps=5", "sweep=killed",
         "architecture=parallel,cascade",
         "weighting=equal,uncertainty,dwa", "head.dropout=0,0.25")  # fmt: skip


def command(folder: Path, cache: Path) -> list[str]:
    paths = (f"paths.runs={folder}", f"paths.cache={cache}")
    return [sys.executable, "-m", "mtlcar", "train", "-m", *(w for w in SWEEP if w != "head.dropout=0.3"), *paths]


def kill_all(process: "subprocess.Popen[str]") -> None:
    """The sweep and all it started, at once, without a word: as a power cut would."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in family:
        one.suspend()
    for one in family:
        one.kill()
    psutil.wait_procs(family)
    process.wait()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_sweep_killed_three_times_ends_complete_each_cell_trained_once(tmp_path: Path) -> None:
    cache, folder = tmp_path / "cache", tmp_path / "runs"
    subprocess.run(command(tmp_path / "alone", cache), check=True, capture_output=True)
    draw, killed = random.Random(0), 0
    for part in (2, 6, 10):  # cells begun
        process = subprocess.Popen(
            command(folder, cache), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True
        )
        until = time.monotonic() + 300
        while len(list(folder.glob("killed/*/status.json"))) < part:
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)
        time.sleep(draw.uniform(0, 3))
        killed += process.poll() is None
        kill_all(process)
    assert killed == 3
    before = {path: path.stat().st_mtime_ns for path in folder.glob("killed/*/DONE")}
    last = subprocess.run(command(folder, cache), check=True, capture_output=True, text=True)
    assert f"{len(before)} of {CELLS} cells were finished before." in last.stdout
    runs = sorted(path.parent for path in folder.glob("killed/*/DONE"))
    assert len(runs) == CELLS
    assert all(path.stat().st_mtime_ns == then for path, then in before.items()), "what was finished is left alone"
    sessions = [read_status(run)["sessions"] for run in runs]
    assert sum(sessions) <= CELLS + killed, "no cell was begun again but those that were killed"
    for run in runs:
        assert_same(results(run), results(tmp_path / "alone" / "killed" / run.name))
        assert read_json(run / "metrics.json")["timing"]["epochs"] == 12
    files = {path: path.stat().st_mtime_ns for path in folder.rglob("*.ckpt")}
    again = subprocess.run(command(folder, cache), check=True, capture_output=True, text=True)
    assert f"All {CELLS} cells were finished before." in again.stdout
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.ckpt")} == files


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_identical_sweeps_at_once_share_their_cells(tmp_path: Path) -> None:
    cache, folder = tmp_path / "cache", tmp_path / "runs"
    both = [subprocess.Popen(command(folder, cache), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            for _ in range(2)]  # fmt: skip
    said = [process.communicate(timeout=900)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    runs = sorted(path.parent for path in folder.glob("killed/*/DONE"))
    assert len(runs) == CELLS
    assert {read_status(run)["sessions"] for run in runs} == {1}, "each cell was trained once"
    assert all("12 cells" in text for text in said)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ctrl_c_stops_a_sweep_in_order(tmp_path: Path) -> None:
    process = subprocess.Popen(command(tmp_path / "runs", tmp_path / "cache"), stdout=subprocess.PIPE, text=True,
                               start_new_session=True)  # fmt: skip
    until = time.monotonic() + 200
    while not any(read_status(p.parent).get("step", 0) > 8 for p in tmp_path.glob("runs/*/*/status.json")):
        assert time.monotonic() < until
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 130
    assert "mtlcar resume" in said
    states = [read_status(p.parent)["state"] for p in tmp_path.glob("runs/*/*/status.json")]
    assert set(states) <= {"finished", "interrupted"}
