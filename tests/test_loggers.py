"""Loggers, history.csv, progress lines and end-of-run figures."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import CSVLogger
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from mtlcar.errors import UserError
from mtlcar.runs.history import History, read_history, write_history
from mtlcar.runs.loggers import NAME_LIMIT, RunLogger, finish, shorten, summarize, wandb_info
from mtlcar.runs.progress import EpochLines, progress
from mtlcar.runs.wandb_media import confusion_figure, finish_figures, worst_errors
from mtlcar.runs.wandb_mode import choose_mode, has_api_key
from tests.run_dirs import CARS, config, predictions

REPO = Path(__file__).parents[1]
SECRET = "f00dfacef00dfacef00dfacef00dfacef00dface"


def factory(name: str, **changes: object):
    node = OmegaConf.load(REPO / "conf" / "logger" / f"{name}.yaml")
    assert node.name == name
    return instantiate(OmegaConf.merge(node, changes), _partial_=True)


def call(made: object, run_dir: Path) -> list:
    return made(  # type: ignore[operator]
        run_dir=run_dir, run_name="n", run_id="i", group="g", job_type="train", config={"seed": 0}, tags=["a"]
    )


def test_no_logger_is_none_and_csv_keeps_the_rows_of_an_interrupted_run(tmp_path: Path) -> None:
    assert call(factory("none"), tmp_path) == []
    for value in (0.5, 0.7):
        (logger,) = call(factory("csv"), tmp_path)
        assert isinstance(logger, CSVLogger)
        logger.log_metrics({"val/a": value}, step=1)
        logger.save()
    files = sorted((tmp_path / "csv").rglob("metrics.csv"))
    assert [float(pd.read_csv(f)["val/a"][0]) for f in files] == [0.5, 0.7]


JOB = """
import json, sys
from pathlib import Path
import numpy as np
from hydra.utils import instantiate
from omegaconf import OmegaConf
from mtlcar.runs.loggers import finish, summarize, update_config, wandb_info
from mtlcar.runs.wandb_media import finish_figures
from tests.run_dirs import CARS, config, predictions
imported_early = "wandb" in sys.modules
run_dir = Path(sys.argv[1])
made = config(logger={"name": "wandb", "tags": ["mine"]})
node = OmegaConf.merge(OmegaConf.load("conf/logger/wandb.yaml"), {"tags": ["mine"]})
loggers = instantiate(node, _partial_=True)(run_dir=run_dir, run_name="x" * 300, run_id="abc123",
    group="sweep-of-mine", job_type="train", config=made, tags=["paper_a", "t" * 100])
try:
    run = loggers[0].experiment
    update_config(loggers, {"label_transform": {"name": "fastcar", "constants": {"gap": 25.9}}})
    for step in range(3):
        loggers[0].log_metrics({"val/model/accuracy": step / 10}, step=10 * step + 1)
    loggers[0].log_metrics({"test/model/accuracy": 0.5, "epoch": 0}, step=0)
    gather = lambda rows: np.zeros((len(rows), 3, 8, 8), np.uint8)
    finish_figures(run_dir, CARS, predictions(0.8, 60), gather, loggers)
    names = ("test/model/accuracy", "val/model/accuracy", "trainer/global_step", "epoch")
    rows = {name: run.summary.get(name) for name in names}
    summarize(loggers, {"test": {"model/accuracy": 0.5}, "cost": {"parameters": 7}})
    seen = {"info": wandb_info(loggers), "name": run.name, "tags": list(run.tags), "group": run.group,
            "config": dict(run.config), "step": run.step, "summary": {k: run.summary[k] for k in run.summary.keys()},
            "id": run.id, "dir": run.settings.sync_dir,
            "imported_early": imported_early, "rows": rows}
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
    assert seen["step"] >= 21
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


@pytest.fixture
def no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without W&B credentials, and wandb's cached settings as in a fresh process."""
    import wandb

    for name in [k for k in os.environ if k.startswith("WANDB_")] + ["NETRC"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb"))
    monkeypatch.chdir(tmp_path)
    wandb.teardown()
    return tmp_path


def test_without_a_key_the_mode_is_offline_and_online_is_refused(no_key: Path) -> None:
    assert not has_api_key()
    assert choose_mode("auto") == "offline"
    with pytest.raises(UserError, match="wandb login"):
        choose_mode("online")
    with pytest.raises(UserError, match="auto, online or offline"):
        choose_mode("of")


def test_a_key_is_found_where_wandb_keeps_it(no_key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = no_key / ".netrc"
    netrc.write_text("machine api.elsewhere.org\n login user\n password x\n")
    assert choose_mode("auto") == "offline"
    netrc.write_text(f"machine api.wandb.ai\n login user\n password {SECRET}\n")
    assert choose_mode("auto") == "online"
    netrc.write_text("machine")
    assert choose_mode("auto") == "offline"
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    assert choose_mode("auto") == "online"


@pytest.mark.parametrize("mode", ["auto", "online"])
def test_a_key_with_a_blank_at_its_end_is_a_clear_error(
    no_key: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", f"{SECRET} ")
    with pytest.raises(UserError, match="WANDB_API_KEY") as error:
        choose_mode(mode)
    assert SECRET not in str(error.value)


@pytest.mark.parametrize(("value", "mode"), [("offline", "offline"), ("dryrun", "offline"), ("disabled", "disabled")])
def test_wandb_mode_is_respected(no_key: Path, monkeypatch: pytest.MonkeyPatch, value: str, mode: str) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("WANDB_MODE", value)
    assert choose_mode("auto") == mode
    assert choose_mode("online") == "online", "what the configuration says outright goes first"
    if mode == "disabled":
        assert call(factory("wandb"), no_key) == []


def test_online_without_a_server_goes_on_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb
    from wandb.errors import AuthenticationError, CommError

    asked = []

    class FakeRun:
        id, resumed, starting_step, step = "i", False, 0, 0

        class settings:  # noqa: N801
            sync_dir = "somewhere"

        def define_metric(self, *args: object, **options: object) -> None:
            pass

        def finish(self, exit_code: int) -> None:
            raise OSError("disk full")

    def init(mode: str, **options: object) -> FakeRun:
        asked.append(mode)
        if mode == "online":
            raise CommError("no route to host")
        return FakeRun()

    monkeypatch.setattr(wandb, "init", init)
    logger = RunLogger(mode="online", name="n", id="i", save_dir=tmp_path)
    logger.start()
    assert asked == ["online", "offline"]
    assert wandb_info([logger]) == {"id": "i", "mode": "offline"}
    finish([logger], 1)  # in a `finally`: an error here would hide the run's own
    assert wandb_info([logger]) is None
    summarize([logger], {"a": 1})

    def refuse(mode: str, **options: object) -> FakeRun:
        raise AuthenticationError("invalid key")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(UserError, match="refused"):
        logger.start()


def test_a_resumed_run_skips_the_rows_it_has_already_logged(tmp_path: Path) -> None:
    class FakeRun:
        id, resumed, starting_step, step = "i", True, 21, 21

        def __init__(self) -> None:
            self.rows: list[tuple[int, dict]] = []
            self.summary = {"trainer/global_step": 20}

        def log(self, row: dict, step: int) -> None:
            if step >= self.step:  # W&B drops the others
                self.rows.append((step, row))
                self.step = step

    logger = RunLogger(mode="online", name="n", id="i", save_dir=tmp_path)
    logger._experiment = run = FakeRun()  # type: ignore[assignment]
    for step in (10, 20, 30, 40):
        logger.log_metrics({"a": step}, step=step)
    assert run.rows == [(step, {"a": step, "trainer/global_step": step}) for step in (30, 40)]
    logger.log_metrics({"test/a": 1.0, "epoch": 0}, step=0)
    assert run.rows[2:] == [(40, {"test/a": 1.0, "trainer/global_step": 40})]

    again = RunLogger(mode="online", name="n", id="i", save_dir=tmp_path)
    again._experiment = run = FakeRun()  # type: ignore[assignment]
    again.log_metrics({"test/a": 1.0}, step=0)  # nothing was left to train
    assert run.rows == [(21, {"test/a": 1.0, "trainer/global_step": 20})]


def test_long_names_are_shortened_and_stay_apart() -> None:
    a, b = shorten("x" * 200 + "a"), shorten("x" * 200 + "b")
    assert len(a) == len(b) == NAME_LIMIT
    assert a != b
    assert shorten("short") == "short"


class Net(pl.LightningModule):
    """Logs a train mean, a validation metric, and one from its own epoch end (after the callbacks')."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: dict, index: int) -> torch.Tensor:
        loss = self.layer(batch["image"]).square().mean()
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=4)
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("train/late", float(self.current_epoch))

    def validation_step(self, batch: dict, index: int) -> None:
        self.log("val/model/accuracy", (self.current_epoch + 1) / 10, batch_size=4)

    def test_step(self, batch: dict, index: int) -> None:
        self.log("test/model/accuracy", 0.5, batch_size=4)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.25)


def trainer(tmp_path: Path, epochs: int, callbacks: list, **options: object) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, callbacks=callbacks, default_root_dir=tmp_path,
        enable_model_summary=False, log_every_n_steps=1, **options,
    )  # fmt: skip


def loader() -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader([{"image": torch.ones(1)}] * 8, batch_size=4)


def fits(test):
    """For tests that fit: in-memory data needs no workers, and Lightning 2.6 uses a name that torch 2.15 deprecates."""
    test = pytest.mark.filterwarnings("ignore:.*does not have many workers.*")(test)
    return pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")(test)


@fits
def test_history_has_one_row_an_epoch_with_all_its_metrics(tmp_path: Path) -> None:
    fit = trainer(tmp_path, 3, [History(tmp_path / "history.csv"), EpochLines()], enable_checkpointing=False)
    net = Net()
    fit.fit(net, loader(), loader())
    fit.test(net, loader(), verbose=False)
    table = pd.read_csv(tmp_path / "history.csv")
    assert table.columns[:4].tolist() == ["epoch", "step", "seconds", "lr"]
    assert set(table.columns[4:]) == {"train/loss", "train/late", "val/model/accuracy"}
    assert table["epoch"].tolist() == [0, 1, 2]
    assert table["step"].tolist() == [2, 4, 6]
    assert table["lr"].tolist() == [0.25] * 3
    assert table["train/late"].tolist() == [0, 1, 2]
    assert table["val/model/accuracy"].tolist() == pytest.approx([0.1, 0.2, 0.3])


@fits
def test_history_leaves_a_cell_empty_where_nothing_was_validated(tmp_path: Path) -> None:
    fit = trainer(
        tmp_path,
        4,
        [History(tmp_path / "history.csv"), EpochLines()],
        enable_checkpointing=False,
        check_val_every_n_epoch=2,
    )
    fit.fit(Net(), loader(), loader())
    column = pd.read_csv(tmp_path / "history.csv")["val/model/accuracy"]
    assert column.isna().tolist() == [True, False, True, False]


@fits
def test_a_resumed_history_has_no_epoch_twice_and_keeps_the_earlier_ones(tmp_path: Path) -> None:
    class Stop(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, *args: object) -> None:
            if trainer.current_epoch == 1:
                trainer.save_checkpoint(tmp_path / "last.ckpt")

        def on_train_batch_start(self, trainer: pl.Trainer, *args: object) -> None:
            if trainer.current_epoch == 3:
                raise RuntimeError("power cut")

    first = trainer(tmp_path, 5, [History(tmp_path / "history.csv"), Stop(), EpochLines()], enable_checkpointing=False)
    with pytest.raises(RuntimeError, match="power cut"):
        first.fit(Net(), loader(), loader())
    before = read_history(tmp_path / "history.csv")
    assert [row["epoch"] for row in before] == [0, 1, 2]
    again = trainer(tmp_path, 5, [History(tmp_path / "history.csv"), EpochLines()], enable_checkpointing=False)
    again.fit(Net(), loader(), loader(), ckpt_path=str(tmp_path / "last.ckpt"), weights_only=True)
    after = read_history(tmp_path / "history.csv")
    assert [row["epoch"] for row in after] == [0, 1, 2, 3, 4]
    assert [row["step"] for row in after] == [2, 4, 6, 8, 10]
    assert after[:2] == before[:2], "the checkpoint is from the end of epoch 1"
    assert not list(tmp_path.glob("*.tmp"))


def test_a_history_cut_in_the_middle_of_a_line_still_reads(tmp_path: Path) -> None:
    file = tmp_path / "history.csv"
    write_history(file, [{"epoch": 0, "step": 2, "val/a": 0.1 + 0.2}, {"epoch": 1, "step": 4, "val/b": 1.0}])
    assert read_history(file)[0]["val/a"] == 0.1 + 0.2
    with file.open("a", newline="") as stream:
        csv.writer(stream).writerow(["2", "si"])
    assert [row["epoch"] for row in read_history(file)] == [0, 1]
    assert "val/a" not in read_history(file)[1]


@fits
def test_progress_is_a_bar_on_a_terminal_and_a_line_an_epoch_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert isinstance(progress(terminal=True), RichProgressBar)
    lines = progress(terminal=False)
    assert isinstance(lines, EpochLines)
    trainer(tmp_path, 2, [lines], enable_checkpointing=False).fit(Net(), loader(), loader())
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert len(shown) == 2
    assert shown[1].startswith("epoch 2/2 | ")
    assert "images/s" in shown[1]
    assert shown[1].endswith("val/model/accuracy 0.2")


def test_a_confusion_matrix_shows_the_share_of_each_true_class() -> None:
    figure = confusion_figure(CARS["make"], np.array([0, 0, 0, 1, -1, 2]), np.array([0, 0, 1, 1, 3, -1]))
    assert isinstance(figure, Figure)
    shown = figure.axes[0].images[0].get_array()
    assert shown.shape == (6, 6)
    assert shown[0].tolist() == pytest.approx([200 / 3, 100 / 3, 0, 0, 0, 0])
    assert shown[1, 1] == 100
    assert shown[2:].sum() == 0, "missing labels and predictions take no part"
    assert figure.axes[0].get_title() == "make: 75.0 % of 4 images right"
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == list(CARS["make"].classes)


def test_the_worst_errors_are_the_surest_wrong_ones_and_the_largest_in_size() -> None:
    df = predictions(0.5, 40)
    wrong = worst_errors(CARS["model"], df, 5)
    assert (wrong["model/target"] != wrong["model/prediction"]).all()
    assert wrong["model/confidence"].is_monotonic_decreasing
    every = df[df["model/target"] != df["model/prediction"]]["model/confidence"]
    assert wrong["model/confidence"].iloc[0] == every.max()
    df.loc[7, "weight/prediction"] = df.loc[7, "weight/target"] - 9999
    df.loc[8, "weight/target"] = np.nan
    rows = worst_errors(CARS["weight"], df, 40)
    assert rows.index[0] == 7
    assert 8 not in rows.index


def test_figures_ask_for_the_pictures_of_the_rows_they_show(tmp_path: Path) -> None:
    df, asked = predictions(0.5, 50), []

    def gather(rows: list[int]) -> torch.Tensor:
        asked.extend(rows)
        return torch.zeros(len(rows), 3, 8, 8, dtype=torch.uint8)

    files = finish_figures(tmp_path, CARS, df, gather)
    assert [f.name for f in files] == ["confusion_make.png", "confusion_model.png", "worst_errors.png"]
    assert all(f.read_bytes().startswith(b"\x89PNG") for f in files)
    assert len(asked) == 24
    assert set(asked) <= set(df["index"])


def test_errors_without_confidences_are_still_shown(tmp_path: Path) -> None:
    df = predictions(0.5, 30).drop(columns=["model/confidence", "model/scores"])
    files = finish_figures(tmp_path, CARS.subset(["model"]), df, lambda rows: np.zeros((len(rows), 3, 8, 8), np.uint8))
    assert [f.stem for f in files] == ["confusion_model", "worst_errors"]


def test_a_perfect_network_has_no_worst_errors(tmp_path: Path) -> None:
    df = predictions(0.9, 20)
    for task in CARS:
        df[f"{task.name}/prediction"] = df[f"{task.name}/target"]
    assert [f.stem for f in finish_figures(tmp_path, CARS, df, lambda rows: 1 / 0)] == [
        "confusion_make",
        "confusion_model",
    ]


def test_the_logger_node_of_a_composed_configuration_is_what_the_factories_take() -> None:
    assert config()["logger"] == {"name": "none"}
    for name in ("wandb", "csv", "none"):
        node = OmegaConf.load(REPO / "conf" / "logger" / f"{name}.yaml")
        assert str(node._target_).startswith("mtlcar.runs.loggers.")
