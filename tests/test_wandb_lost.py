"""A W&B server that goes away in the middle of a run costs nothing but some seconds at its end."""

import os
import subprocess
import sys
import time
from pathlib import Path

import matplotlib
import pytest

from mtlcar.logs.ledger import read_rows
from mtlcar.logs.wandb_files import ROW, read_history, run_files
from tests.wandb_server import wandb_server

RUN = """
import logging, sys, time
from pathlib import Path
from mtlcar.logs import wandb_sink
from mtlcar.logs.run_log import RunLog

logging.basicConfig(level=logging.INFO, format="%(message)s")
wandb_sink.FINISH_SECONDS = 4
folder = Path(sys.argv[1])
sink = wandb_sink.WandbSink(folder, "abc123", "online", project="p", name="n")
sink.start()
log = RunLog(folder, "abc123", [sink])
for step in range(10):
    log.log_metrics({"loss": step}, step)
(folder / "half").touch()
while not (folder / "gone").exists():
    time.sleep(0.02)
began = time.monotonic()
for step in range(10, 20):
    log.log_metrics({"loss": step}, step)
print("logged in", time.monotonic() - began)
log.finish(0)
"""


@pytest.mark.slow
def test_a_server_that_goes_away_leaves_all_rows_on_the_disk_and_says_how_to_upload_them(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with wandb_server() as server:
        env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")}
        env |= {
            "HOME": str(tmp_path),
            "MPLCONFIGDIR": matplotlib.get_configdir(),
            "WANDB_BASE_URL": server.url,
            "WANDB_API_KEY": "f00dface" * 5,
        }
        with subprocess.Popen(
            [sys.executable, "-c", RUN, str(folder)], env=env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as process:  # fmt: skip
            until = time.monotonic() + 100
            while not (folder / "half").exists():
                assert process.poll() is None
                assert time.monotonic() < until
                time.sleep(0.02)
            server.closed = True
            (folder / "gone").touch()
            said = process.communicate(timeout=100)[0]
    assert process.returncode == 0, said
    assert float(said.split("logged in ")[1].split()[0]) < 2, "training does not wait for it"
    assert said.count("wandb sync") >= 1
    assert f"upload it later with `wandb sync {folder}/wandb/run-" in said
    assert [row.number for row in read_rows(folder / "rows.jsonl")] == list(range(20))
    (file,) = run_files(folder)
    assert [row[ROW] for row in read_history(file) if ROW in row] == list(range(20))
    assert "f00dface" not in said
    assert not any(b"f00dface" in path.read_bytes() for path in folder.rglob("*") if path.is_file())
