"""A sweep as its user meets it: killed, interrupted, given twice, moved; its table, its exit status, its record.

The jobs are stubs (`sweep_stubs`): they take the run directory's lock, count steps and go on.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from mtlcar.errors import UserError
from mtlcar.runs.files import read_json, write_json
from mtlcar.runs.lock import Busy
from mtlcar.sweeps.cells import Cell, CellMaker
from mtlcar.sweeps.closing import labels_of, rerun
from mtlcar.sweeps.launch import hydra_config
from mtlcar.sweeps.one_run import claim, remove_unbegun, state_of
from mtlcar.sweeps.optuna_study import OptunaStudy
from mtlcar.sweeps.outcomes import Journal, Outcome
from mtlcar.sweeps.progress import SweepProgress
from mtlcar.sweeps.record import records
from mtlcar.sweeps.resume import change, refuse
from tests.sweep_stubs import SMALL, Place, Server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    found = Server(tmp_path_factory.mktemp("server"))
    yield found
    found.close()


@pytest.fixture
def place(server: Server, tmp_path: Path) -> Place:
    return Place(server, tmp_path)


@pytest.mark.parametrize("seeds", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_sweep_killed_three_times_finishes_each_cell_once(place: Place, seeds: int) -> None:
    """12 cells; 3 in the short form, of one architecture: each call would check the others anew."""
    command = place.sweep("architecture=single,parallel,cascade", f"seed={','.join(map(str, range(seeds)))}")
    if seeds == 1:
        command = place.sweep("seed=0,1,2")
    for steps in (2, 6, 9) if seeds == 1 else (6, 18, 31):  # within a cell, each time
        parent = place.start(*command)
        place.until("step", steps)
        parent.kill_with_its_job()
    said = place.run(*command)
    done = place.done()
    assert len(done) == 3 * seeds
    ledger = place.ledger()
    assert all(ledger[f"finished {name}"] == 1 for name in done)
    assert all(ledger[f"step {name}"] == 4 for name in done), "no step was taken twice"
    assert "finished before" in said
    assert f"All {3 * seeds} cells were finished before." in place.run(*command)
    assert place.ledger() == ledger, "the second identical call starts nothing"


def test_two_identical_sweeps_at_once_share_the_cells(place: Place) -> None:
    command = place.sweep("seed=0,1,2,3")
    both = [place.start(*command, STUB_SECONDS="1", STUB_STEPS="1") for _ in range(2)]
    texts = [parent.ended() for parent in both]
    assert len(place.done()) == 4
    assert all(place.ledger()[f"began {name}"] == 1 for name in place.done()), "each was trained by one of them"
    assert all("4 cells: " in text and "finished by another process" in text for text in texts)
    before = sum(int(found) for text in texts for found in re.findall(r"(\d) of 4 cells were finished before", text))
    assert before + sum(text.count("] finished ") for text in texts) == 8
    assert len(records(place.runs / "a")) == 1


def test_a_cell_that_another_sweep_leaves_unfinished_is_taken_over(place: Place) -> None:
    first = place.start(*place.sweep("seed=0,1"), STUB_SECONDS="30")  # it is stopped before
    place.until("began", 1)
    second = place.start(*place.sweep("seed=0,1"))
    place.until("finished", 1)  # seed=1, by the second
    second.until("waiting for them")
    first.tell(signal.SIGTERM)
    first.ended(143)
    assert "2 cells: 2 finished" in second.ended()
    assert len(place.done()) == 2


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_an_interrupt_reaches_the_job_and_stops_the_sweep(place: Place, signum: int, status: int) -> None:
    parent = place.start(*place.sweep("seed=0,1,2"), STUB_SECONDS="1")
    place.until("step", 1)
    parent.tell(signum)
    text = parent.ended(status)
    assert place.count("began") == place.count("stopped") == 1
    assert "3 cells: 1 interrupted, 2 not started." in text
    assert f"mtlcar resume {place.runs / 'a'}" in text
    assert not list((place.runs / "a").glob(".stop*"))
    resumed = place.run("resume", "runs/a")
    assert "went on from" in resumed
    assert "3 finished (1 of them resumed)" in resumed
    assert place.count("finished") == 3


def test_a_sweep_outlives_what_it_prints_to(place: Place) -> None:
    environment = {"STUB_JOB": str(place.job)}
    words = place.sweep("seed=0,1")
    pid = place.server.ask(words=words, environment=environment, out="/dev/full", cwd=str(place.folder))
    assert place.server.ask(wait=pid) == 0
    assert len(place.done()) == 2


def test_an_interrupted_job_alone_does_not_stop_the_sweep(place: Place) -> None:
    parent = place.start(*place.sweep("seed=0,1"), STUB_SECONDS="0.5")
    place.until("step", 1)
    (owner,) = (place.runs / "a").glob("*/.owner")
    os.kill(json.loads(owner.read_text())["pid"], signal.SIGTERM)
    text = parent.ended(1)
    assert "1 finished, 1 interrupted" in text
    assert "1 of 2 cells did not finish" in text


def test_the_table_names_what_failed_and_the_command_for_it(place: Place) -> None:
    text = place.run(*place.sweep("seed=0,7,1"), expect=1, STUB_BAD_SEED="7")
    assert "2 finished, 1 failed" in text
    assert "ValueError: a bad seed" in text
    assert place.count("finished") == 2, "the cell after it ran"
    (line,) = (line.strip() for line in text.splitlines() if line.strip().startswith("mtlcar train "))
    words = shlex.split(line)[1:]
    assert {"seed=7", "sweep=a"} <= set(words)
    place.run(*words)  # the cause is gone
    assert place.count("finished") == 3
    assert sorted(place.ledger()[f"began {name}"] for name in place.done()) == [1, 1, 2], "the failed one alone again"


def test_a_killed_parent_stops_its_job(place: Place) -> None:
    """With the real job's first lines, which ask the system for it."""
    place.job.write_text(
        "import pathlib, sys, time\n"
        "from mtlcar.runs.interrupts import INTERRUPTS, Stopped, die_with_parent\n"
        "ledger = pathlib.Path(sys.argv[1]).parent.parent / 'ledger.txt'\n"
        "try:\n"
        "    INTERRUPTS.install()\n"
        "    die_with_parent()\n"
        "    ledger.write_text('began')\n"
        "    time.sleep(60)\n"
        "except Stopped:\n"
        "    ledger.write_text('stopped')\n"
    )
    parent = place.start(*place.sweep("seed=0,1"))
    place.until("began", 1)
    parent.tell(signal.SIGKILL)
    parent.ended(-signal.SIGKILL)
    place.until("stopped", 1)


def test_resume_gives_the_recorded_commands_again_and_goes_on_with_other_runs(place: Place) -> None:
    place.run(*place.sweep("seed=0,7"), expect=1, STUB_BAD_SEED="7")
    (record,) = records(place.runs / "a")
    kept = read_json(record)
    assert kept["overrides"][-2:] == ["sweep=a", "seed=0,7"]
    names = [f"synthetic_cars_tiny_parallel_linear_equal_s{seed}" for seed in (0, 7)]
    assert [cell["name"] for cell in kept["cells"]] == names
    place.run("train", *place.common(), "seed=8", expect=1, STUB_BAD_SEED="8")  # of no sweep
    write_json(place.runs / "a" / "sweep-00000000.json", {"cells": 3})
    text = place.run("resume", str(place.runs / "a"), "logger=csv")
    assert "is no record of a sweep" in text, "and does not keep the others from going on"
    assert place.count("finished") == len(place.done()) == 3
    loggers = [OmegaConf.load(path).logger.name for path in (place.runs / "a").glob("*/config.yaml")]
    assert sorted(loggers) == ["csv", "csv", "none"]
    assert read_json(record) == kept | {"last_started": read_json(record)["last_started"]}
    assert len(records(place.runs / "a")) == 2
    assert "Nothing to do" in place.run("resume", f"runs/a/{place.done()[0]}")


def test_a_moved_sweep_goes_on_where_it_is_now(place: Place) -> None:
    place.run(*place.sweep("seed=0,7"), expect=1, STUB_BAD_SEED="7")
    shutil.move(place.runs, place.folder / "kept")
    (place.folder / "kept" / "a").rename(place.folder / "kept" / "b")
    assert "has become" in place.run("resume", "kept/b")
    assert len(place.done("kept/b")) == 2
    assert not place.runs.exists()
    assert "All 2 cells were finished before." in place.run("resume", "kept/b"), "it is found again"


@pytest.mark.slow
def test_an_optuna_sweep_goes_on_with_its_study(place: Place) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    command = place.sweep("hydra/sweeper=optuna", "hydra.sweeper.n_trials=4", "seed=range(0,9999)")
    command.append("hydra.sweeper.sampler.seed=1")
    parent = place.start(*command, STUB_SECONDS="0.3")
    place.until("step", 6)  # within the second trial
    parent.kill_with_its_job()
    text = place.run(*command)
    assert "1 of 4 trials are finished, 1 that had been stopped go on; 3 to go" in text
    assert "1 of them resumed" in text
    assert "[4/4] finished" in text
    ledger, done = place.ledger(), place.done()
    assert len(done) == 4, "the sampler did not draw the first ones again"
    assert all(ledger[f"finished {name}"] == 1 and ledger[f"step {name}"] == 4 for name in done)
    best = max(read_json(path)["best"]["value"] for path in (place.runs / "a").glob("*/metrics.json"))
    again = place.run(*command)
    assert "4 of 4 trials are finished; 0 to go" in again
    assert f"best of its trials {best:g}" in again
    assert place.ledger() == ledger


@pytest.mark.filterwarnings("ignore")  # of SQLAlchemy and of this old Optuna
def test_a_study_counts_what_is_finished_and_enqueues_what_a_kill_left(server: Server, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    from optuna.distributions import IntUniformDistribution
    from optuna.trial import TrialState

    words = [
        *SMALL,
        f"paths.cache={server.cache}",
        "hydra/sweeper=optuna",
        "seed=range(0,9)",
        "hydra.sweeper.n_trials=4",
    ]

    def study(*more: str) -> OptunaStudy:
        return OptunaStudy([*words, *more], hydra_config([*words, *more]), tmp_path)

    opened = study().open()
    for state in (TrialState.COMPLETE, TrialState.FAIL, TrialState.RUNNING):
        trial = opened.ask({"seed": IntUniformDistribution(0, 8)})
        left = trial.params
        if state != TrialState.RUNNING:
            opened.tell(trial, 0.5 if state == TrialState.COMPLETE else None, state)
    again = study("hydra.sweeper.sampler.seed=7", "logger=csv")
    again.put_in_order()
    assert (again.total, again.left) == (4, 3)
    opened = again.open()
    states = [trial.state for trial in opened.trials]
    assert states == [TrialState.COMPLETE, TrialState.FAIL, TrialState.FAIL, TrialState.WAITING]
    assert opened.trials[3].system_attrs["fixed_params"] == left
    said = again.settings
    assert {"hydra.sweeper.n_trials=3", "hydra.sweeper.direction=maximize", "hydra.sweeper.sampler.seed=10"} <= set(
        said
    )
    assert "hydra.sweeper.n_jobs=1" in said
    again = study()
    again.put_in_order()
    assert len(again.open().trials) == 4, "what waits is not enqueued twice"
    assert study("monitor=val/loss").direction == "minimize"
    with pytest.raises(UserError, match="better when higher"):
        study("hydra.sweeper.direction=minimize")


@pytest.mark.parametrize(
    ("override", "says"),
    [("seed=3", "could change the result"), ("trainer=cpu", "could change"), ("sweep=b", "says where"),
     ("paths.runs=x", "says where"), ("logger=csv,none", "several"), ("data.roots=3", "could change")],
)  # fmt: skip
def test_resume_refuses_what_could_change_a_result(override: str, says: str) -> None:
    refuse(["logger=csv", "hydra/launcher=joblib", "data.root=x", "jobs_per_gpu=2", "checkpoint.every_minutes=3"])
    with pytest.raises(UserError, match=says):
        refuse([override])


@pytest.fixture
def cell(server: Server, tmp_path: Path) -> Cell:
    return CellMaker().make([*SMALL, f"paths.runs={tmp_path / 'runs'}", f"paths.cache={server.cache}", "sweep=a"])


def test_a_run_keeps_its_config_apart_from_what_resume_changes(cell: Cell) -> None:
    claim(cell)
    path = cell.directory / "config.yaml"
    before = OmegaConf.load(path)
    change(path, ["logger=csv", "data.root=here", "hydra.verbose=true"])
    after = OmegaConf.load(path)
    assert after.logger.name == "csv"
    assert after.data.root == str(Path("here").resolve())
    after.logger, after.data.root = before.logger, before.data.root
    assert after == before
    with pytest.raises(UserError, match=r"no 'logger\.mode'"):
        change(path, ["logger.mode=offline"])


def test_writing_a_cell_again_keeps_the_constants_that_its_run_found(server: Server, tmp_path: Path) -> None:
    def make() -> Cell:
        words = (
            f"paths.runs={tmp_path}",
            f"paths.cache={server.cache}",
            "label_transform=fastcar",
            "data.levels=[make,weight]",
        )
        return CellMaker().make([*SMALL, *words])

    cell = make()
    claim(cell)
    path = cell.directory / "config.yaml"
    cfg = OmegaConf.load(path)
    assert cfg.label_transform.constants is None
    cfg.label_transform.constants = {"gap": 3.0, "found": True}
    path.write_text(OmegaConf.to_yaml(cfg))
    again = make()
    assert again.id == cell.id
    claim(again)
    assert OmegaConf.load(path).label_transform.constants == {"gap": 3.0, "found": True}
    assert again.cfg.label_transform.constants is None, "the cell itself is as it was composed"


def test_nothing_touches_a_directory_in_which_another_process_works(cell: Cell) -> None:
    assert claim(cell) is True
    path = cell.directory / "config.yaml"
    path.write_text("theirs")
    holds = "from pathlib import Path; import sys, time; from mtlcar.runs.lock import run_lock\n" \
        "with run_lock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"  # fmt: skip
    other = subprocess.Popen([sys.executable, "-c", holds, str(cell.directory)], stdin=-1, stdout=-1)
    assert other.stdout is not None
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(Busy):
        claim(cell)
    remove_unbegun(cell.directory)
    assert path.read_text() == "theirs"
    other.communicate()
    path.unlink()
    assert claim(cell) is False, "made before"
    assert path.exists()
    (cell.directory / "checkpoints").mkdir()
    remove_unbegun(cell.directory)
    assert path.exists(), "training had begun"
    (cell.directory / "checkpoints").rmdir()
    remove_unbegun(cell.directory)
    assert not cell.directory.exists()
    (cell.directory).mkdir(parents=True)
    (cell.directory / "DONE").touch()
    assert claim(cell) is None


@pytest.mark.parametrize(
    ("status", "state"),
    [(0, "failed"), (1, "failed"), (2, "failed"), (75, "elsewhere"), (130, "interrupted"), (143, "interrupted"),
     (-15, "interrupted"), (-9, "failed"), (-11, "failed"), (140, "interrupted"), (137, "failed")],
)  # fmt: skip
def test_an_exit_status_says_what_became_of_a_job(status: int, state: str, tmp_path: Path) -> None:
    assert state_of(status, tmp_path) == state  # 0 without DONE is no success
    (tmp_path / "DONE").touch()
    assert state_of(0, tmp_path) == "finished"


def test_a_journal_is_read_by_its_own_call_and_survives_half_a_line(tmp_path: Path) -> None:
    mine, other = (Journal(tmp_path / "x.jsonl", call) for call in ("a", "b"))
    blank = Outcome("c1", "d", ("seed=1",), "unstarted")
    mine.add("started", blank)
    with mine.path.open("a") as file:
        file.write('{"call": "a", "eve')  # killed here
    other.add("started", blank)
    assert other.read() == mine.read() == [("started", blank)]
    assert mine.read() == []
    mine.add("ended", Outcome("c1", "d", ("seed=1",), "finished", exit=0, seconds=2.0))
    ((event, outcome),) = mine.read()
    assert (event, outcome.state, outcome.seconds) == ("ended", "finished", 2.0)


def test_progress_counts_skipped_cells_and_tells_the_time_left(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "x.jsonl", "a")
    progress = SweepProgress(Journal(journal.path, "a"), 6, 2, lambda outcome: "seed=1")
    clock = iter([0.0, 600.0, 660.0, 900.0])
    progress._clock = lambda: next(clock)
    journal.add("started", Outcome("c", "d", (), "unstarted"))
    progress.look()
    journal.add("ended", Outcome("c", "d", (), "finished", seconds=600.0, metric="val/x", value=0.8125))
    (_, first), *_ = Journal(journal.path, "a").read()[1:]
    progress.ended, progress._over, progress._finished = {"c": first}, 1, 1
    assert progress.line(first) == "[3/6] finished c (seed=1) in 10 min, val/x 0.8125; 3 left, about 30 min"
    failed = Outcome("e", "d", (), "failed", seconds=60.0, error="no")
    progress._over = 2
    assert progress.line(failed) == "[4/6] failed e (seed=1) in 60 s: no; 2 left, about 22 min"


def test_what_tells_cells_apart_and_runs_one_again() -> None:
    cells = {"a": ("x=1", "y=2", "w={a:1}"), "b": ("x=1", "y=3", "w={a:1}")}
    assert labels_of(cells) == {"a": "y=2", "b": "y=3"}
    assert rerun(Outcome("a", "", cells["a"], "failed")) == "mtlcar train x=1 y=2 'w={a:1}'"
