"""The command `mtlcar` as a process, forked from one that has imported everything once. Its jobs are real ones."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.jobs import FAST


def mtlcar(*words: str, expect: int = 0, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """What the command printed; fails if its exit status is not the expected one."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        process = FAST.Process(target=_main, args=(words, str(out), str(err), str(cwd or Path.cwd()), dict(os.environ)))
        process.start()
        process.join()
        done = subprocess.CompletedProcess(words, process.exitcode or 0, out.read_text(), err.read_text())
    assert done.returncode == expect, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def _main(words: Sequence[str], out: str, err: str, cwd: str, environment: dict[str, str]) -> None:
    from mtlcar.cli import main

    for number, name in enumerate((os.devnull, out, err)):
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT)
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = ["mtlcar", *words]
    try:
        code = main(words)
    except SystemExit as stop:  # argparse
        code = stop.code if isinstance(stop.code, int) else 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
