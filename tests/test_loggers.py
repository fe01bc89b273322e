"""The loggers of `conf/logger`, and the W&B run that one starts."""

import builtins
import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from mtlcar.errors import UserError
from mtlcar.logs.ledger import read_rows
from mtlcar.logs.run_log import RunLog
from mtlcar.logs.wandb_files import read_history, read_records, run_files, what_is_logged
from mtlcar.logs.wandb_sink import NAME_LIMIT, WandbSink, shorten
from tests.log_rows import REPO, start, values
from tests.run_dirs import config

SECRET = "f00dfacef00dfacef00dfacef00dfacef00dface"


@pytest.mark.parametrize("name", ["none", "csv", "tensorboard"])
def test_a_logger_gives_one_run_log_and_always_its_own_record(tmp_path: Path, name: str) -> None:
    log = start(tmp_path, name)
    assert isinstance(log, RunLog)
    assert log.wandb_info is None
    log.log_metrics({"val/a": 0.5}, step=3)
    log.log_hyperparams({"a": 1})
    log.experiment.flush()  # TensorBoard's writer, or an object that takes any call
    log.finish(0)
    assert [(row.step, row.metrics) for row in read_rows(tmp_path / "rows.jsonl")] == [(3, {"val/a": 0.5})]
    assert (log.name, log.version, log.save_dir) == (tmp_path.name, "abc123", str(tmp_path))
    made = {"none": [], "csv": ["metrics.csv"], "tensorboard": ["tensorboard"]}[name]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["rows.jsonl", *made])


def test_tensorboard_that_is_not_installed_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **options: Any) -> Any:
        if name == "torch.utils.tensorboard":
            raise ModuleNotFoundError("No module named 'tensorboard'")
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"mtlcar\[tensorboard\]"):
        start(tmp_path, "tensorboard")


@pytest.mark.parametrize(("key", "value"), [("artifact", "last"), ("also", ["excel"])])
def test_an_unknown_choice_is_refused_before_wandb_starts(tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(UserError, match=f"logger.{key} should be"):
        start(tmp_path, "wandb", **{key: value})
    assert not list(tmp_path.iterdir())


JOB = """
import json, sys
from pathlib import Path
import numpy as np
from hydra.utils import instantiate
from omegaconf import OmegaConf
from mtlcar.logs.loggers import finish, summarize, update_config, wandb_info
from mtlcar.logs.wandb_media import finish_figures
from tests.run_dirs import CARS, config, predictions
imported_early = "wandb" in sys.modules
run_dir = Path(sys.argv[1])
made = config(logger={"name": "wandb", "tags": ["mine"]})
changes = {"tags": ["mine"], "also": ["csv"], "artifact": "best"}
node = OmegaConf.merge(OmegaConf.load("conf/logger/wandb.yaml"), changes)
loggers = instantiate(node, _partial_=True)(run_dir=run_dir, run_name="x" * 300, run_id="abc123",
    group="sweep-of-mine", job_type="train", config=made, tags=["paper_a", "t" * 100])
try:
    run = loggers[0].experiment
    update_config(loggers, {"label_transform": {"name": "fastcar", "constants": {"gap": 25.9}}})
    for step in range(3):
        loggers[0].log_metrics({"val/model/accuracy": step / 10}, step=10 * step + 1)
    loggers[0].log_metrics({"test/model/accuracy": 0.5, "epoch": 0}, step=0)
    logged = run.step
    gather = lambda rows: np.zeros((len(rows), 3, 8, 8), np.uint8)
    finish_figures(run_dir, CARS, predictions(0.8, 60), gather, loggers)
    names = ("test/model/accuracy", "val/model/accuracy", "trainer/global_step", "epoch")
    rows = {name: run.summary.get(name) for name in names}
    summarize(loggers, {"test": {"model/accuracy": 0.5}, "cost": {"parameters": 7}})
    seen = {"info": wandb_info(loggers), "name": run.name, "tags": list(run.tags), "group": run.group,
            "config": dict(run.config), "step": logged, "summary": {k: run.summary[k] for k in run.summary.keys()},
            "id": run.id, "dir": run.settings.sync_dir,
            "imported_early": imported_early, "rows": rows}
    (run_dir / "checkpoints").mkdir()
    (run_dir / "checkpoints" / "best.ckpt").write_bytes(b"weights")
finally:
    finish(loggers, 0)
print("RESULT " + json.dumps(seen, default=str))
"""


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, str]:
    """A run with the wandb logger: no terminal, no network settings, a secret key in the environment, mode offline."""
    home = tmp_path_factory.mktemp("home")
    run_dir = tmp_path_factory.mktemp("runs") / "abc"
    env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
    env |= {"HOME": str(home), "WANDB_MODE": "offline", "WANDB_API_KEY": SECRET, "PYTHONPATH": str(REPO)}
    done = subprocess.run(
        [sys.executable, "-c", JOB, str(run_dir)],
        cwd=REPO, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    line = next(text for text in done.stdout.splitlines() if text.startswith("RESULT "))
    return run_dir, json.loads(line.removeprefix("RESULT ")), done.stdout + done.stderr


def test_an_offline_wandb_run_lies_below_the_run_directory(offline: tuple[Path, dict, str]) -> None:
    run_dir, seen, _ = offline
    assert seen["info"] == {"id": "abc123", "mode": "offline"}
    assert Path(seen["dir"]).is_relative_to(run_dir)
    assert list(run_dir.glob("wandb/offline-run-*/run-abc123.wandb"))


def test_wandb_is_imported_only_when_chosen(offline: tuple[Path, dict, str]) -> None:
    assert offline[1]["imported_early"] is False


def test_the_wandb_run_is_named_grouped_tagged_and_configured(offline: tuple[Path, dict, str]) -> None:
    _, seen, _ = offline
    assert len(seen["name"]) == NAME_LIMIT
    assert seen["group"] == "sweep-of-mine"
    assert set(seen["tags"]) == {"paper_a", "mine", shorten("t" * 100, 64)}
    assert seen["config"]["architecture"]["name"] == "parallel"
    assert seen["config"]["data"]["name"] == "synthetic_cars"
    assert seen["config"]["label_transform"] == {"name": "fastcar", "constants": {"gap": 25.9}}  # found after the start
    assert seen["summary"]["test/model/accuracy"] == 0.5
    assert seen["summary"]["cost/parameters"] == 7
    assert "figures/confusion_model" in seen["summary"]


def test_a_row_with_a_smaller_step_is_not_lost(offline: tuple[Path, dict, str]) -> None:
    _, seen, output = offline
    assert seen["rows"] == {
        "test/model/accuracy": 0.5, "val/model/accuracy": 0.2, "trainer/global_step": 21, "epoch": None,
    }  # fmt: skip
    assert seen["step"] == 4, "one W&B step a row"
    assert "less than the current step" not in output


def test_the_api_key_is_nowhere_on_disk_or_in_the_output(offline: tuple[Path, dict, str]) -> None:
    run_dir, _, output = offline
    files = [f for f in run_dir.rglob("*") if f.is_file()]
    contents = {f: f.read_bytes() for f in files}
    assert any(b"synthetic_cars" in content for content in contents.values()), "the search must be able to find"
    assert not [f for f, content in contents.items() if SECRET.encode() in content]
    assert SECRET not in output


def test_the_figures_are_saved_in_the_run_directory(offline: tuple[Path, dict, str]) -> None:
    run_dir, _, _ = offline
    assert {f.name for f in (run_dir / "figures").iterdir()} == {
        "confusion_make.png", "confusion_model.png", "worst_errors.png",
    }  # fmt: skip


def test_the_figures_are_known_to_be_logged(offline: tuple[Path, dict, str]) -> None:
    known = what_is_logged(run_files(offline[0], "abc123"))
    assert {name for name in known.keys if name.startswith("figures/")} == {
        "figures/confusion_make", "figures/confusion_model", "figures/worst_errors",
    }  # fmt: skip
    assert (known.rows, known.next_step) == (4, 5)


def test_wandb_csv_and_the_runs_own_record_have_the_same_rows(offline: tuple[Path, dict, str]) -> None:
    run_dir, _, _ = offline
    rows = list(read_rows(run_dir / "rows.jsonl"))
    assert [(row.number, row.step) for row in rows] == [(0, 1), (1, 11), (2, 21), (3, 21)]
    with (run_dir / "metrics.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [int(line["step"]) for line in table] == [1, 11, 21, 21]
    shown = [row for row in read_history(run_files(run_dir)[0]) if "trainer/row" in row]
    for row, line, seen in zip(rows, table, shown, strict=True):
        assert {name: float(line[name]) for name in row.metrics} == row.metrics
        assert {name: seen[name] for name in row.metrics} == row.metrics
        assert (seen["trainer/global_step"], seen["trainer/row"]) == (row.step, row.number)


def test_the_best_checkpoint_is_an_artifact_when_asked_for(offline: tuple[Path, dict, str]) -> None:
    (artifact,) = [r.artifact for r in read_records(run_files(offline[0])[0]) if r.HasField("artifact")]
    assert (artifact.type, artifact.name) == ("model", "model-abc123")
    assert "best" in artifact.aliases
    (entry,) = artifact.manifest.contents
    assert (entry.path, Path(entry.local_path)) == ("best.ckpt", offline[0] / "checkpoints" / "best.ckpt")


def test_online_without_a_server_goes_on_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb
    from wandb.errors import AuthenticationError, CommError

    asked, rows = [], []

    class FakeRun:
        resumed, starting_step, step = False, 0, 0
        settings = SimpleNamespace(sync_dir=str(tmp_path / "run"))

        def define_metric(self, *args: object, **options: object) -> None:
            pass

        def log(self, row: dict, **options: object) -> None:
            rows.append(row)
            raise ConnectionResetError("Connection lost")

        def finish(self, exit_code: int) -> None:
            raise OSError("disk full")

    def init(mode: str, **options: object) -> FakeRun:
        asked.append(mode)
        if mode == "online":
            raise CommError("no route to host")
        return FakeRun()

    monkeypatch.setattr(wandb, "init", init)
    sink = WandbSink(tmp_path, "i", "online")
    sink.start()
    assert asked == ["online", "offline"]
    log = RunLog(tmp_path, "i", [sink])
    assert log.wandb_info == {"id": "i", "mode": "offline"}
    for number in range(3):  # W&B's process is dead: training goes on
        log.log_metrics(values(number), step=number)
    assert len(rows) == 1
    assert len(list(read_rows(tmp_path / "rows.jsonl"))) == 3
    log.finish(1)  # in a `finally`: an error here would hide the run's own
    assert log.wandb_info is None
    log.summarize({"a": 1})

    def refuse(mode: str, **options: object) -> FakeRun:
        raise AuthenticationError("invalid key")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(UserError, match="refused"):
        sink.start()


def test_long_names_are_shortened_and_stay_apart() -> None:
    a, b = shorten("x" * 200 + "a"), shorten("x" * 200 + "b")
    assert len(a) == len(b) == NAME_LIMIT
    assert a != b
    assert shorten("short") == "short"


def test_the_logger_node_of_a_composed_configuration_is_what_the_factories_take() -> None:
    assert config()["logger"] == {"name": "none"}
    for file in (REPO / "conf" / "logger").glob("*.yaml"):
        node = OmegaConf.load(file)
        assert node.name == file.stem
        assert str(node._target_).startswith("mtlcar.logs.loggers.")
