"""One run, in its own process: `python -m mtlcar.runs.job RUN_DIR`.

Reads `config.yaml` of the run directory and needs nothing else, so every launcher, a restart and Lightning's DDP
can run the same command. A run that was stopped or killed goes on from its newest good checkpoint.

`--await` in place of the directory waits for it on stdin (`awaited`).

Exit status: 0 finished, 2 the user can repair it, 1 anything else (a loss that is not finite, a disk or a memory that
is full; what was saved stays, and the same command goes on from it), 75 another process works in this run directory,
128 + signal stopped (130 Ctrl-C, 143 SIGTERM).
"""

import contextlib
import importlib
import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from mtlcar.errors import UserError
from mtlcar.runs.files import clear_leftovers
from mtlcar.runs.interrupts import INTERRUPTS, Stopped, die_with_parent
from mtlcar.runs.lease import gpus_wanted, lease
from mtlcar.runs.lock import Busy, run_lock
from mtlcar.runs.output import BESIDE, Signed, lasting_output, signature
from mtlcar.runs.ranks import is_main_process, started_by_lightning
from mtlcar.runs.status import Status
from mtlcar.runs.trust import TRUSTED, load_config, refuse_code, refuse_foreign

log = logging.getLogger("mtlcar")
BUSY = 75  # EX_TEMPFAIL of sysexits.h
LAST_WORDS = 60.0
"""Seconds that the first process of a job has to write why it ended, when another one failed."""


def main(run_dir: Path, *, show_traceback: bool = False, trusted: bool = False) -> int:
    """`trusted`: the configuration was typed by whoever started this, so it may call any code."""
    if not (run_dir / "config.yaml").is_file():
        print(f"mtlcar: error: {run_dir} is no run directory (no config.yaml in it).", file=sys.stderr)
        return 2
    try:
        begin()
        with prepared(run_dir, trusted=trusted) as cfg:
            if is_main_process() and (run_dir / "DONE").is_file():  # another process finished it meanwhile
                log.info("finished already: %s", run_dir)
                return 0
            life(run_dir, cfg)
    except Stopped as stop:
        saved = "It saved itself and" if stop.saved else "What it had saved before stays; it"
        if started_by_lightning():  # whose observer would kill the first process, which may still be writing
            return 0
        if is_main_process():
            log.error(
                "Stopped by %s. %s goes on with the same command, or with: mtlcar resume %s", stop, saved, run_dir
            )
        return stop.status
    except Busy as error:
        print(f"mtlcar: {error}", file=sys.stderr)
        return BUSY
    except Exception as error:
        user = isinstance(error, UserError)
        log.debug("%s", traceback.format_exc())  # into train.log
        print(f"mtlcar: error: {error if user else f'{type(error).__name__}: {error}'}", file=sys.stderr)
        if show_traceback:
            traceback.print_exc()
        elif not user:
            print(f"The whole story is in {run_dir / 'train.log'}", file=sys.stderr)
        if started_by_lightning():
            time.sleep(LAST_WORDS)  # the same; this process ends with the first one, if that has failed too
        return 2 if user else 1
    return 0


def begin() -> None:
    """What a job has from its first moment on: a log on the terminal, and signals that are asked to wait."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[console_handler()])
    INTERRUPTS.install()
    die_with_parent()


@contextlib.contextmanager
def prepared(run_dir: Path, *, trusted: bool = False) -> Iterator[DictConfig]:
    """The run's configuration, while the directory and its log are this process's.

    Raises:
        UserError: it would call code from outside (`mtlcar.runs.trust`) and is not `trusted`.
    """
    with contextlib.ExitStack() as held:
        held.enter_context(run_lock(run_dir))
        if is_main_process():
            clear_leftovers(run_dir)
        cfg = load_config(run_dir)
        if not trusted:
            refuse_foreign(cfg, run_dir)
        refuse_code(cfg, run_dir)
        to_file = LogFile(run_dir / "train.log", encoding="utf-8")
        to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
        sign(run_dir)
        logging.getLogger().addHandler(to_file)
        logging.getLogger("mtlcar").setLevel(logging.DEBUG)
        yield cfg


def life(run_dir: Path, cfg: DictConfig) -> None:
    """`run` on leased GPUs, with its beginning and its end in status.json."""
    leased = lease(gpus_wanted(cfg.trainer.accelerator, cfg.trainer.devices), cfg.get("jobs_per_gpu", 1))
    if not is_main_process():
        with leased:
            run(run_dir, cfg)
        return
    status = Status(run_dir)
    status.write()
    try:
        with leased:
            run(run_dir, cfg, status)
    except Stopped:
        status.end("interrupted")
        raise
    except BaseException as error:
        words = str(error).strip().splitlines()
        status.end("failed", f"{type(error).__name__}: {words[0] if words else ''}")
        raise
    status.end("finished")


class LogFile(logging.FileHandler):
    """A disk that is full costs lines of the log, and nobody a traceback for each of them."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Nothing: what else the run writes says that the disk is full."""


def console_handler() -> logging.Handler:
    """Rich on a terminal; plain lines elsewhere, where its wrapping at 80 columns would only hurt."""
    handler: logging.Handler = logging.StreamHandler()
    if sys.stderr.isatty() and BESIDE not in os.environ:
        from rich.console import Console
        from rich.logging import RichHandler

        handler = RichHandler(console=Console(stderr=True), show_path=False, show_level=False)
    handler.setLevel(logging.INFO)
    return handler


def sign(run_dir: Path) -> None:
    """From here on the lines on the console say which run's they are, if other runs print there too."""
    if name := signature(run_dir):
        for handler in logging.getLogger().handlers:
            if type(handler) is logging.StreamHandler:
                handler.setFormatter(Signed(name))


def run(run_dir: Path, cfg: DictConfig, status: Status | None = None) -> None:
    """What takes the imports: after the lease."""
    from mtlcar.runs.run import run as carry_out

    carry_out(run_dir, cfg, status)


def start(words: list[str]) -> int:
    """Exit status of the command."""
    if not words:
        print("mtlcar: error: which run? python -m mtlcar.runs.job RUN_DIR", file=sys.stderr)
        return 2
    if words == ["--await"]:
        try:
            begin()
            words = awaited()
        except Stopped as stop:
            return stop.status
        if not words:
            return 0
    return main(Path(words[0]), show_traceback="--traceback" in words[1:], trusted=TRUSTED in words[1:])


def awaited() -> list[str]:
    """The words of a job that was started before it was known which run it would do: they come as a line of JSON on
    stdin, while everything that takes long to import is imported. No words: the parent has ended, or needs no job.

    Nothing of this touches CUDA: the GPUs are leased afterwards.
    """
    try:
        importlib.import_module("mtlcar.runs.run")
    except Exception as error:  # `main` will come to it again, and say it with the run's other words
        log.debug("%s", error)
    words = json.loads(sys.stdin.readline() or "[]")
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    sys.argv[1:] = words  # Lightning starts a job's further processes with these
    return list(words)


if __name__ == "__main__":
    with lasting_output():
        sys.exit(start(sys.argv[1:]))
