"""The W&B run of a whole sweep: one for life, offline without a key, and never in the way of the sweep."""

import csv
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from mtlcar.listing.finding import find
from mtlcar.logs.wandb_files import read_history, read_records, run_files
from mtlcar.report.collect import collect
from mtlcar.runs import flock
from mtlcar.runs.names import run_name, wandb_id
from mtlcar.sweeps import summary_run
from mtlcar.sweeps.summary_run import TABLE_ROWS, figures, shared, summarize_sweep, tables, totals
from tests.run_dirs import config, write_run

REPO = Path(__file__).parents[1]
WANDB = {"name": "wandb", "project": "cars", "entity": "team", "mode": "auto", "tags": ["mine"], "notes": None}


def cell(folder: Path, architecture: str, skill: float = 0.8, *, done: bool = True, **changes: Any) -> Path:
    made = config(architecture, logger=WANDB, sweep="first", **changes)
    return write_run(folder, {**made, "label_transform": {"name": "identity"}}, skill, done=done)


SWEEP = """
import sys
from pathlib import Path
from mtlcar.sweeps.summary_run import summarize_sweep
from tests.test_summary_run import cell
folder = Path(sys.argv[1])
cells = [cell(folder, "single", 0.6), cell(folder, "cascade", 0.9), cell(folder, "parallel", done=False), folder / "x"]
early = "wandb" in sys.modules
summarize_sweep(folder, cells)
cells[2:] = [cell(folder, "parallel", 0.95)]
summarize_sweep(folder, cells)
print("early", early)
"""


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A sweep of which one cell is missing at first, summarized twice: no terminal, no key, no network."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    env |= {"HOME": str(tmp_path_factory.mktemp("home")), "PYTHONPATH": str(REPO)}
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", SWEEP, str(folder)],
        cwd=REPO, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, done.stdout + done.stderr


def test_the_summary_is_one_wandb_run_however_often_it_is_written(offline: tuple[Path, str]) -> None:
    folder, said = offline
    files = run_files(folder / "summary")
    started = [record.run for file in files for record in read_records(file) if record.HasField("run")]
    assert len(files) == len(started) == 2
    assert {(run.run_id, run.display_name, run.run_group, run.job_type) for run in started} == {
        (wandb_id(OmegaConf.create({"sweep": "first"}), Path("summary")), "first summary", "first", "sweep")
    }
    assert {(run.project, run.entity, tuple(run.tags)) for run in started} == {("cars", "team", ("mine",))}
    steps = [row["_step"] for file in files for row in read_history(file)]
    assert steps == [0, 1]
    exits = [r.exit.exit_code for file in files for r in read_records(file) if r.WhichOneof("record_type") == "exit"]
    assert exits == [0, 0]
    assert "has no summary" not in said
    assert said.count(f"wandb sync --include-online {folder / 'summary' / 'wandb'}") == 2


def media(offline: tuple[Path, str], pattern: str) -> list[Path]:
    return sorted((run_files(offline[0] / "summary")[-1].parent / "files" / "media").rglob(pattern))


def test_it_holds_the_table_the_report_and_its_figures(offline: tuple[Path, str]) -> None:
    folder, _ = offline
    (row,) = read_history(run_files(folder / "summary")[-1])
    keys = {key.split("/path")[0] for key in row if key.endswith("/path")}
    shown = {f"figures/{file.stem}" for file in figures(folder / "summary" / "report" / "report.html")}
    sheets = {f"tables/{file.stem}" for file in (folder / "summary" / "report" / "tables").glob("*.csv")}
    assert keys == {"results", "report", *shown, *sheets}
    assert "tables/results" in sheets
    assert {"figures/test", "figures/curves_val_model_accuracy"} <= shown
    (page,) = media(offline, "report_*.html")
    assert page.read_text() == (folder / "summary" / "report" / "report.html").read_text()
    (file,) = media(offline, "table/results_*.table.json")
    table = json.loads(file.read_text())
    rows = [dict(zip(table["columns"], values, strict=True)) for values in table["data"]]
    runs = {run.directory.name: run for run in find([folder]).runs}
    assert {row["run"] for row in rows} == set(runs)
    assert len(rows) == 4
    for row in rows:
        run = runs[row["run"]]
        assert row["architecture"] == run.config["architecture"]["name"]
        assert row["id"] == wandb_id(OmegaConf.create(run.config), run.directory)
        assert row["name"] == run_name(OmegaConf.create(run.config))
        assert (row["state"], row["best"]) == (run.state, run.best)
        assert row["test/model/accuracy"] == run.numbers.get("test/model/accuracy")
    assert "data.image_size" not in table["columns"]


def test_the_reports_tables_are_tables(offline: tuple[Path, str]) -> None:
    folder, _ = offline
    files = sorted((folder / "summary" / "report" / "tables").glob("*.csv"))
    made = run_files(folder / "summary")[-1].parent / "files" / "media" / "table" / "tables"
    assert len(list(made.iterdir())) == len(files) > 0
    for file in files:
        (copy,) = made.glob(f"{file.stem}_?_*.table.json")
        table = json.loads(copy.read_text())
        with file.open(newline="") as lines:
            head, *rows = csv.reader(lines)
        assert table["columns"] == head
        assert len(table["data"]) == len(rows)
        for told, row in zip(table["data"], rows, strict=True):
            for value, text in zip(told, row, strict=True):
                if isinstance(value, int | float) and not isinstance(value, bool):
                    assert value == float(text)
                else:
                    assert str("" if value is None else value) == text


def test_a_long_table_is_cut_and_a_broken_one_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "tables"
    folder.mkdir()
    (folder / "long.csv").write_text("a,b\n" + "".join(f"{i},\n" for i in range(TABLE_ROWS + 5)))
    (folder / "mixed.csv").write_text("cell,model %,note\nx,84.1 ± 0.9,\ny,-,best\n")
    (folder / "empty.csv").write_text("")
    (folder / "torn.csv").write_text('a,b\n1,2\n3,4,5,6\n"')
    with caplog.at_level(logging.WARNING, "mtlcar"):
        found = tables(tmp_path / "report.html")
    assert {name: len(table.data) for name, table in found.items()} == {"long": TABLE_ROWS, "mixed": 2}
    assert found["long"].data[-1] == [TABLE_ROWS - 1, None]
    assert found["mixed"].data == [["x", "84.1 ± 0.9", None], ["y", "-", "best"]]
    said = " ".join(record.getMessage() for record in caplog.records)
    assert f"the first {TABLE_ROWS} of the {TABLE_ROWS + 5} rows of {folder / 'long.csv'}" in said
    assert f"no table {folder / 'empty.csv'}" in said
    assert f"no table {folder / 'torn.csv'}" in said
    assert tables(tmp_path / "elsewhere" / "report.html") == {}


def test_files_of_an_earlier_report_are_not_logged(tmp_path: Path) -> None:
    run = cell(tmp_path / "runs", "single")
    for name, text in (("tables/old.csv", "a\n1\n"), ("figures/old.png", "")):
        old = tmp_path / "report" / name
        old.parent.mkdir(parents=True)
        old.write_text(text)
    report = summary_run._report(find([run]).runs, tmp_path / "report")
    assert report is not None
    assert {"results", "runs"} <= set(tables(report))
    assert "old" not in tables(report)
    assert {"test", "old"} & {file.stem for file in figures(report)} == {"test"}


def summary(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for record in read_records(file):
        for item in record.summary.update:
            found[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    return found


def test_it_counts_the_runs_and_names_the_best(offline: tuple[Path, str]) -> None:
    first, second = (summary(file) for file in run_files(offline[0] / "summary"))
    assert (first["runs"], first["finished"], first["unstarted"], first["failed"]) == (4, 2, 2, 0)
    assert (second["runs"], second["finished"], second["unstarted"]) == (4, 3, 1)
    assert (first["best/value"], second["best/value"]) == (0.9, 0.95)
    assert second["best/name"] == "synthetic_cars_tiny_parallel_linear_fixed_0.5-0.5_s0"
    assert second["best/monitor"] == "val/model/accuracy"
    run = next(run for run in find([offline[0]]).runs if run.directory.name == second["best/run"])
    assert second["best/test/model/accuracy"] == run.numbers["test/model/accuracy"]


def test_its_folder_is_no_run_and_wandb_is_imported_late(offline: tuple[Path, str]) -> None:
    folder, said = offline
    assert "early False" in said
    assert len(find([folder]).runs) == 4
    assert not find([folder]).damaged
    assert all("summary" not in name and "files" not in name for name, _ in collect([folder]).left_out)


def test_sweeps_that_log_elsewhere_have_none(tmp_path: Path) -> None:
    cells = [write_run(tmp_path, config(sweep="first"))]
    code = (
        "import sys; from pathlib import Path; from mtlcar.sweeps.summary_run import summarize_sweep;"
        "summarize_sweep(Path(sys.argv[1]), [Path(p) for p in sys.argv[2:]]); print('wandb' in sys.modules)"
    )
    words = [sys.executable, "-c", code, str(tmp_path), *map(str, cells)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    assert list(tmp_path.iterdir()) == cells


def test_what_goes_wrong_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cells = [cell(tmp_path, "single")]

    def broken(*_: Any) -> None:
        raise RuntimeError("no such luck\nsecond line")

    monkeypatch.setattr(summary_run, "_log", broken)
    with caplog.at_level(logging.WARNING, "mtlcar"):
        summarize_sweep(tmp_path, cells)
    assert [record.getMessage() for record in caplog.records] == [
        "W&B has no summary of this sweep (RuntimeError: no such luck); its runs are complete."
    ]


def test_two_sweeps_that_end_at_once_write_one_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [cell(tmp_path, "single")]
    written: list[Path] = []
    monkeypatch.setattr(summary_run, "_log", lambda like, sweep_dir, *_: written.append(sweep_dir))
    (tmp_path / "summary").mkdir()
    lock = flock.take(tmp_path / "summary" / ".lock")
    assert lock is not None
    summarize_sweep(tmp_path, cells)
    assert written == []
    flock.give(lock)
    summarize_sweep(tmp_path, cells)
    assert written == [tmp_path]


def test_the_best_is_the_lowest_where_that_is_better(tmp_path: Path) -> None:
    for architecture, value in (("single", 3.0), ("cascade", 2.0)):
        run = cell(tmp_path, architecture, monitor="val/weight/mae")
        metrics = json.loads((run / "metrics.json").read_text())
        metrics["best"] |= {"monitor": "val/weight/mae", "value": value}
        (run / "metrics.json").write_text(json.dumps(metrics))
    assert totals(find([tmp_path]).runs)["best"]["value"] == 2.0
    cell(tmp_path, "parallel")
    assert "best" not in totals(find([tmp_path]).runs)  # accuracies and errors have no common best


def test_what_all_cells_share_is_the_configuration() -> None:
    configs = [
        {"a": {"x": 1, "y": 2}, "b": {"z": 3}, "c": [1]},
        {"a": {"x": 1, "y": 3}, "b": {"z": 4}, "c": [1], "d": 5},
    ]
    assert shared(configs) == {"a": {"x": 1}, "c": [1]}
    assert shared([]) == {}
