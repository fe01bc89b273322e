"""One W&B run for life: over kills, offline and online, and through `wandb sync`."""

import itertools
import json
import math
import os
import random
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mtlcar.logs.ledger import read_rows
from mtlcar.logs.wandb_files import (
    ROW,
    ROW_STEP,
    Logged,
    mark_synced,
    mend,
    read_history,
    read_records,
    run_files,
    what_is_logged,
)  # fmt: skip
from mtlcar.logs.wandb_sink import WandbSink, on_the_server
from tests.log_rows import REPO, session, values
from tests.wandb_server import WandbServer, wandb_server

KEY = "f00dfacef00dfacef00dfacef00dfacef00dface"


@pytest.fixture(scope="module")
def server() -> Iterator[WandbServer]:
    with wandb_server() as made:
        yield made


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def run(home: Path, *words: str, **more: str) -> str:
    """Run `python -m WORDS` without a terminal and without this user's W&B settings."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")} | {
        "HOME": str(home),
        "WANDB_DIR": str(home),
        **more,
    }
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=REPO, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def check_history(history: list[dict[str, Any]], rows: int) -> None:
    """W&B has every row once, its own steps going up only, and the values that were logged."""
    steps = [row["_step"] for row in history]
    assert all(a < b for a, b in itertools.pairwise(steps)), steps
    own = [row for row in history if ROW in row]
    assert [row[ROW] for row in own] == list(range(rows))
    assert [row["trainer/global_step"] for row in own] == [2 * row[ROW] for row in own]
    for row in own:
        wanted = values(row[ROW])
        assert row["train/loss"] == pytest.approx(wanted["train/loss"], rel=1e-6)
        odd = wanted.get("val/odd", math.nan)
        assert math.isfinite(odd) is isinstance(row.get("val/odd"), int)


def killed_and_resumed(run_dir: Path, home: Path, rows: int, kills: int, seed: int, **env: str) -> None:
    run(home, "tests.log_rows", str(run_dir), str(rows), "wandb", str(kills), str(seed), **env)
    session(run_dir.parent / "whole", rows, "none")
    assert (run_dir / "rows.jsonl").read_bytes() == (run_dir.parent / "whole" / "rows.jsonl").read_bytes()


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Path:
    run_dir = tmp_path_factory.mktemp("offline") / "run"
    killed_and_resumed(run_dir, home, 400, 3, 0, WANDB_MODE="offline")
    return run_dir


def test_the_offline_files_of_a_killed_run_have_every_row_once(offline: Path) -> None:
    files = run_files(offline)
    assert len(list(offline.glob("wandb/offline-run-*"))) > 1, "the run was killed"
    assert {r.run.run_id for file in files for r in read_records(file) if r.HasField("run")} == {"abc123"}
    check_history([row for file in files for row in read_history(file)], 400)


def test_wandbs_own_reader_agrees(offline: Path, home: Path) -> None:
    file = run_files(offline)[0]  # of a killed session
    printed = run(home, "wandb", "leet", "inspect", "--json", str(file)).splitlines()
    shown = [json.loads(line) for line in printed if '"type":"history"' in line]
    assert [row["history"]["item"]["_step"] for row in shown] == [row["_step"] for row in read_history(file)]


def test_wandb_sync_makes_one_run_of_a_killed_and_resumed_one(offline: Path, home: Path, server: WandbServer) -> None:
    said = run(home, "wandb", "sync", f"{offline}/wandb", WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY)
    assert "ERROR" not in said
    assert list(server.runs) == ["abc123"]
    synced = server.runs["abc123"]
    check_history(synced.history, 400)
    assert (synced.group, synced.name, synced.exit_codes[-1]) == ("g", "n", 0)
    assert all(Path(f"{file}.synced").exists() for file in run_files(offline))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_twelve_kills_change_nothing(tmp_path: Path, home: Path, seed: int) -> None:
    killed_and_resumed(tmp_path / "run", home, 500, 12, seed, WANDB_MODE="offline")
    check_history([row for file in run_files(tmp_path / "run") for row in read_history(file)], 500)


@pytest.mark.slow
@pytest.mark.parametrize("interval", ["0.05", "1"])
def test_an_online_run_goes_on_where_the_servers_answer_says(tmp_path: Path, home: Path, interval: str) -> None:
    with wandb_server() as server:
        online = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
        online["WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL"] = interval
        for seed, rows in enumerate((200, 400, 600)):
            # the middle part is offline, and never synced
            env = {"WANDB_MODE": "offline"} if rows == 400 else online
            killed_and_resumed(tmp_path / "run", home, rows, 5, seed, **env)
            if rows != 400:
                check_history(server.runs["abc123"].history, rows)
        assert list(server.runs) == ["abc123"]
        assert server.runs["abc123"].exit_codes[-1] == 0
        offline = (tmp_path / "run").glob("wandb/offline-run-*/*.wandb")
        assert all(Path(f"{file}.synced").exists() for file in offline), "its rows have gone to the server"


class FakeRun:
    """A W&B run that the server has, up to W&B step 8."""

    resumed, starting_step, step = True, 9, 9

    def __init__(self, summary: dict[str, Any]) -> None:
        self.summary, self.calls = summary, []

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **options: self.calls.append((name, args, options))


@pytest.mark.parametrize(
    ("summary", "rows"),
    [
        ({}, 0),
        ({ROW: 8, ROW_STEP: 8}, 9),
        ({ROW: 5, ROW_STEP: 7}, 6),  # a figure at 8
        ({ROW: 7, ROW_STEP: 9}, 7),  # the summary came, the row did not
    ],
)
def test_what_the_server_has_is_told_by_its_summary_and_its_step(summary: dict[str, int], rows: int) -> None:
    assert on_the_server(FakeRun(summary)).rows == rows
    new = FakeRun(summary)
    new.resumed = False  # type: ignore[misc]
    assert on_the_server(new) == Logged()


@pytest.mark.parametrize(("code", "preempted"), [(0, False), (1, False), (130, True), (143, True)])
def test_wandb_shows_how_a_run_ended(tmp_path: Path, code: int, preempted: bool) -> None:
    sink = WandbSink(tmp_path, "i", "online")
    sink.experiment = fake = FakeRun({})
    sink.finish(code)
    assert fake.calls[-1] == ("finish", (), {"exit_code": code})
    assert ("mark_preempting" in [name for name, *_ in fake.calls]) is preempted


def test_a_figure_is_shown_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.setattr(wandb, "Image", str)
    sink = WandbSink(tmp_path, "i", "online")
    sink.experiment, sink.logged = (fake := FakeRun({})), Logged(keys={"figures/a"})
    sink.log_figures([tmp_path / "a.png", tmp_path / "b.png"])
    assert [args for _, args, _ in fake.calls] == [({"figures/b": str(tmp_path / "b.png")},)]


def test_a_torn_file_reads_as_far_as_it_goes_and_mends(offline: Path, tmp_path: Path) -> None:
    whole = max(run_files(offline), key=lambda file: file.stat().st_size)
    content, history = whole.read_bytes(), list(read_history(whole))
    torn = tmp_path / "wandb" / "offline-run-1-i" / "run-i.wandb"
    torn.parent.mkdir(parents=True)
    for cut in sorted(random.Random(0).sample(range(2000, len(content)), 12)):
        torn.write_bytes(content[:cut] + bytes(cut % 3 * 40))  # a power cut may leave zeros
        found = list(read_history(torn))
        assert found == history[: len(found)]
        (mended,) = mend([torn])
        assert list(read_history(mended)) == found
        assert content.startswith(mended.read_bytes())
    assert len(found) > 0
    assert what_is_logged([torn]).rows == max(row.get(ROW, -1) for row in found) + 1
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    torn.write_bytes(flipped)
    assert 0 < len(list(read_history(torn))) < len(history)


@pytest.mark.parametrize("content", [b"", b":W&B\xe1\xbe\x00", b":W&B\xe1\xbe\x00" + struct.pack("<IHB", 1, 9, 1)])
def test_a_file_with_nothing_in_it_is_put_aside(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "wandb" / "offline-run-1-i" / "run-i.wandb"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    assert run_files(tmp_path, "i") == [file]
    assert mend([file]) == []
    assert not list(file.parent.glob("*.wandb")), "`wandb sync` would refuse all files for it"
    other = file.with_name("run-i.wandb")
    other.write_bytes(b":W&C\xe1\xbe\x01 of a later version")
    assert mend([other]) == [other]
    assert b"later" in other.read_bytes()


def test_only_offline_files_are_marked_as_synced(tmp_path: Path) -> None:
    files = [tmp_path / folder / "run-i.wandb" for folder in ("offline-run-1-i", "run-2-i")]
    for file in files:
        file.parent.mkdir()
        file.touch()
    mark_synced(files)
    assert [Path(f"{file}.synced").exists() for file in files] == [True, False]


def test_a_killed_jobs_wandb_process_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mtlcar.logs.wandb_files as module

    file = tmp_path / "run-i.wandb"
    file.touch()
    code = f"import time; file = open({str(file)!r}, 'wb'); print(flush=True); time.sleep(60)"
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert writer.stdout
    writer.stdout.readline()
    try:
        assert module._open_somewhere([file])
        monkeypatch.setattr(module.time, "sleep", lambda seconds: writer.send_signal(signal.SIGKILL))
        module.wait_for_writers([file])
        assert writer.wait(10) == -signal.SIGKILL
        assert not module._open_somewhere([file])
    finally:
        writer.kill()
        writer.communicate()


def test_the_files_module_prints_the_rows_of_a_run(offline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mtlcar.logs.wandb_files import main

    assert main([str(offline)]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sum(ROW in row for row in printed) == len(list(read_rows(offline / "rows.jsonl"))) == 400
