"""The run's own record, and the tables made of it."""

import csv
import math
import os
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

from mtlcar.logs.ledger import Ledger, Row, decode, encode, read_rows
from mtlcar.logs.run_log import RunLog
from tests.log_rows import session, start, values


def same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


class Kept:
    """A sink that remembers what it is told."""

    title, experiment = "kept", None

    def __init__(self) -> None:
        self.told: list[tuple[str, object]] = []

    def resume(self, rows: Iterable[Row]) -> None:
        self.told.append(("resume", [row.number for row in rows]))

    def log(self, row: Row) -> None:
        self.told.append(("log", row.number))

    def sync(self) -> None:
        self.told.append(("sync", None))

    def finish(self, exit_code: int) -> None:
        self.told.append(("finish", exit_code))


@pytest.mark.parametrize("number", range(8))
def test_a_row_reads_back_as_it_was_written(number: int) -> None:
    row = Row(number, 2 * number, {**values(number), "ä": 0.1 + 0.2})
    line = encode(row)
    back = decode(line)
    assert back is not None
    assert back[:2] == row[:2]
    assert list(back.metrics) == list(row.metrics)
    assert all(same(back.metrics[name], value) for name, value in row.metrics.items())
    assert line.count(b"\n") == 1
    assert all(decode(line[:cut]) is None for cut in range(len(line)))


def test_tensors_are_logged_with_all_their_bits(tmp_path: Path) -> None:
    log = RunLog(tmp_path, "i")
    third = torch.tensor(1 / 3)
    log.log_metrics({"a": third, "b": torch.tensor([2]), "c": True}, step=1)
    (row,) = read_rows(tmp_path / "rows.jsonl")
    assert row.metrics == {"a": third.item(), "b": 2, "c": 1}
    assert row.metrics["a"] != 1 / 3, "float32"


@pytest.mark.parametrize("tail", [b"", b'{"row": 6, "step": 12, "me', b"\0" * 40, b"\0\0\n7\n"])
def test_a_resumed_run_logs_what_an_uninterrupted_one_does(tmp_path: Path, tail: bytes) -> None:
    session(tmp_path / "whole", 9, "none")
    log = start(tmp_path / "cut", "none")
    for number in range(6):
        log.log_metrics(values(number), step=2 * number)
    with (tmp_path / "cut" / "rows.jsonl").open("ab") as file:
        file.write(tail)
    again, kept = RunLog(tmp_path / "cut", "i", [sink := Kept()]), 4
    again.resume(kept)
    assert again.count == kept
    for number in range(kept, 9):
        again.log_metrics(values(number), step=2 * number)
    again.finish(0)
    assert (tmp_path / "cut" / "rows.jsonl").read_bytes() == (tmp_path / "whole" / "rows.jsonl").read_bytes()
    assert sink.told == [("resume", [0, 1, 2, 3]), *(("log", number) for number in range(4, 9)), ("finish", 0)]


def test_numbers_go_on_at_the_checkpoints_count_where_rows_were_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = RunLog(tmp_path, "i")
    for number in range(3):
        log.log_metrics({"a": number}, step=number)
    (tmp_path / "rows.jsonl").write_bytes((tmp_path / "rows.jsonl").read_bytes().split(b"\n", 1)[1])  # row 0 is gone
    again = RunLog(tmp_path, "i")
    again.resume(5)
    assert "row 3 of the 5" in caplog.text
    again.log_metrics({"a": 5.0}, step=9)
    assert [row.number for row in read_rows(tmp_path / "rows.jsonl")] == [1, 2, 5]
    assert again.count == 6


def test_a_test_row_is_about_the_trained_network(tmp_path: Path) -> None:
    log = RunLog(tmp_path, "i")
    log.log_metrics({"val/a": 1, "epoch": 3}, step=40)
    log.log_metrics({"test/a": 1, "epoch": 0}, step=0)
    log.log_metrics({"b": 1})
    assert [(row.step, list(row.metrics)) for row in read_rows(tmp_path / "rows.jsonl")] == [
        (40, ["val/a", "epoch"]), (40, ["test/a"]), (40, ["b"]),
    ]  # fmt: skip
    log.resume(1)  # nothing was left to train, and the test trainer begins at 0
    log.log_metrics({"test/a": 1, "epoch": 0}, step=0)
    assert [row.step for row in read_rows(tmp_path / "rows.jsonl")] == [40, 40]


def test_only_the_main_process_writes_but_all_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    log = RunLog(tmp_path / "run", "i", [sink := Kept()])
    log.resume(7)
    log.log_metrics({"a": 1}, step=1)
    log.sync()
    log.experiment.add_scalar("a", 1)
    log.finish(0)
    assert log.count == 8
    assert sink.told == []
    assert not (tmp_path / "run").exists()


def test_a_sink_that_fails_is_told_once_and_training_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Kept):
        def log(self, row: Row) -> None:
            super().log(row)
            raise OSError("no space left")

    log = RunLog(tmp_path, "i", [broken := Broken(), sink := Kept()])
    for number in range(3):
        log.log_metrics({"a": number}, step=number)
    log.finish(1)
    assert [what for what, _ in broken.told] == ["resume", "log", "finish"]
    assert [what for what, _ in sink.told] == ["resume", "log", "log", "log", "finish"]
    assert caplog.text.count("no space left") == 1
    assert len(list(read_rows(tmp_path / "rows.jsonl"))) == 3


def test_a_full_disk_leaves_no_torn_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    ledger = Ledger(tmp_path / "rows.jsonl")
    ledger.cut(0)
    ledger.append(Row(0, 0, {"a": 1.0}))
    real, calls = os.write, []

    def half(file: int, data: bytes) -> int:
        calls.append(len(data))
        if len(calls) == 1:
            return real(file, data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(OSError, match="No space"):
        ledger.append(Row(1, 1, {"a": 1.0}))
    monkeypatch.undo()
    ledger.append(Row(1, 1, {"a": 2.0}))
    assert [row.metrics["a"] for row in read_rows(tmp_path / "rows.jsonl")] == [1.0, 2.0]


def test_metrics_csv_is_the_record_as_a_table_after_every_checkpoint(tmp_path: Path) -> None:
    log = start(tmp_path, "csv")
    log.resume(0)
    for number in range(8):
        log.log_metrics(values(number), step=2 * number)
        if number in (4, 7):
            log.sync()
            check_table(tmp_path, number + 1)
    again = start(tmp_path, "csv")
    again.resume(3)
    check_table(tmp_path, 3)
    again.log_metrics({"new": 1}, step=9)
    again.finish(143)
    check_table(tmp_path, 4)


def check_table(run_dir: Path, rows: int) -> None:
    with (run_dir / "metrics.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    ledger = list(read_rows(run_dir / "rows.jsonl"))
    assert len(table) == len(ledger) == rows
    for line, row in zip(table, ledger, strict=True):
        assert (int(line.pop("row")), int(line.pop("step"))) == row[:2]
        found = {name: float(text) for name, text in line.items() if text}
        assert found.keys() == row.metrics.keys()
        assert all(same(found[name], value) for name, value in row.metrics.items())


def test_tensorboard_has_the_rows_of_the_record_and_no_others(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    session(tmp_path, 12, "tensorboard")
    log = start(tmp_path, "tensorboard")
    log.resume(6)
    assert "SummaryWriter" in type(log.experiment).__name__
    for number in range(6, 10):
        log.log_metrics(values(number), step=2 * number)
    log.finish(0)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = {(tag, e.step): e.value for tag in events.Tags()["scalars"] for e in events.Scalars(tag)}
    wanted = {(tag, row.step): v for row in read_rows(tmp_path / "rows.jsonl") for tag, v in row.metrics.items()}
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
    assert max(step for _, step in wanted) == 18
    assert found.keys() == wanted.keys()
    assert all(same(found[key], torch.tensor(value).float().item()) for key, value in wanted.items())
