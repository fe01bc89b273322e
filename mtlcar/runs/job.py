"""One run, in its own process: `python -m mtlcar.runs.job RUN_DIR`.

Reads `config.yaml` of the run directory and needs nothing else, so every launcher, a restart and Lightning's DDP
can run the same command. A run that was stopped or killed goes on from its newest good checkpoint.

Exit status: 0 finished, 2 the user can repair it, 1 anything else, 75 another process works in this run directory,
128 + signal stopped (130 Ctrl-C, 143 SIGTERM).
"""

import contextlib
import logging
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from mtlcar.errors import UserError
from mtlcar.runs.files import clear_leftovers, read_json, write_text
from mtlcar.runs.interrupts import INTERRUPTS, Stopped, die_with_parent
from mtlcar.runs.lease import gpus_wanted, lease
from mtlcar.runs.lock import Busy, run_lock
from mtlcar.runs.output import lasting_output
from mtlcar.runs.ranks import is_main_process, started_by_lightning
from mtlcar.runs.status import Status

log = logging.getLogger("mtlcar")
BUSY = 75  # EX_TEMPFAIL of sysexits.h
LAST_WORDS = 60.0
"""Seconds that the first process of a job has to write why it ended, when another one failed."""


def main(run_dir: Path, *, show_traceback: bool = False) -> int:
    if not (run_dir / "config.yaml").is_file():
        print(f"mtlcar: error: {run_dir} is no run directory (no config.yaml in it).", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[console_handler()])
    try:
        INTERRUPTS.install()
        die_with_parent()
        with prepared(run_dir) as cfg:
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


@contextlib.contextmanager
def prepared(run_dir: Path) -> Iterator[DictConfig]:
    """The run's configuration, while the directory and its log are this process's."""
    with contextlib.ExitStack() as held:
        held.enter_context(run_lock(run_dir))
        if is_main_process():
            clear_leftovers(run_dir)
        cfg = OmegaConf.load(run_dir / "config.yaml")
        assert isinstance(cfg, DictConfig)
        to_file = logging.FileHandler(run_dir / "train.log", encoding="utf-8")
        to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
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


def console_handler() -> logging.Handler:
    """Rich on a terminal; plain lines elsewhere, where its wrapping at 80 columns would only hurt."""
    handler: logging.Handler = logging.StreamHandler()
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.logging import RichHandler

        handler = RichHandler(console=Console(stderr=True), show_path=False, show_level=False)
    handler.setLevel(logging.INFO)
    return handler


def run(run_dir: Path, cfg: DictConfig, status: Status | None = None) -> None:
    """Fit, test the best checkpoint, write metrics, predictions and figures, then DONE."""
    import lightning
    import torch

    from mtlcar.build import build, check_parts, make
    from mtlcar.logs.loggers import finish, update_config
    from mtlcar.runs.checkpoint_files import resume_point
    from mtlcar.runs.fingerprint import as_given, fingerprint, refuse_other_content
    from mtlcar.runs.history import log_row
    from mtlcar.runs.memory import keep_freed_memory
    from mtlcar.runs.names import run_name, wandb_id
    from mtlcar.runs.results import metrics_json, score, write_results
    from mtlcar.runs.search import keep_constants, search
    from mtlcar.runs.training import fit, quiet_lightning, tag_list
    from mtlcar.tasks import TaskSet

    quiet_lightning()
    check_parts(cfg, TaskSet.from_dict(read_json(run_dir / "tasks.json")))  # before anything is decoded
    torch.set_num_threads(cfg.threads)
    keep_freed_memory()
    # Deterministic mode would fill every new tensor with NaN, which finds bugs of kernels and costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    parts = build(cfg)
    refuse_other_content(run_dir, cfg, parts.data.annotations.digest())
    mark = fingerprint(as_given(cfg), read_json(run_dir / "digests.json"))
    point, passed_over = resume_point(run_dir / "checkpoints", repair=is_main_process())
    if point is not None and point.own["run"] != mark:
        raise UserError(
            f"{point.path} is of another configuration or version of mtlcar (run {point.own['run']}, this is {mark}). "
            f"Train it as a new run, or remove {point.path.parent} to begin this one again."
        )
    for words in passed_over:
        log.warning("%s.", words)
    loggers = make(
        cfg.logger,
        run_dir=run_dir,
        run_name=run_name(cfg),
        run_id=wandb_id(cfg, run_dir),
        group=str(cfg.sweep),
        job_type="train",
        config=OmegaConf.to_container(cfg, resolve=True),
        tags=tag_list(cfg),
    )
    code = 1
    try:
        searched = search(cfg, parts, run_dir)
        keep_constants(cfg, parts, run_dir, write=is_main_process())
        update_config(loggers, {"label_transform": OmegaConf.to_container(cfg.label_transform, resolve=True)})
        for logger in loggers:
            logger.resume(0 if point is None else point.own["rows"])
        if status is not None and point is not None:
            status.write(resumed_step=point.step, step=point.step, epoch=point.epoch)
            log.info("going on after step %d (epoch %d) from %s", point.step, point.epoch + 1, point.path.name)
        saved = None if status is None else status.saved
        timing, checkpoints = fit(cfg, parts, run_dir, loggers, point, run=mark, saved=saved)
        timing.search_seconds = searched
        values, predictions, tables = score(cfg, parts, run_dir / "checkpoints" / "best.ckpt")
        log_row(loggers, values, checkpoints.steps)
        rows = predictions.rows()  # a collective: every process of a job takes part
        if is_main_process():
            result = metrics_json(parts, run_dir, timing, checkpoints, values, tables, loggers, rows)
            write_results(run_dir, parts, result, rows, loggers)
        code = 0
    except Stopped as stop:
        code = stop.status
        raise
    finally:
        finish(loggers, code)
    if is_main_process():
        write_text(run_dir / "DONE", "")


if __name__ == "__main__":
    with lasting_output():
        sys.exit(main(Path(sys.argv[1]), show_traceback="--traceback" in sys.argv[2:]))
