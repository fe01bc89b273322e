"""What a job does once the directory, its log and its GPUs are its own: fit, test, write what was found."""

import logging
from pathlib import Path

import lightning
import torch
from omegaconf import DictConfig, OmegaConf

from mtlcar.build import build, make
from mtlcar.checks import machine
from mtlcar.checks.found import Found
from mtlcar.checks.parts import check_parts
from mtlcar.errors import UserError
from mtlcar.logs.loggers import finish, update_config
from mtlcar.runs.checkpoint_files import resume_point
from mtlcar.runs.config_differences import config_in, differences, network_config
from mtlcar.runs.files import read_json, write_text
from mtlcar.runs.fingerprint import as_given, fingerprint, refuse_other_content
from mtlcar.runs.history import log_row
from mtlcar.runs.interrupts import Stopped
from mtlcar.runs.memory import keep_freed_memory
from mtlcar.runs.names import run_name, wandb_id
from mtlcar.runs.ranks import is_main_process
from mtlcar.runs.results import metrics_json, score, write_results
from mtlcar.runs.search import keep_constants, search
from mtlcar.runs.status import Status
from mtlcar.runs.timing import FirstStep
from mtlcar.runs.training import fit, quiet_lightning, tag_list
from mtlcar.tasks import TaskSet

log = logging.getLogger("mtlcar")


def run(run_dir: Path, cfg: DictConfig, status: Status | None = None) -> None:
    """Fit, test the best checkpoint, write metrics, predictions and figures, then DONE."""
    quiet_lightning()
    check_here(cfg, TaskSet.from_dict(read_json(run_dir / "tasks.json")), begun=(run_dir / "checkpoints").exists())
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
        keys = differences(config_in({"callbacks": point.callbacks}), network_config(cfg))
        raise UserError(
            f"{point.path} is of another configuration or version of mtlcar (run {point.own['run']}, this is {mark}). "
            + "".join(f"\n  {line}" for line in keys)
            + f"\nTrain it as a new run, or remove {point.path.parent} to begin this one again."
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
        if is_main_process():
            parts.data.write_left_out(run_dir)
        update_config(loggers, {"label_transform": OmegaConf.to_container(cfg.label_transform, resolve=True)})
        for logger in loggers:
            logger.resume(0 if point is None else point.own["rows"])
        if status is not None and point is not None:
            status.write(resumed_step=point.step, step=point.step, epoch=point.epoch)
            log.info("going on after step %d (epoch %d) from %s", point.step, point.epoch + 1, point.path.name)
        if status is not None and status.earlier_error:
            log.warning("The session before this one failed: %s", status.earlier_error)
        saved, further = (None, []) if status is None else (status.saved, [FirstStep(status.stepped)])
        timing, checkpoints = fit(cfg, parts, run_dir, loggers, point, run=mark, saved=saved, further=further)
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


def check_here(cfg: DictConfig, tasks: TaskSet, *, begun: bool) -> None:
    """What only the job's own machine can tell, and whether all parts fit, before anything is decoded.

    Args:
        begun: there are checkpoints already.
    """
    found = Found(machine.devices(cfg))
    with found.trying():
        parameters = check_parts(cfg, tasks)
        found.add(machine.disk(cfg, checkpoints=0 if begun else parameters))
    found.refuse()
