"""What may go wrong around the cells of a sweep, and must not cost one: disks, signals, records, twins."""

import errno
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from mtlcar.errors import UserError
from mtlcar.runs.interrupts import SIGNALS
from mtlcar.runs.secrets import without_password
from mtlcar.sweeps import cell_task, launch, outcomes, resume, summary_run, sweep
from mtlcar.sweeps.cell_task import CellFailedError, CellTask
from mtlcar.sweeps.closing import rerun
from mtlcar.sweeps.optuna_study import study_name
from mtlcar.sweeps.outcomes import Journal, Outcome
from mtlcar.sweeps.progress import SweepProgress
from mtlcar.sweeps.record import RecordedCell, SweepRecord, make_record
from mtlcar.sweeps.resume import give_again, one, parts_of
from mtlcar.sweeps.stopping import Stop
from mtlcar.sweeps.sweep import Planned, carry_out, ended_as
from tests.jobs import CARS

BLANK = Outcome("c", "runs/a/c", ("seed=1",), "unstarted")


@pytest.mark.parametrize("name", SIGNALS)
def test_every_signal_that_a_run_obeys_is_noted_by_its_sweep(name: str) -> None:
    number = getattr(signal, name)
    with Stop() as stop:
        assert signal.getsignal(number) == stop._note
        signal.raise_signal(number)
        assert stop.status == 128 + number


WORKER = """
import os, pickle, signal, sys
pickle.load(sys.stdin.buffer)
os.kill(os.getpid(), signal.SIGINT)
os.kill(os.getpid(), signal.SIGHUP)
print("alive")
"""


def test_a_terminals_signals_do_not_end_a_worker() -> None:
    task = pickle.dumps(CellTask("call", Path("sweep-1.jsonl")))
    done = subprocess.run([sys.executable, "-c", WORKER], input=task, capture_output=True, check=False)
    assert done.stdout == b"alive\n", done.stderr.decode()


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_has_all_jobs_of_joblib_save(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    words = [*CARS[:-2], "trainer.max_epochs=12", "seed=0,1,2,3,4,5", "hydra/launcher=joblib", "sweep=a",
             f"paths.runs={tmp_path / 'runs'}", f"paths.cache={tmp_path / 'cache'}"]  # fmt: skip
    command = [sys.executable, "-m", "mtlcar", "train", "-m", *(w for w in words if not w.startswith("head.dropout"))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    until = time.monotonic() + 200
    while not any('"ended"' in path.read_text() for path in tmp_path.glob("runs/a/*.jsonl")):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    time.sleep(0.1)  # one of the workers composes its next cell
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 130, said
    assert "Stopped." in said
    assert "6 cells: " in said
    assert "ended with" not in said
    states = [outcomes.read_json(path)["state"] for path in tmp_path.glob("runs/a/*/status.json")]
    assert set(states) <= {"finished", "interrupted"}


def test_a_disk_without_locks_or_without_space_stops_no_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flock(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(outcomes.fcntl, "flock", flock)
    journal = Journal(tmp_path / "x.jsonl", "a")
    journal.add("started", BLANK)
    assert journal.read() == [("started", BLANK)]
    Journal(Path("/dev/full"), "a").add("ended", BLANK)
    assert "/dev/full cannot be written: No space left" in capsys.readouterr().err


def test_cells_of_one_name_in_two_folders_are_told_apart(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "x.jsonl", "a")
    ended = [replace(BLANK, directory=f"runs/{sweep}/c", state=state) for sweep, state in
             (("a", "failed"), ("b", "finished"))]  # fmt: skip
    for outcome in ended:
        journal.add("ended", outcome)
    progress = SweepProgress(Journal(journal.path, "a"), 2, 0, lambda outcome: "")
    progress.look()
    assert progress.begun == ended
    assert ended_as(replace(ended[0], state="unstarted"), progress).state == "failed"


def planned(folder: Path, count: int, *, done: bool) -> list[Planned]:
    found = [Planned(str(i), folder / "runs" / "a" / str(i), (f"seed={i}",)) for i in range(count)]
    for cell in found:
        (cell.directory / "wandb").mkdir(parents=True)
        if done:
            (cell.directory / "DONE").touch()
    return found


@pytest.mark.timeout(20)
def test_another_machines_cell_is_waited_for_as_long_as_it_gives_signs_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cell,) = planned(tmp_path, 1, done=False)
    (cell.directory / ".owner").write_text('{"pid": 1, "host": "gone", "machine": "x", "started": "y", "beat": 3}\n')
    monkeypatch.setattr(sweep, "POLL", 0.05)
    monkeypatch.setattr(sweep, "wait_until_free", partial(sweep.wait_until_free, watch=0.2))
    assert sweep._wait_for_any([cell], Journal(tmp_path / "x.jsonl", "a"), Stop()) == ([cell], [])


@pytest.mark.parametrize("state", ["finished", "interrupted", "failed"])
def test_a_sweeper_never_learns_nan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    made = SimpleNamespace(id="c", directory=tmp_path / "c")
    monkeypatch.setattr(HydraConfig, "get", lambda: OmegaConf.create({"overrides": {"task": ["seed=1"]}}))
    monkeypatch.setattr(cell_task.MAKER, "from_config", lambda *_, **__: made)
    monkeypatch.setattr(CellTask, "work", lambda *_: replace(BLANK, state=state))
    with pytest.raises(CellFailedError):
        CellTask("call", tmp_path / "x.jsonl", answers=True)(DictConfig({}))


def test_the_table_is_printed_before_anything_is_uploaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(todo: Sequence[Planned], *_: Any) -> None:
        for cell in todo:
            (cell.directory / "DONE").touch()

    def summarize(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(summary_run, "summarize_sweep", summarize)
    with pytest.raises(KeyboardInterrupt):
        carry_out(planned(tmp_path, 2, done=False), work, CellTask("c", tmp_path / "x.jsonl"), go_on="")
    assert "2 cells: 2 finished by another process." in capsys.readouterr().out


def test_a_summary_that_is_missing_is_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = planned(tmp_path, 2, done=True)
    made: list[Path] = []
    monkeypatch.setattr(summary_run, "_read", lambda cell: SimpleNamespace(config={"logger": {"name": "wandb"}}))
    monkeypatch.setattr(summary_run, "_log", lambda like, sweep_dir, *_: made.append(sweep_dir))

    def again() -> None:
        assert carry_out(cells, lambda *_: None, CellTask("c", tmp_path / "x.jsonl"), go_on="") == 0

    again()
    again()
    assert made == [tmp_path / "runs" / "a"], "the second finds it"
    later = time.time() + 5
    os.utime(cells[0].directory / "DONE", (later, later))
    again()
    assert len(made) == 2


def test_a_run_that_cannot_go_on_does_not_stop_those_after_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "x.jsonl", "a")
    outcome = one(Planned("c", tmp_path / "gone", ()), [], Stop(), journal, False)
    assert outcome.state == "failed"
    assert "cannot be worked in" in str(outcome.error)


def record(place: Path, *overrides: str, folder: str | None = None) -> SweepRecord:
    cells = [RecordedCell(f"f{i}", (*overrides, f"seed={i}"), "n") for i in range(2)]
    return make_record([*overrides, "seed=0,1"], Path(folder) if folder else place, cells, 1)


def test_a_finished_sweep_needs_no_data_to_be_called_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(resume, "train", lambda *_, **__: 9)
    for name in ("f0", "f1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "DONE").touch()
    assert give_again(record(tmp_path, "data.root=gone"), tmp_path, [], False) == 0
    assert "All 2 cells were finished before." in capsys.readouterr().out
    assert give_again(record(tmp_path, "sweep=a,b"), tmp_path, [], False) == 9, "the other folder's may be open"


def test_a_group_chosen_anew_takes_the_recorded_keys_below_it_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[str] = []
    monkeypatch.setattr(resume, "train", lambda overrides, **_: given.extend(overrides) or 0)
    recorded = ("hydra.launcher.n_jobs=4", "hydra/launcher=joblib", "logger=wandb", "logger.mode=offline", "threads=1")
    extra = ["hydra/launcher=submitit_local", "logger=csv"]
    give_again(record(tmp_path, *recorded), tmp_path, extra, False)
    assert given == ["hydra/launcher=joblib", "logger=wandb", "threads=1", "seed=0,1", *extra]


def test_a_command_is_given_again_once(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    record(a, "sweep=a", "logger=none").write(a)
    record(a, "logger=none", "sweep=a").write(a)
    record(b, "sweep=b", "logger=none").write(b)
    for place in (a, b):
        record(place, "sweep=a,b").write(place)

    def count(*places: Path) -> int:
        given = set[Any]()
        return sum(len(parts_of(place, [], False, given)) for place in places)

    assert count(a) == 2
    assert count(a, b) == 3
    assert count(a, a) == 2


def test_a_cell_of_a_resumed_sweep_is_run_again_where_it_is(tmp_path: Path) -> None:
    outcome = replace(BLANK, directory=str(tmp_path / "runs" / "a" / "c"))
    assert rerun(outcome) == "mtlcar train seed=1"
    gone = f"mtlcar train threads=4 seed=1 'paths.runs='\"'\"'{tmp_path / 'runs'}'\"'\"''"
    assert rerun(outcome, resumed=True, threads=4) == gone
    Path(outcome.directory).mkdir(parents=True)
    (Path(outcome.directory) / "config.yaml").touch()
    assert rerun(outcome, resumed=True, threads=4) == f"mtlcar resume {outcome.directory}"


def test_studies_in_one_storage_are_told_apart_and_its_password_is_kept(tmp_path: Path) -> None:
    words = ["hydra/sweeper=optuna", "seed=range(0,9)"]
    names = {study_name([*words, f"sweep={name}"], tmp_path / name) for name in "ab"}
    assert len(names) == 2
    assert study_name([*words, "sweep=a"], None) == study_name([*words, "sweep=b"], None), "each has its own file"
    assert without_password("x=postgresql://me:secret@host:5432/db y") == "x=postgresql://me:***@host:5432/db y"
    assert without_password("sqlite:///a:b@c") == "sqlite:///a:b@c"


def test_an_override_may_be_longer_than_a_file_name() -> None:
    with pytest.raises(UserError, match="needs a sweep directory"):
        resume.resume([f"logger.tags=[{'x' * 5000}]"])


def test_a_job_that_ended_without_a_result_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.MAKER, "make", lambda *_, **__: SimpleNamespace(directory="d", overrides=(), done=True))
    for state, status in (("failed", 1), ("finished", 0)):
        monkeypatch.setattr(launch, "run_cell", lambda *_, state=state, **__: replace(BLANK, state=state, exit=0))
        assert launch.train([]) == status
