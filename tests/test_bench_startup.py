"""`mtlcar bench startup`: a run says when it has made its first step, and what is measured leaves nothing behind."""

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mtlcar.bench import startup
from mtlcar.cli import main
from mtlcar.errors import UserError
from mtlcar.runs.status import Status, read_status
from mtlcar.runs.timing import FirstStep
from mtlcar.sweeps.stopping import Stop, SweepInterrupted
from tests import jobs
from tests.cli import mtlcar

SMALL = ["backbone=tiny", "data.images=72", "data.makes=2", "data.models_per_make=2", "data.size=48",
         "data.image_size=32", "data.batch_size=8", "trainer=cpu", "threads=1"]  # fmt: skip
STUB = """\
import json, os, signal, sys, time
from pathlib import Path
run = Path(sys.argv[1]) / "sweep" / "run"
run.mkdir(parents=True)
def write(**what):
    (run / "new").write_text(json.dumps(what))
    (run / "new").rename(run / "status.json")
def stop(*_):
    write(first_step=when, state="interrupted")
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
when = None
write(first_step=None, pid=os.getpid())
time.sleep(0.1)
when = time.time()
write(first_step=when, pid=os.getpid())
time.sleep(60)
"""


@pytest.fixture
def stop() -> Iterator[Stop]:
    with Stop() as found:
        yield found


def python(script: str, *words: str) -> list[str]:
    return [sys.executable, "-S", "-c", script, *words]


def test_the_first_optimizer_step_of_a_session_is_said_once() -> None:
    said: list[float] = []
    callback, trainer, module = FirstStep(said.append), SimpleNamespace(global_step=5), SimpleNamespace()
    module.device = torch.device("cpu")

    def batch(step: int) -> None:
        trainer.global_step = step
        callback.on_train_batch_end(trainer, module, None, {}, 0)  # type: ignore[arg-type]

    callback.on_train_start(trainer, module)  # type: ignore[arg-type]
    batch(5)
    assert not said, "a micro-batch"
    before = time.time()
    batch(6)
    assert len(said) == 1
    assert before <= said[0] <= time.time()
    batch(7)
    assert len(said) == 1


def test_status_keeps_the_first_step_of_its_own_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = Status(tmp_path)
    status.write()
    assert read_status(tmp_path)["first_step"] is None
    status.stepped(1e9 + 0.25)
    status.saved(3, 0)
    status.end("finished")
    assert read_status(tmp_path)["first_step"] == 1e9 + 0.25
    again = Status(tmp_path)
    again.write()
    assert read_status(tmp_path)["first_step"] is None

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mtlcar.runs.status.write_json", full)
    again.stepped(2e9)


def test_a_job_notes_its_first_step(tmp_path: Path) -> None:
    run = jobs.write_run(tmp_path, "trainer.max_epochs=1", "backbone=tiny")
    before = time.time()
    assert jobs.finish(run) == 0, jobs.said(run)
    said = read_status(run)
    assert said["state"] == "finished"
    assert before < said["first_step"] < (run / "DONE").stat().st_mtime


def test_a_run_is_timed_to_its_first_step_and_stopped(tmp_path: Path, stop: Stop) -> None:
    seconds = startup.seconds_to_first_step(
        python(STUB, str(tmp_path / "runs")), tmp_path / "runs", tmp_path / "out", stop
    )
    assert 0.1 <= seconds < 20
    assert read_status(tmp_path / "runs/sweep/run")["state"] == "interrupted"


@pytest.mark.parametrize("told", [True, False])
def test_nothing_is_left_running(told: bool, tmp_path: Path, stop: Stop, monkeypatch: pytest.MonkeyPatch) -> None:
    pid, script = (
        tmp_path / "pid",
        "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)",
    )
    if told:
        stop.signum = 15
    else:
        monkeypatch.setattr(startup, "LONGEST", 0.0)
    monkeypatch.setattr(startup, "POLL", 5.0)
    monkeypatch.setattr(Stop, "check", after(pid, Stop.check))
    with pytest.raises(SweepInterrupted if told else UserError):
        startup.seconds_of(python(script, str(pid)), tmp_path / "out", stop)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def after(file: Path, check: Any) -> Any:
    """`check`, once the process has said who it is."""

    def waiting(self: Stop) -> None:
        while not (file.exists() and file.read_text()):
            time.sleep(0.01)
        check(self)

    return waiting


def test_one_that_fails_is_an_error_with_its_last_words(tmp_path: Path, stop: Stop) -> None:
    with pytest.raises(UserError, match=r"exit status 3(.|\n)*no such thing"):
        startup.seconds_of(python("import sys; print('no such thing'); sys.exit(3)"), tmp_path / "out", stop)
    for status in (0, 1):
        with pytest.raises(UserError, match="no training step"):
            startup.seconds_to_first_step(python(f"import sys; sys.exit({status})"), tmp_path, tmp_path / "out", stop)


def test_medians_and_ratios_to_the_imports_of_the_same_round(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {"imports": iter([2.0, 4.0, 3.0]), "help": iter([0.1, 0.3, 0.2]), "step": iter([3.0, 5.0, 6.0])}
    folders: list[Path] = []

    def plain(command: Sequence[str], log: Path, stop: Stop) -> float:
        return next(seconds["help" if command[-1] == "--help" else "imports"])

    def to_step(command: Sequence[str], runs: Path, log: Path, stop: Stop) -> float:
        assert f"paths.runs='{runs}'" in command
        assert {"logger=none", "backbone=tiny", "data.image_size=32"} < set(command)
        assert not {"backbone=resnet18", "data.image_size=64"} & set(command)
        assert runs.parent.is_dir()
        folders.append(runs)
        return next(seconds["step"])

    monkeypatch.setattr(startup, "seconds_of", plain)
    monkeypatch.setattr(startup, "seconds_to_first_step", to_step)
    assert main(["bench", "startup", "--json", "--rounds", "3", *SMALL, f"paths.cache={tmp_path}"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(r["name"], r["seconds"]) for r in rows] == [
        ("mtlcar --help", 0.2),
        ("import torch, lightning, torchvision, torchmetrics", 3.0),
        ("first step", 5.0),
    ]
    assert (rows[1]["seconds_low"], rows[1]["seconds_high"]) == (2.5, 3.5)
    assert rows[2]["ratio_to_imports"] == 1.5  # of 1.5, 1.25 and 2
    assert len(set(folders)) == 3
    assert not folders[0].parent.exists()
    assert list(tmp_path.glob("images/*/")), "the pictures were decoded before"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rounds", "0"], "at least 1"),
        (["backbone=tiny,resnet18"], "one setting"),
        (["paths.runs=elsewhere"], "paths.runs itself"),
        (["backbone=tinny"], "'tiny'"),
        (["--jobs", "2"], "--jobs"),
    ],
)
def test_mistakes_are_named(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    taken = {w.split("=")[0] for w in words}
    assert main(["bench", "startup", *words, *(o for o in SMALL if o.split("=")[0] not in taken)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_measures_real_processes(tmp_path: Path) -> None:
    done = mtlcar("bench", "startup", "--json", "--rounds", "1", *SMALL, f"paths.cache={tmp_path}")
    by_name = {row["name"]: row for row in json.loads(done.stdout)}
    assert by_name["mtlcar --help"]["seconds"] < 0.5 * by_name[startup.IMPORTS]["seconds"]
    assert by_name["first step"]["ratio_to_imports"] > 0.5
    assert "1 threads" in done.stderr
