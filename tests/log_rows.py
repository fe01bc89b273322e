"""A stand-in for a run: logs numbered rows, keeps a checkpoint, and may be killed at any moment.

`python -m tests.log_rows RUN_DIR ROWS LOGGER KILLS SEED` imports once and forks a fresh process for every session:
the first KILLS are killed (SIGKILL) at random moments, the last runs to the end.
"""

import json
import math
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import OmegaConf

from mtlcar.logs.loggers import finish
from mtlcar.runs.files import read_json, write_json

REPO = Path(__file__).parents[1]
EVERY = 17
"""Rows from checkpoint to checkpoint."""


def values(number: int) -> dict[str, float]:
    """The metrics of a row: the same whenever it is asked."""
    odd = {3: math.nan, 4: math.inf, 5: -math.inf}.get(number % 50, number)
    return {
        "train/loss": random.Random(number).random(),
        **({"val/odd": odd} if number % 5 else {"epoch": number // 5}),
    }


def start(run_dir: Path, logger: str, **changes: Any) -> Any:
    node = OmegaConf.merge(OmegaConf.load(REPO / "conf" / "logger" / f"{logger}.yaml"), changes)
    (log,) = instantiate(node, _partial_=True)(
        run_dir=run_dir, run_name="n", run_id="abc123", group="g", job_type="train", config={"seed": 0}, tags=["a"]
    )
    return log


def session(run_dir: Path, rows: int, logger: str, pause: float = 0.0, **changes: Any) -> None:
    """Log rows up to `rows`, from the last checkpoint on, and end as a finished job."""
    log, kept = start(run_dir, logger, **changes), run_dir / "checkpoint.json"
    log.resume(read_json(kept) if kept.exists() else 0)
    (run_dir / f"begun-{os.getpid()}").write_text(str(log.count))
    for number in range(log.count, rows):
        log.log_metrics(values(number), step=2 * number)
        if number % 40 == 7 and logger == "wandb":
            log.experiment.log({"mine/direct": number})  # as a user's callback may
        if log.count % EVERY == 0:
            log.sync()
            write_json(kept, log.count)
        time.sleep(pause)
    finish([log], 0)


def kill(child: int, run_dir: Path, chance: random.Random) -> bool:
    """Kill `child` at a random moment: while it starts, or after some rows, W&B's process with it or not.

    Returns:
        Whether it was still alive.
    """
    begun = run_dir / f"begun-{child}"
    end, rows = (time.monotonic() + chance.random(), 0) if chance.random() < 0.25 else (math.inf, chance.randrange(150))
    while time.monotonic() < end and not (begun.exists() and lines(run_dir) >= int(begun.read_text() or 999) + rows):
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(0.002)
    if chance.random() < 0.3:  # a power cut
        for core in wandb_processes(child):
            os.kill(core, signal.SIGKILL)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def lines(run_dir: Path) -> int:
    return (run_dir / "rows.jsonl").read_bytes().count(b"\n")


def wandb_processes(job: int) -> list[int]:
    """W&B's own processes of the process `job`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_text().split("\0")
        except OSError:
            continue
        if "--pid" in words and words[words.index("--pid") + 1] == str(job):
            found.append(int(folder.name))
    return found


def main(run_dir: Path, rows: int, logger: str, kills: int, seed: int) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    chance, dead = random.Random(seed), []
    for number in range(kills + 1):
        child = os.fork()
        if not child:
            session(run_dir, rows, logger, 0.002)
            os._exit(0)
        if number < kills:
            dead.append(kill(child, run_dir, chance))
        else:
            assert os.waitpid(child, 0)[1] == 0
    print(json.dumps(dead))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
