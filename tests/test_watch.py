"""`mtlcar report --watch`: the report again when there is something new, and an end when nothing can come any more."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mtlcar.errors import UserError
from mtlcar.report import watch as module
from mtlcar.report.collect import collect
from mtlcar.report.render import page_html
from mtlcar.report.watch import keep_still, look, watch
from mtlcar.runs.lock import run_lock
from mtlcar.sweeps.outcomes import Journal, Outcome
from mtlcar.sweeps.record import RecordedCell, make_record
from tests.cli import mtlcar
from tests.run_dirs import config, write_run


def finished(folder: Path, seed: int = 0) -> Path:
    return write_run(folder, config(seed=seed))


def open_run(folder: Path, state: str | None = None, **more: Any) -> Path:
    run = write_run(folder, config(seed=7), done=False)
    if state is not None:
        (run / "status.json").write_text(json.dumps({"state": state, **more}))
    return run


def finish(run: Path) -> None:
    made = finished(run.parent, seed=8)
    for file in made.iterdir():
        shutil.move(file, run / file.name)
    made.rmdir()


class Watched:
    """A watch whose time goes only in steps: each sleep takes the next of `happens`, then interrupts.

    Attributes:
        seen: finished runs at each report.
        said: lines without their time of day.
    """

    def __init__(self, folder: Path, *happens: Callable[[], object], build: Callable[[], Path | None] | None = None):
        self.folder, self.happens, self.build = folder, list(happens), build
        self.seen: list[int] = []
        self.said: list[str] = []
        self.slept: list[float] = []
        self.now = 0.0

    def report(self) -> Path | None:
        self.now += 3.0
        if self.build:
            return self.build()
        self.seen.append(len(collect([self.folder]).runs))
        return self.folder / "report" / "report.html"

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if not self.happens:
            raise KeyboardInterrupt
        self.happens.pop(0)()

    def run(self, every: float = 30.0, **more: Any) -> int:
        def say(line: str) -> None:
            self.said.append(line.split(" ", 1)[1])

        return watch(self.report, [self.folder], every=every, sleep=self.sleep, clock=lambda: self.now, say=say, **more)


def nothing() -> None:
    """Time goes by."""


def test_a_report_for_each_change_and_none_without(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    finished(folder)
    run = open_run(folder, "running")
    with run_lock(run):
        watched = Watched(
            folder,
            nothing,
            lambda: (run / "history.csv").write_text("epoch,step\n0,10\n"),
            nothing,
            lambda: finished(folder, seed=1),
            nothing,
        )
        assert watched.run() == 0
    assert watched.seen == [1, 2], "at first and after a run; an epoch of another changes nothing that is shown"
    page = folder / "report" / "report.html"
    assert watched.said == [f"1 finished, 1 running: {page}", f"2 finished, 1 running: {page}", "stopped"]
    assert watched.slept == [30.0] * 6


def test_it_ends_by_itself_with_a_report_of_all(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    finished(folder)
    run = open_run(folder)
    failed = open_run(folder, "failed")
    watched = Watched(folder, nothing, lambda: finish(run))
    assert watched.run() == 0
    assert watched.seen == [1, 2]
    assert "stopped" not in watched.said
    assert failed.is_dir()
    assert watched.said[-1].startswith("2 finished, 1 failed: ")


def test_it_waits_for_the_first_run_and_says_so_once(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    folder.mkdir()
    watched = Watched(folder, nothing, lambda: open_run(folder), nothing, lambda: finish(next(folder.glob("0*"))))
    assert watched.run() == 0
    assert watched.said[:2] == [
        "no runs: waiting for the first finished run",
        "1 unstarted: waiting for the first finished run",
    ]
    assert watched.seen == [1]


def test_sweeps_that_ended_without_a_finished_run_have_no_report(tmp_path: Path) -> None:
    open_run(tmp_path / "sweep", "failed")
    watched = Watched(tmp_path / "sweep")
    assert watched.run() == 1
    assert watched.seen == []


def record(folder: Path, *cells: tuple[str, ...]) -> Path:
    made = [RecordedCell(name, tuple(overrides), name) for name, *overrides in cells]
    return make_record(["a=1,2"], folder, made, 1).write(folder)


def test_cells_without_a_directory_count(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    run = finished(folder)
    record(folder, (run.name,), ("0123456789ab",))
    assert look([folder]).counts == {"finished": 1, "unstarted": 1}
    assert look([tmp_path]).counts == {"finished": 1, "unstarted": 1}
    assert look([run]).counts == {"finished": 1}, "its sweep was not asked for"
    watched = Watched(folder, nothing)
    assert watched.run() == 0
    assert watched.said[1:] == [
        "1 finished, 1 unstarted: nothing is at work; waiting for somebody to go on with it (Ctrl-C ends)",
        "stopped",
    ]


def test_the_same_cell_of_another_sweep_is_another_cell(tmp_path: Path) -> None:
    run = finished(tmp_path / "a")
    (tmp_path / "b").mkdir()
    record(tmp_path / "a", (run.name,))
    record(tmp_path / "b", (run.name,))
    assert look([tmp_path]).counts == {"finished": 1, "unstarted": 1}


def test_one_command_for_several_folders_counts_each_cell_once(tmp_path: Path) -> None:
    runs = [finished(tmp_path / "a"), finished(tmp_path / "b", 1), finished(tmp_path / "b", 2)]
    cells = [(runs[0].name, "sweep=a"), (runs[2].name, "sweep=b")]
    for name in "ab":
        record(tmp_path / name, *cells)
    assert look([tmp_path]).counts == {"finished": 3}


def test_cells_that_could_not_be_made_are_not_waited_for(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    run = finished(folder)
    journal = record(folder, (run.name,))
    Journal(journal, "1").add("ended", Outcome("?12345678", "", ("a=b",), "failed"))
    assert look([folder]).over


def test_a_search_between_two_trials_is_at_work(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    finished(folder)
    study = folder / ".optuna-12345678"
    study.mkdir()
    with run_lock(study):
        watched = Watched(folder, nothing)
        assert watched.run() == 0
        assert watched.said[-1] == "stopped"
    assert look([folder]).over


def test_a_build_that_fails_is_said_and_tried_again(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    finished(folder)
    open_run(folder)
    outcomes: Iterator[Any] = iter([OSError("disk full\nmore"), OSError("disk full"), None])

    def build() -> None:
        found = next(outcomes)
        if found:
            raise found

    watched = Watched(folder, nothing, nothing, nothing, build=build)
    assert watched.run() == 0
    assert watched.said[:2] == [
        "1 finished, 1 unstarted: no report (OSError: disk full); it is tried again",
        "1 finished, 1 unstarted",
    ]


def test_a_report_that_cannot_be_built_is_not_tried_for_ever(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    finished(folder)

    def build() -> None:
        raise ValueError("always")

    assert Watched(folder, *[nothing] * 9, build=build).run() == 1


def test_directories_may_be_torn_or_vanish(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    run = finished(folder)
    torn = open_run(folder)
    (torn / "status.json").write_text('{"state": "run')
    (folder / "sweep-00000000.json").write_text('{"folder": ')
    (folder / "aabbccddeeff").mkdir()
    assert look([folder]).counts["finished"] == 1
    watched = Watched(folder, lambda: shutil.rmtree(run), lambda: shutil.rmtree(folder), nothing)
    assert watched.run() == 0
    assert watched.seen == [1]
    assert watched.said[-2] == "no runs: waiting for the first finished run"


def test_what_finishes_while_the_report_is_built_is_in_the_next(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    finished(folder)
    run = open_run(folder)

    def build() -> None:
        watched.seen.append(len(collect([folder]).runs))
        if not (run / "DONE").exists():
            finish(run)

    watched = Watched(folder, nothing, build=build)
    assert watched.run() == 0
    assert watched.seen == [1, 2]


def test_a_slow_report_leaves_time_to_the_training(tmp_path: Path) -> None:
    finished(tmp_path)
    open_run(tmp_path)
    watched = Watched(tmp_path, nothing)
    watched.run(every=2.0)
    assert watched.slept == [3.0, 2.0], "the first look built for 3 seconds"


def test_the_page_loads_itself_again_only_while_it_is_watched(tmp_path: Path) -> None:
    finished(tmp_path / "sweep")
    page = tmp_path / "report.html"

    def build() -> Path:
        page.write_text(page_html("A title", [], refresh=30))
        assert module.REFRESH.search(page.read_text())
        return page

    assert Watched(tmp_path / "sweep", build=build).run() == 0
    assert page.read_text() == page_html("A title", [])


def test_only_the_head_of_a_page_is_changed(tmp_path: Path) -> None:
    page = tmp_path / "a.html"
    line = '<meta http-equiv="refresh" content="5">'
    page.write_text(f"<head>{line}<title>x</title></head><body>{line}</body>")
    keep_still(page)
    assert page.read_text() == f"<head><title>x</title></head><body>{line}</body>"
    before = page.stat().st_mtime_ns
    keep_still(page)
    assert page.stat().st_mtime_ns == before
    keep_still(tmp_path / "none.html")


def test_it_can_be_told_to_stop(tmp_path: Path) -> None:
    finished(tmp_path)
    open_run(tmp_path)
    answers = iter([False, False, True])
    watched = Watched(tmp_path, nothing, nothing, nothing)
    assert watched.run(stop=lambda: next(answers)) == 0
    assert len(watched.slept) == 2


@pytest.mark.parametrize("every", [0.0, -1.0, float("nan"), float("inf")])
def test_no_time_and_no_folder_are_refused(tmp_path: Path, every: float) -> None:
    with pytest.raises(UserError, match="--watch"):
        Watched(tmp_path).run(every=every)
    with pytest.raises(UserError, match="no such folder"):
        Watched(tmp_path / "x").run()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--watch", "5", "--wandb"), "--watch and --wandb exclude each other"),
        (("--watch", "0"), "--watch should be a number of seconds above 0. Found 0."),
        (("--watch", "nan"), "--watch should be a number of seconds above 0. Found nan."),
    ],
)
def test_flags_that_cannot_be_meant_are_refused_before_anything_is_written(
    tmp_path: Path, flags: tuple[str, ...], says: str
) -> None:
    finished(tmp_path / "s")
    assert says in mtlcar("report", str(tmp_path / "s"), *flags, expect=2).stderr
    assert not (tmp_path / "s" / "report").exists()
