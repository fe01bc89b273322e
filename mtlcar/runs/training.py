"""The trainer of a run and what it carries."""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from omegaconf import DictConfig, OmegaConf

from mtlcar.build import Parts, callback
from mtlcar.compiled import compile_network
from mtlcar.ema import WeightAverage
from mtlcar.errors import UserError
from mtlcar.finite import StopOnNonFinite
from mtlcar.runs.checkpoint_files import ResumePoint
from mtlcar.runs.checkpoints import Checkpoints, Saved, WholeFiles
from mtlcar.runs.config_differences import network_config
from mtlcar.runs.history import History
from mtlcar.runs.interrupts import INTERRUPTS
from mtlcar.runs.no_memory import explained
from mtlcar.runs.output import signature
from mtlcar.runs.progress import progress
from mtlcar.runs.timing import Timing

log = logging.getLogger("mtlcar")
NOT_TRAINER = ("name", "channels_last", "precision", "compile", "ema")


def precision(cfg: DictConfig) -> str:
    """`auto` is bf16-mixed on a GPU that has it, else 32-true."""
    if cfg.trainer.precision != "auto":
        return str(cfg.trainer.precision)
    gpu = torch.cuda.is_available() and cfg.trainer.accelerator in ("auto", "gpu", "cuda")
    return "bf16-mixed" if gpu and torch.cuda.is_bf16_supported() else "32-true"


def quiet_lightning() -> None:
    """Its hints are for people who write trainers."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Lightning 2.6 asks torch's pytree in a way that torch 2.15 has deprecated; nothing a user could do.
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")


def make_trainer(cfg: DictConfig, callbacks: Sequence[Callback], loggers: list[Any], folder: Path) -> Trainer:
    if cfg.trainer.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(
            "trainer.accelerator asks for a GPU and there is none. Use trainer=cpu or trainer.accelerator=auto."
        )
    options: Any = OmegaConf.to_container(cfg.trainer, resolve=True)
    for key in NOT_TRAINER:
        options.pop(key, None)
    trainer = Trainer(
        **options,
        precision=precision(cfg),  # type: ignore[arg-type]
        callbacks=list(callbacks),
        logger=loggers or False,
        default_root_dir=folder,
        num_sanity_val_steps=0,  # the whole configuration was checked; a first validation costs start-up time
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks),
        enable_progress_bar=any(isinstance(c, ProgressBar) for c in callbacks),
        use_distributed_sampler=False,
        plugins=[WholeFiles()],
    )
    # Its handler of SIGTERM ends a fit without saving, kills the other processes of the job, and waits for them inside
    # the handler. `mtlcar.runs.interrupts` has all signals.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


def user_callbacks(cfg: DictConfig, parts: Parts) -> list[Callback]:
    """What the group `callbacks` asks for; a monitor left open becomes the run's."""
    nodes = [node for node in cfg.callbacks.values() if OmegaConf.is_dict(node)]
    return [callback(node, parts.monitor, parts.mode) for node in nodes]


def fit(
    cfg: DictConfig,
    parts: Parts,
    run_dir: Path,
    loggers: list[Any],
    point: ResumePoint | None = None,
    *,
    run: str = "",
    saved: Saved | None = None,
    further: Sequence[Callback] = (),
) -> tuple[Timing, Checkpoints]:
    """Train to the end, from a checkpoint of this run if there is one. Random numbers start from the seed here, or go
    on from the checkpoint's, whatever was drawn before.

    Args:
        run: what checkpoints are marked with, the run's fingerprint.
        saved: called in the main process with step and epoch when a checkpoint is there.
        further: callbacks before the user's.
    """
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    timing = Timing()
    every = cfg.get("checkpoint") or {}
    checkpoints = Checkpoints(
        run_dir / "checkpoints",
        parts.monitor,
        parts.mode,
        every_minutes=every.get("every_minutes"),
        every_steps=every.get("every_steps"),
        run=run,
        config=network_config(cfg),
        saved=saved,
    )
    if point is not None and point.finished:
        checkpoints.load_state_dict(point.own)
        timing.load_state_dict(point.callbacks["Timing"])
        return timing, checkpoints
    decay = cfg.trainer.get("ema")
    callbacks = [
        StopOnNonFinite(cfg.trainer.log_every_n_steps),
        *([] if decay is None else [WeightAverage(decay)]),
        timing,
        History(run_dir / "history.csv"),
        checkpoints,
        progress(name=signature(run_dir)),
        *further,
        *user_callbacks(cfg, parts),
    ]
    trainer = make_trainer(cfg, callbacks, loggers, run_dir)
    sizes = ", ".join(f"{len(rows)} {name}" for name, rows in parts.data.indices.items())
    log.info("%s: %s images; best checkpoint by %s", run_dir.name, sizes, parts.monitor)
    if cfg.trainer.compile:
        compile_network(parts.module.architecture, Path(cfg.paths.cache), cfg.trainer.compile)
    if cfg.trainer.accumulate_grad_batches > 1 and not parts.module.weighting.constant:
        log.warning(
            "weighting=%s finds new weights for each of the %d micro-batches of a step.",
            parts.module.weighting.name,
            cfg.trainer.accumulate_grad_batches,
        )
    with INTERRUPTS.deferred(), explained(cfg):
        trainer.fit(
            parts.module, datamodule=parts.data, ckpt_path=None if point is None else point.path, weights_only=True
        )
    return timing, checkpoints


def tag_list(cfg: DictConfig) -> list[str]:
    """The names of the chosen parts, for W&B's filters."""
    groups = ("data", "backbone", "architecture", "head", "weighting", "label_transform")
    return [f"{group}:{cfg[group].name}" for group in groups]
