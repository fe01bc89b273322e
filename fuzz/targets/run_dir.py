"""One file of a run directory, of any bytes; the first byte says which. Then the commands that read runs."""

import atexit
import contextlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from mtlcar.errors import UserError
from mtlcar.listing import diffing, listing, showing
from mtlcar.logs.ledger import Ledger, read_rows
from mtlcar.report.collect import collect
from mtlcar.runs.history import read_history
from mtlcar.runs.predictions import read_predictions
from mtlcar.runs.status import Status
from mtlcar.runs.trust import load_config, refuse_foreign
from mtlcar.sweeps.outcomes import Journal, overrides_in
from mtlcar.sweeps.record import fingerprints, read_record
from tests.run_dirs import config, write_run

INSTRUMENT = ("mtlcar.listing", "mtlcar.report.collect", "mtlcar.runs", "mtlcar.sweeps", "mtlcar.tasks", "mtlcar.logs")
NAMES = ("config.yaml", "status.json", "metrics.json", "tasks.json", "digests.json", "rows.jsonl", "history.csv",
         "overrides.txt", "train.log", "predictions.parquet", ".owner", "../sweep-01234567.json",
         "../sweep-01234567.jsonl")  # fmt: skip
ROOT = Path(tempfile.mkdtemp(prefix=f"fuzz-run-{os.getpid()}-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
atexit.register(shutil.rmtree, ROOT, ignore_errors=True)
RECORD = (
    b'{"folder": "/x", "overrides": ["seed=0,1"], "cwd": "/", "threads": 1, "cells": [{"fingerprint": "000000000000", '
    b'"overrides": ["seed=0"], "name": "a"}], "first_started": "x", "last_started": "y", "schema": 1}'
)
JOURNAL = (
    b'{"call": "c", "when": "x", "event": "ended", "cell": "000000000000", "directory": "/x", "overrides": ["a=1"], '
    b'"state": "finished", "exit": 0, "value": 0.5}\n'
)


def prepared() -> tuple[Path, dict[str, bytes]]:
    """Two runs, and what the files of the first should hold."""
    run = write_run(ROOT / "s", config("parallel"), 0.7)
    write_run(ROOT / "s", config("cascade"), 0.6)
    Status(run).end("finished")
    (run / "digests.json").write_text('{"annotations": "0123456789abcdef"}')
    (run / "rows.jsonl").write_text('{"row": 0, "step": 2, "metrics": {"train/loss": 0.5, "val/x": "nan"}}\n')
    (run / "overrides.txt").write_text("seed=0\n")
    (run / "train.log").write_text("2026-01-01 00:00:00 INFO mtlcar begun\n")
    (run / ".owner").write_text('{"pid": 1, "host": "h", "machine": "m", "started": "x", "beat": 1}')
    (run / "../sweep-01234567.json").write_bytes(RECORD)
    (run / "../sweep-01234567.jsonl").write_bytes(JOURNAL)
    return run, {name: (run / name).read_bytes() for name in NAMES}


RUN, GOOD = prepared()
(RUN / ".owner").unlink()


def try_one(data: bytes) -> None:
    if not data:
        return
    name = NAMES[data[0] % len(NAMES)]
    (RUN / name).write_bytes(data[1:])
    try:
        read_all()
    finally:
        (RUN / name).write_bytes(GOOD[name])
        (RUN / ".owner").unlink(missing_ok=True)
        shutil.rmtree(ROOT / "out", ignore_errors=True)


def read_all() -> None:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for work in (
            lambda: listing.command([str(ROOT)], sort=None, state=None, as_json=False, markdown=False),
            lambda: showing.command(str(RUN), runs=str(ROOT), as_json=False),
            lambda: diffing.command(
                [str(RUN), str(RUN.with_name("000000000001"))], runs=str(ROOT), as_json=True, markdown=False
            ),
            reported,
            lambda: refuse_foreign(load_config(RUN), RUN),
            lambda: read_predictions(RUN / "predictions.parquet"),
            lambda: read_history(RUN / "history.csv"),
            lambda: Status(RUN),
            lambda: overrides_in(RUN),
            lambda: Journal(RUN / "../sweep-01234567.jsonl", "c").read(),
            lambda: read_record(RUN / "../sweep-01234567.json"),
            lambda: fingerprints(RUN / "../sweep-01234567.json"),
            ledger,
        ):
            with contextlib.suppress(UserError):
                work()


def reported() -> None:
    for run in collect([ROOT]).runs:
        _ = run.test, run.implied, run.digests, run.fingerprint, run.groups, run.predictions, run.history


def ledger() -> None:
    rows = list(read_rows(RUN / "rows.jsonl"))
    book = Ledger(RUN / "rows.jsonl")
    book.cut(1)
    book.close()
    assert len(rows) >= len(list(read_rows(RUN / "rows.jsonl")))


def seeds() -> Iterable[bytes]:
    for number, name in enumerate(NAMES):
        yield bytes([number]) + GOOD[name]
