"""`mtlcar bench sweep`: so many jobs are at work at once, each has finished, and none outlives the command."""

import json
import signal
import sys
import textwrap
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

from mtlcar.bench import jobs
from mtlcar.cli import main
from mtlcar.sweeps import one_run
from tests.cli import mtlcar
from tests.test_bench_startup import SMALL

STUB = """\
import json, os, signal, sys, time
from pathlib import Path
run, ledger = Path(sys.argv[1]), Path(os.environ["STUB_LEDGER"])
group = run.parts[-3]

def note(word):
    with ledger.open("a") as file:
        file.write(f"{group} {word} {os.environ.get('OMP_WAIT_POLICY')}\\n")

def stop(*_):
    note("stopped")
    sys.exit(143)

signal.signal(signal.SIGTERM, stop)
note("began")
what = os.environ.get("STUB_WHAT", "")
if what == f"fail {group}":
    print("no such kernel")
    sys.exit(1)
if what == f"kill {group}":
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(60)
time.sleep(0.2)
timing = {"train_images_per_second": 100.0, "step_ms_median": 4.0}
(run / "metrics.json").write_text(json.dumps({"best": {"monitor": "x", "value": 1}, "timing": timing}))
(run / "DONE").touch()
note("ended")
"""


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stub jobs write down here when they begin and end. What the command puts into temporary folders goes to `tmp`."""
    stub, found = tmp_path / "job.py", tmp_path / "ledger.txt"
    stub.write_text(textwrap.dedent(STUB))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(
        jobs, "job_command", lambda directory, trusted: [sys.executable, "-S", str(stub), str(directory)]
    )
    monkeypatch.setattr(one_run, "POLL", 0.02)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("STUB_LEDGER", str(found))
    monkeypatch.setenv("MTLCAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    return found


def read(ledger: Path) -> dict[str, list[list[str]]]:
    found = defaultdict(list)
    for line in ledger.read_text().splitlines():
        group, *words = line.split()
        found[group].append(words)
    return found


def test_so_many_jobs_are_at_work_at_once(ledger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "sweep", "--json", "--jobs", "4", "2", *SMALL]) == 0
    printed = capsys.readouterr()
    rows = json.loads(printed.out)
    assert [(r["name"], r["jobs"], r["runs"], r["threads"]) for r in rows] == [
        ("1 at once", 1, 4, 1), ("2 at once", 2, 4, 1), ("4 at once", 4, 4, 1),
    ]  # fmt: skip
    assert [r["images_per_second"] for r in rows] == [100, 200, 400]
    assert [r["step_ms"] for r in rows] == [4, 4, 4]
    for row in rows:
        assert row["runs_per_hour"] == pytest.approx(3600 * 4 / row["seconds"], rel=0.01)
        assert row["ratio_to_one"] == pytest.approx(rows[0]["seconds"] / row["seconds"], rel=0.01)
    groups = read(ledger)
    assert groups.pop("first") == [["began", "None"], ["ended", "None"]], "one run before anything is timed"
    for group, words in groups.items():
        at_work = [0]
        for word, waiting in words:
            at_work.append(at_work[-1] + (1 if word == "began" else -1))
            assert waiting == ("None" if group == "1" else "PASSIVE")
        assert max(at_work) == int(group)
        assert len(words) == 8
    assert "the fastest here" in printed.err
    assert not list(Path(ledger.parent / "tmp").iterdir())


def test_a_run_that_fails_is_an_error_with_its_last_words(
    ledger: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_WHAT", "fail 1")
    assert main(["bench", "sweep", "--jobs", "1", *SMALL]) == 2
    said = capsys.readouterr().err
    assert "seed=0" in said
    assert "no such kernel" in said
    assert read(ledger)["1"] == [["began", "None"]], "no further one was started"
    assert not list(Path(ledger.parent / "tmp").iterdir())


def test_too_many_at_once_do_not_cost_the_others(
    ledger: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_WHAT", "fail 2")
    assert main(["bench", "sweep", "--jobs", "1", "2", "--rounds", "2", *SMALL]) == 0
    printed = capsys.readouterr()
    assert "left out: 2 at once" in printed.err
    assert [line.split("|")[1].strip() for line in printed.out.splitlines() if "at once" in line] == ["4, 1 at once"]
    assert "One after another is the fastest" in printed.out
    assert len(read(ledger)["1"]) == 16, "the second round came"


def test_a_stop_ends_the_jobs(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_WHAT", "kill 2")
    assert main(["bench", "sweep", "--jobs", "2", *SMALL]) == 128 + signal.SIGTERM
    words = [word for word, _ in read(ledger)["2"]]
    assert words.count("began") == words.count("stopped") > 0
    assert not list(Path(ledger.parent / "tmp").iterdir())


def test_cores_are_shared_out_unless_threads_are_given(
    ledger: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "cores", lambda: 4)
    small = [o for o in SMALL if o != "threads=1"]
    assert main(["bench", "sweep", "--json", *small]) == 0
    assert [(r["jobs"], r["threads"]) for r in json.loads(capsys.readouterr().out)] == [(1, 4), (2, 2), (4, 1)]


def row(at_once: int, ratio: float) -> dict[str, Any]:
    return {"jobs": at_once, "threads": 8 // at_once, "ratio_to_one": ratio}


def test_the_fewest_at_once_that_come_close_to_the_fastest_are_advised() -> None:
    rows = [row(1, 1.0), row(2, 1.7), row(4, 1.72)]
    assert "hydra.launcher.n_jobs=2 threads=4 is the fastest here (x 1.70)" in jobs.advice(rows, gpu=False)
    said = jobs.advice([*rows, row(8, 2.5)], gpu=True)
    assert said.startswith("jobs_per_gpu=8 with hydra/launcher=joblib hydra.launcher.n_jobs=8 is the fastest")
    assert jobs.advice([row(1, 1.0), row(2, 1.02)], gpu=True) == "One after another is the fastest here."


def test_numbers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "cores", lambda: 6)
    assert jobs.chosen_numbers(None, gpu=False) == [1, 2, 4]
    monkeypatch.setattr(jobs, "cores", lambda: 64)
    assert jobs.chosen_numbers(None, gpu=False) == [1, 2, 4, 8]
    assert jobs.chosen_numbers(None, gpu=True) == [1, 2, 4]
    assert jobs.chosen_numbers([3, 3], gpu=True) == [1, 3]


def test_jobs_share_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "visible", lambda: ["GPU-a", "GPU-b"])
    assert jobs.environment(2, gpu=True)["CUDA_VISIBLE_DEVICES"] == "GPU-a"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rounds", "0"], "at least 1"),
        (["--jobs", "0"], "at least 1"),
        (["--jobs", "two"], "'two'"),
        (["seed=3"], "seed itself"),
        (["jobs_per_gpu=2"], "jobs_per_gpu itself"),
        (["seed=0,1"], "one setting"),
        (["weighting=graddrop", "weighting.level=parameters"], "graddrop"),
    ],
)
def test_mistakes_are_named_before_any_job(
    words: list[str], message: str, ledger: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "sweep", *words, *SMALL]) == 2
    assert message in capsys.readouterr().err
    assert not ledger.exists()


@pytest.mark.slow
def test_real_runs(tmp_path: Path) -> None:
    done = mtlcar(
        "bench", "sweep", "--json", "--jobs", "2", *SMALL, "trainer.max_epochs=1", f"paths.cache={tmp_path}"
    )  # fmt: skip
    rows = json.loads(done.stdout)
    assert [r["jobs"] for r in rows] == [1, 2]
    assert all(r["images_per_second"] > 0 and r["step_ms"] > 0 for r in rows)
    assert "2 at once: 4 runs in" in done.stderr


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_runs_share_the_gpu(tmp_path: Path) -> None:
    small = [o for o in SMALL if not o.startswith("trainer=")]
    done = mtlcar("bench", "sweep", "--json", "--jobs", "4", *small, "trainer.max_epochs=1", f"paths.cache={tmp_path}")
    assert json.loads(done.stdout)[-1]["ratio_to_one"] > 1
    assert "jobs_per_gpu=4" in done.stderr
