"""Passwords and keys stay out of files, logs and tables."""

import json
from pathlib import Path
from typing import Any

import pytest

from mtlcar.logs import loggers
from mtlcar.runs.secrets import masked, without_password
from mtlcar.sweeps.record import make_record, read_record
from tests.jobs import copy_run, finish, said, write_run

KEY = "f00dfacef00dfacef00dfacef00dfacef00dface"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:secret@host:5432/db", "postgresql://me:***@host:5432/db"),
        ("redis://:secret@host", "redis://:***@host"),
        ("mysql+pymysql://me:sec/ret@host/db?x=1", "mysql+pymysql://me:***@host/db?x=1"),
        ("https://host/db?user=me&password=secret&x=1", "https://host/db?user=me&password=***&x=1"),
        ("https://host?api_key=secret", "https://host?api_key=***"),
        ("a='http://u:secret@h' b='http://v:secret@h'", "a='http://u:***@h' b='http://v:***@h'"),
        ("sqlite:///a:b", "sqlite:///a:b"),
        ("https://host:8080/path", "https://host:8080/path"),
        ("no url: me@host", "no url: me@host"),
    ],
)
def test_a_password_in_a_url_is_masked(text: str, shown: str) -> None:
    assert without_password(text) == shown
    assert masked({"a": [text, 1, None], "b": {"c": text}}) == {"a": [shown, 1, None], "b": {"c": shown}}


def test_the_record_of_a_sweep_keeps_no_password(tmp_path: Path) -> None:
    typed = ["hydra/sweeper=optuna", "hydra.sweeper.storage='postgresql://me:secret@host/db'"]
    record = make_record(typed, tmp_path, [], 1)
    record.write(tmp_path)
    (file,) = tmp_path.glob("sweep-*.json")
    assert "secret" not in file.read_text()
    assert "me:***@host" in json.loads(file.read_text())["overrides"][1]
    other = make_record([typed[0], typed[1].replace("secret", "newer")], tmp_path, [], 1)
    assert other.name == record.name, "a changed password is no other command"
    assert read_record(file).overrides == record.overrides


def test_wandb_is_told_no_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    class Sink:
        def __init__(self, *args: Any, **options: Any) -> None:
            given.update(options)

        def start(self) -> None: ...

    monkeypatch.setattr(loggers, "WandbSink", Sink)
    monkeypatch.setattr(loggers, "choose_mode", lambda mode: "offline")
    config = {"logger": {"notes": "see https://me:secret@host/x"}, "seed": 1}
    loggers.wandb_logger(tmp_path, "n", "i", "g", "train", config)
    assert given["config"] == {"logger": {"notes": "see https://me:***@host/x"}, "seed": 1}


def test_a_run_that_fails_leaves_the_environment_out_of_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of the traceback in train.log."""
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    run = write_run(tmp_path, "trainer.max_epochs=1")
    directory = copy_run(run, tmp_path / "run")
    assert finish(directory, break_all) == 1
    assert "ZeroDivisionError" in said(directory)
    assert "Traceback" in (directory / "train.log").read_text()
    files = [path for path in (*directory.rglob("*"), tmp_path / "run.out") if path.is_file()]
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def break_all() -> None:
    import os

    from mtlcar.losses import TaskLosses

    os.environ["WANDB_API_KEY"] = KEY

    def forward(*args: Any, **options: Any) -> Any:
        raise ZeroDivisionError("in the step")

    TaskLosses.forward = forward  # type: ignore[method-assign]
