"""history.csv and the progress lines."""

import csv
import logging
from pathlib import Path

import lightning.pytorch as pl
import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import Checkpoint, RichProgressBar

from mtlcar.runs.history import History, read_history, write_history
from mtlcar.runs.job import sign
from mtlcar.runs.output import BESIDE, signature
from mtlcar.runs.progress import EpochLines, progress
from mtlcar.sweeps.worker import prepare_launcher


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
    fit = trainer(tmp_path, 3, [History(tmp_path / "history.csv"), EpochLines()])
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
        check_val_every_n_epoch=2,
    )
    fit.fit(Net(), loader(), loader())
    column = pd.read_csv(tmp_path / "history.csv")["val/model/accuracy"]
    assert column.isna().tolist() == [True, False, True, False]


@fits
def test_a_resumed_history_has_no_epoch_twice_and_keeps_the_earlier_ones(tmp_path: Path) -> None:
    class Stop(Checkpoint):
        def on_train_epoch_end(self, trainer: pl.Trainer, *args: object) -> None:
            if trainer.current_epoch == 1:
                trainer.save_checkpoint(tmp_path / "last.ckpt")

        def on_train_batch_start(self, trainer: pl.Trainer, *args: object) -> None:
            if trainer.current_epoch == 3:
                raise RuntimeError("power cut")

    first = trainer(tmp_path, 5, [History(tmp_path / "history.csv"), Stop(), EpochLines()])
    with pytest.raises(RuntimeError, match="power cut"):
        first.fit(Net(), loader(), loader())
    before = read_history(tmp_path / "history.csv")
    assert [row["epoch"] for row in before] == [0, 1, 2]
    again = trainer(tmp_path, 5, [History(tmp_path / "history.csv"), EpochLines()])
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
    bar = progress(terminal=True)
    assert isinstance(bar, RichProgressBar)
    trainer(tmp_path / "bar", 2, [bar]).fit(Net(), loader(), loader())
    shown = [line for line in capsys.readouterr().out.splitlines() if "val/model/accuracy" in line]
    assert [line[: len("epoch 1/2 | ")] for line in shown] == ["epoch 1/2 | ", "epoch 2/2 | "]
    lines = progress(terminal=False)
    assert isinstance(lines, EpochLines)
    trainer(tmp_path, 2, [lines]).fit(Net(), loader(), loader())
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert len(shown) == 2
    assert shown[1].startswith("epoch 2/2 | ")
    assert "images/s" in shown[1]
    assert shown[1].endswith("val/model/accuracy 0.2")


@fits
def test_runs_beside_each_other_sign_their_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert signature(tmp_path / "0123abcd") == ""
    prepare_launcher(several=True)
    name = signature(tmp_path / "0123abcd")
    prepare_launcher(several=False)
    assert (name, signature(tmp_path / "0123abcd")) == ("0123abcd", "")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert isinstance(progress(name=name), EpochLines), "bars would be drawn over each other"
    trainer(tmp_path, 1, [progress(name=name)]).fit(Net(), loader(), loader())
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("0123abcd epoch 1/1 | ")]
    handler = logging.StreamHandler()
    monkeypatch.setenv(BESIDE, "1")
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    sign(tmp_path / "0123abcd")
    said = [handler.format(logging.makeLogRecord({"msg": words})) for words in ("test: 1", "0123abcd: 3 images")]
    assert said == ["0123abcd test: 1", "0123abcd: 3 images"]
