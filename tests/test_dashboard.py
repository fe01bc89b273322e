"""The W&B dashboard of a sweep: it asks for what the runs logged, and without a key nothing leaves the machine."""

import base64
import dataclasses
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from mtlcar.errors import UserError
from mtlcar.report.collect import collect
from mtlcar.report.comparison import compare
from mtlcar.report.dashboard import dashboard
from mtlcar.report.dashboard_layout import make_report, make_workspace, plain_name, together
from mtlcar.report.dashboard_panels import packages
from mtlcar.report.dashboard_spec import boards
from tests.run_dirs import config, write_run, write_steel
from tests.wandb_server import WandbServer, wandb_server

pytest.importorskip("wandb_workspaces")

REPO = Path(__file__).parents[1]
KEY = "f00dfacef00dfacef00dfacef00dfacef00dface"
LOGGER: dict[str, Any] = {"name": "wandb", "project": "cars", "entity": None, "mode": "auto", "tags": [], "notes": None}


def logged(run: Path, mode: str = "offline") -> Path:
    """A run directory of a run that W&B has, with what is logged of its tasks."""
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps({**metrics, "wandb": {"id": run.name, "mode": mode}}))
    history = pd.read_csv(run / "history.csv")
    epochs = np.arange(len(history))
    history["train/loss"] = 2.0 / (1 + epochs)
    for task in ("make", "model"):
        history[f"train/{task}/loss"] = 1.0 / (1 + epochs)
        history[f"train/{task}/gradient_norm"] = 0.5 + epochs
        history[f"val/{task}/loss"] = 1.1 / (1 + epochs)
    history["train/make/weight"] = 0.1 * epochs
    history["train/model/weight"] = 1.0
    history["train/make-model/cosine"] = np.linspace(-1, 1, len(epochs))
    history.to_csv(run / "history.csv", index=False)
    return run


def sweep(folder: Path, **changes: Any) -> list[Path]:
    """Two architectures x two loss weights x two seeds."""
    return [
        logged(
            write_run(
                folder,
                config(
                    a,
                    seed,
                    weighting__weights={"make": w, "model": 1.0},
                    **{"logger": dict(LOGGER), "sweep": folder.name, **changes},
                ),
                0.6 + 0.1 * w + 0.01 * seed,
            )
        )
        for a in ("parallel", "cascade")
        for w in (0.1, 0.5)
        for seed in (0, 1)
    ]


def board_of(*folders: Path) -> Any:
    found = collect(folders)
    (board,) = boards(found.runs, compare(found.runs))
    return board


def at(run: Path, path: str) -> Any:
    """What W&B's copy of a run's configuration has there: each top-level key as {"value": ...}."""
    made = yaml.safe_load((run / "config.yaml").read_text())
    node: Any = {key: {"value": value} for key, value in made.items()}
    for word in path.split("."):
        node = node[word]
    return node


def panels(spec: Any) -> Iterator[dict[str, Any]]:
    """Every panel in a workspace's or report's specification."""
    if isinstance(spec, dict):
        if "viewType" in spec and "config" in spec:
            yield spec
        spec = list(spec.values())
    if isinstance(spec, list):
        for part in spec:
            yield from panels(part)


def dumped(thing: Any) -> Any:
    return json.loads(thing._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))


def run_sets(spec: Any) -> Iterator[dict[str, Any]]:
    if isinstance(spec, dict):
        yield from spec.get("runSets", [])
        spec = list(spec.values())
    if isinstance(spec, list):
        for part in spec:
            yield from run_sets(part)


@pytest.fixture
def cars(tmp_path: Path) -> list[Path]:
    return sweep(tmp_path / "cars")


@pytest.mark.parametrize("make", [make_workspace, make_report])
def test_every_metric_and_setting_is_one_that_the_runs_logged(cars: list[Path], make: Any) -> None:
    spec = dumped(make(board_of(cars[0].parent)))
    columns = {column for run in cars for column in pd.read_csv(run / "history.csv").columns}
    tested = {f"test/{name}" for run in cars for name in json.loads((run / "metrics.json").read_text())["test"]}
    kinds = [panel["viewType"] for panel in panels(spec)]
    assert {"Run History Line Plot", "Bar Chart", "Scatter Plot", "Parallel Coordinates Plot", "Run Comparer"} <= set(
        kinds
    )
    for panel in panels(spec):
        shown = panel["config"]
        if panel["viewType"] == "Run History Line Plot":
            assert set(shown["metrics"]) <= columns - {"epoch"}
            assert (shown["xAxis"], shown["groupAgg"], shown["groupArea"]) == ("epoch", "mean", "minmax")
        elif panel["viewType"] in ("Bar Chart", "Scalar Chart"):
            assert set(shown["metrics"]) <= tested
        elif panel["viewType"] == "Scatter Plot":
            assert {shown["xAxis"], shown["yAxis"]} <= {f"summary:{name}" for name in tested}
        elif panel["viewType"] == "Parallel Coordinates Plot":
            axes = [column["accessor"] for column in shown["columns"]]
            assert axes[-1] == "summary:test/model/accuracy"
            for axis in axes[:-1]:
                assert len({at(run, axis.removeprefix("config:")) for run in cars}) == 2, axis
    curves = [m for p in panels(spec) if p["viewType"] == "Run History Line Plot" for m in p["config"]["metrics"]]
    assert {"val/model/accuracy", "train/make/weight", "train/make-model/cosine", "val/make/loss"} <= set(curves)
    assert "train/model/weight" not in curves, "it is 1 in every epoch of every run"
    assert len(curves) == len(set(curves))


@pytest.mark.parametrize("make", [make_workspace, make_report])
def test_runs_are_those_of_the_sweep_that_trained_in_groups_of_equal_settings(cars: list[Path], make: Any) -> None:
    found = list(run_sets(dumped(make(board_of(cars[0].parent)))))
    assert found
    for runs in found:
        told = {(f["key"]["section"], f["key"]["name"]): (f["op"], f["value"]) for f in runs["filters"]["filters"]}
        assert told == {("run", "group"): ("IN", ["cars"]), ("run", "jobType"): ("=", "train")}
        keys = [(key["section"], key["name"]) for key in runs["grouping"]]
        assert {section for section, _ in keys} == {"config"}
        cells: dict[tuple[Any, ...], list[int]] = {}
        for run in cars:
            cells.setdefault(tuple(at(run, name) for _, name in keys), []).append(at(run, "seed.value"))
        assert sorted(cells.values()) == [[0, 1]] * 4, "a group is a cell, and its runs are the seeds"


def test_a_name_reaches_wandb_as_it_is(tmp_path: Path) -> None:
    name = 'lr=0.1 <b\'s> "q" ~'
    board = dataclasses.replace(board_of(sweep(tmp_path / "plain")[0].parent), groups=[name])
    for made in (make_workspace(board), make_report(board)):
        values = {f["value"][0] for r in run_sets(dumped(made)) for f in r["filters"]["filters"] if f["op"] == "IN"}
        assert values == {name}
    assert plain_name("a~b = 🚗 é·") == "a-b - - é·"


def test_several_datasets_are_told_apart(tmp_path: Path) -> None:
    cars = sweep(tmp_path / "cars")
    steel = [logged(write_steel(tmp_path / "steel", seed=s, logger=dict(LOGGER), sweep="steel")) for s in (0, 1)]
    board = board_of(tmp_path)
    assert board.groups == ["cars", "steel"]
    own = [
        next(f["value"] for f in runs["filters"]["filters"] if f["key"]["name"] == "data.value.name")
        for runs in run_sets(dumped(make_report(board)))
    ]
    assert set(own) == {"synthetic_cars", "advanced_steel"}
    (all_runs,) = run_sets(dumped(make_workspace(board)))
    first = all_runs["grouping"][0]["name"]
    assert first == "data.value.name"
    assert {at(run, first) for run in (*cars, *steel)} == set(own)
    merged = together(board.parts)
    assert "test/property/mae" in merged.test
    assert "test/make/accuracy" in merged.test
    assert ("test/class/accuracy", "test/property/mae") in merged.scatter


def test_one_cell_is_grouped_by_its_sweep(tmp_path: Path) -> None:
    for seed in (0, 1):
        logged(write_run(tmp_path / "one", config(seed=seed, logger=dict(LOGGER), sweep="one")))
    for made in (make_workspace, make_report):
        for runs in run_sets(dumped(made(board_of(tmp_path)))):
            assert [(key["section"], key["name"]) for key in runs["grouping"]] == [("run", "group")]


def test_the_report_has_the_table_and_what_is_not_matched(tmp_path: Path) -> None:
    runs = sweep(tmp_path / "cars")
    logged(write_run(tmp_path / "cars", config("single", 0, logger=dict(LOGGER), sweep="cars", trainer__max_epochs=9)))
    shown = "\n".join(str(getattr(block, "text", "")) for block in make_report(board_of(tmp_path)).blocks)
    assert (
        "number of epochs (trainer.max\\_epochs) differs: 4, 9" in shown
        or "(trainer.max_epochs) differs: 4, 9" in shown
    )
    accuracies = [json.loads((run / "metrics.json").read_text())["test"]["model/accuracy"] for run in runs[:2]]
    assert f"| {50 * sum(accuracies):.1f} ± " in shown.replace("**", "")


def test_the_same_runs_give_the_same_specification(cars: list[Path]) -> None:
    for make in (make_workspace, make_report):
        once, again = (dumped(make(board_of(cars[0].parent))) for _ in range(2))
        assert once == again
        ids = [panel["__id__"] for panel in panels(once)]
        assert len(ids) == len(set(ids)) > 5


def test_panels_of_the_report_do_not_overlap(cars: list[Path]) -> None:
    for block in make_report(board_of(cars[0].parent)).blocks:
        taken: set[tuple[int, int]] = set()
        for panel in getattr(block, "panels", ()):
            at = panel.layout
            own = {(x, y) for x in range(at.x, at.x + at.w) for y in range(at.y, at.y + at.h)}
            assert not own & taken
            assert at.x + at.w <= 24
            taken |= own


def test_runs_that_newer_ones_elsewhere_replace_have_no_board(tmp_path: Path) -> None:
    for folder, project in (("old", "one"), ("new", "two")):
        for run in sweep(tmp_path / folder, logger={**LOGGER, "project": project}):
            os.utime(run / "DONE", (project == "two", project == "two"))
    assert board_of(tmp_path).project == "two"


def test_runs_without_wandb_are_refused_and_the_package_is_named(tmp_path: Path, monkeypatch: Any) -> None:
    write_run(tmp_path / "plain", config())
    found = collect([tmp_path])
    with pytest.raises(UserError, match="logger=wandb"):
        dashboard(found, compare(found.runs), tmp_path / "report")
    assert not (tmp_path / "report").exists()
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    with pytest.raises(UserError, match=r"pip install 'mtlcar\[dashboard\]'"):
        packages()


@pytest.fixture
def wandb_fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """W&B as in a new process of a user without settings."""
    import wandb

    for name in [k for k in os.environ if k.startswith("WANDB_")] + ["NETRC"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "home" / "wandb"))
    monkeypatch.chdir(tmp_path)
    wandb.teardown()
    return monkeypatch


@pytest.fixture
def no_network(wandb_fresh: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Neither this process nor W&B's service beside it (reached by a socket of this machine) may ask anybody."""
    connect = socket.socket.connect

    def own(self: socket.socket, address: Any) -> None:
        assert self.family == socket.AF_UNIX, address
        connect(self, address)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("it prompts, or asks the server")

    wandb_fresh.setattr(socket.socket, "connect", own)
    wandb_fresh.setattr(socket, "getaddrinfo", refuse)
    wandb_fresh.setattr("builtins.input", refuse)
    wandb_fresh.setattr("wandb.Api", refuse)
    with wandb_server() as server:
        wandb_fresh.setenv("WANDB_BASE_URL", server.url)
        yield wandb_fresh
        assert not server.asked
        assert not server.runs


def build(runs: Path, output: Path) -> str:
    found = collect([runs])
    folder, sentences = dashboard(found, compare(found.runs), output)
    assert folder == output / "wandb"
    return "\n".join(sentences)


@pytest.mark.parametrize(
    ("more", "reason", "how"),
    [
        ({}, "no API key was found", "`wandb login` and then the same command"),
        ({"WANDB_MODE": "offline", "WANDB_API_KEY": KEY}, "WANDB_MODE is offline", "with WANDB_MODE=online"),
        ({"WANDB_MODE": "disabled", "WANDB_API_KEY": KEY}, "WANDB_MODE is disabled", "with WANDB_MODE=online"),
    ],
)
def test_without_a_key_it_is_written_and_nothing_is_sent(
    tmp_path: Path, cars: list[Path], no_network: pytest.MonkeyPatch, more: dict[str, str], reason: str, how: str
) -> None:
    offline = cars[0] / "wandb" / "offline-run-20260101_000000-x"
    offline.mkdir(parents=True)
    (offline / "run-x.wandb").touch()
    for name, value in more.items():
        no_network.setenv(name, value)
    said = build(cars[0].parent, tmp_path / "report")
    assert reason in said
    assert how in said
    assert "1 of these 8 runs are offline and not in W&B yet" in said
    assert f"`wandb sync --include-online {cars[0].parent / 'wandb'}`" in said
    board = board_of(cars[0].parent)
    for kind, make in (("workspace", make_workspace), ("report", make_report)):
        file = json.loads((tmp_path / "report" / "wandb" / f"{kind}.json").read_text())
        assert file["spec"] == dumped(make(board))
        assert (file["projectName"], file["entityName"], file["saved"]) == ("cars", None, {})


def test_runs_that_were_kept_offline_have_a_dashboard_that_is(tmp_path: Path, no_network: pytest.MonkeyPatch) -> None:
    runs = sweep(tmp_path / "cars", logger={**LOGGER, "mode": "offline"})
    no_network.setenv("WANDB_API_KEY", KEY)
    assert "logger.mode=offline" in build(runs[0].parent, tmp_path / "report")


def test_each_project_has_a_folder(tmp_path: Path, no_network: pytest.MonkeyPatch) -> None:
    sweep(tmp_path / "a", logger={**LOGGER, "project": "one", "entity": "us"})
    sweep(tmp_path / "b", logger={**LOGGER, "project": "two", "entity": "us"}, optimizer__lr=0.1)
    build(tmp_path, tmp_path / "report")
    projects = [json.loads(f.read_text())["projectName"] for f in sorted(tmp_path.glob("report/wandb/*/report.json"))]
    assert projects == ["one", "two"]


def views(server: WandbServer, deleted_after: int = 99) -> dict[str, dict[str, Any]]:
    """Has the stand-in server keep views as W&B's does: a new one without an id, else the one that has it.

    Args:
        deleted_after: all are deleted when so many were sent.
    """
    sent: list[str] = []
    kept: dict[str, dict[str, Any]] = {}
    others = server.query

    def query(text: str, values: dict[str, Any]) -> dict[str, Any]:
        name = text.split("(")[0].split("{")[0].split()[-1]
        project = {"id": "p", "name": "cars", "entityName": "team", "createdAt": "", "isBenchmark": False, "user": None}
        if name == "GetDefaultEntity":
            return {"viewer": {"id": "u", "entity": "team"}}
        if name == "ProjectInternalId":
            return {"project": {"id": "p", "internalId": "17"} if values["projectName"] == "cars" else None}
        if name == "GetProjects":
            page = {"endCursor": None, "hasNextPage": False}
            return {"models": {"pageInfo": page, "edges": [{"node": project}]}}
        if name.lower().startswith("upsertview"):
            if len(sent) == deleted_after:
                assert len(kept) == 2, "of the first two calls, the same two"
                kept.clear()
            given = values.get("id")
            sent.append(values["type"])
            if given and given not in kept:
                return {"upsertView": None}
            mark = given or base64.b64encode(f"View:{len(sent)}".encode()).decode()
            kept[mark] = values
            asked = {key: values[key] for key in ("type", "name", "displayName", "description", "spec")}
            view = {**asked, "id": mark, "project": project, "updatedAt": "2026-01-01T00:00:00"}
            return {"upsertView": {"view": view, "inserted": not given}}
        return others(text, values)

    server.query = query  # type: ignore[method-assign]
    return kept


SCRIPT = """
import sys
from pathlib import Path
from mtlcar.errors import UserError
from mtlcar.report.collect import collect
from mtlcar.report.comparison import compare
from mtlcar.report.dashboard import dashboard
found = collect([Path(sys.argv[1])])
for _ in range(int(sys.argv[3])):
    try:
        print(*dashboard(found, compare(found.runs), Path(sys.argv[2]))[1])
    except UserError as error:
        print("UserError:", error)
"""


def builds(server: WandbServer, runs: Path, output: Path, times: int) -> list[str]:
    """In a process of its own, for W&B leaves one behind that talks to the server. What each of them said."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    env |= {"HOME": str(output.parent), "PYTHONPATH": str(REPO), "WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", SCRIPT, str(runs), str(output), str(times)],
        cwd=output.parent, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert KEY not in done.stdout + done.stderr
    return done.stdout.splitlines()


def test_with_a_key_both_are_saved_and_later_brought_up_to_date(tmp_path: Path, cars: list[Path]) -> None:
    with wandb_server() as server:
        kept = views(server, deleted_after=4)
        first, second, third = builds(server, cars[0].parent, tmp_path / "report", 3)
    assert "/team/cars?nw=" in first
    assert "/team/cars/reports/" in first
    assert second == first
    assert "/team/cars?nw=" in third
    assert third != first
    assert sorted(view["type"] for view in kept.values()) == ["project-view", "runs"]
    assert {(view["entityName"], view["projectName"]) for view in kept.values()} == {("team", "cars")}
    report = next(json.loads(view["spec"]) for view in kept.values() if view["type"] == "runs")
    assert {runs["project"]["entityName"] for runs in run_sets(report)} == {"team"}


def test_what_the_server_does_not_take_is_an_error_that_names_the_files(tmp_path: Path) -> None:
    folder = sweep(tmp_path / "sweep", logger={**LOGGER, "project": "other"})[0].parent
    with wandb_server() as server:
        views(server)
        said = " ".join(builds(server, folder, tmp_path / "report", 1))
    assert said.startswith("UserError: W&B did not take the dashboard for project other")
    assert "not found" in said
    assert str(tmp_path / "report" / "wandb") in said
    assert {path.name for path in (tmp_path / "report" / "wandb").iterdir()} == {"report.json", "workspace.json"}
