"""What does not fit together: every part is built once without data, on the meta device."""

import copy
import json
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from mtlcar.build import callback, make, predicted_tasks, resolve_monitor
from mtlcar.checks.found import Found
from mtlcar.checks.networks import Networks, network_of
from mtlcar.compiled import refuse_graphs
from mtlcar.config import installed
from mtlcar.errors import UserError, did_you_mean
from mtlcar.losses import TaskLosses
from mtlcar.metrics.tasks import TaskMetrics
from mtlcar.module import refuse_averaging, refuse_impossible
from mtlcar.tasks import TaskSet
from mtlcar.weightings.base import Weighting

_loaded: set[str] = set()
"""Backbones whose weight files have been found to fit, by configuration."""


def check_parts(cfg: DictConfig, tasks: TaskSet, networks: Networks | None = None) -> int:
    """Build everything but the data on the meta device, to find what does not fit before any run starts.

    Args:
        tasks: the dataset's.
        networks: those of other cells of the same sweep.

    Returns:
        The network's number of parameters.

    Raises:
        UserError: everything that `build` would stumble over, at once.
    """
    found = Found()
    weighting: Weighting | None = None
    losses: TaskLosses | None = None
    with found.trying():
        make(cfg.data, cache_dir=Path(cfg.paths.cache), seed=cfg.seed)  # reads nothing yet
    tried = network_of(cfg, tasks, {} if networks is None else networks, alone=bool(found.problems))
    label_transform, architecture = tried.label_transform, tried.architecture
    found.add(tried.problems)
    with torch.device("meta"):
        trained = architecture.tasks if architecture is not None else tried.encoded
        if trained is not None:
            with found.trying():
                weighting = make(cfg.weighting, tasks=trained)
            with found.trying():
                losses = make(cfg.loss, tasks=trained)
        with found.trying():
            network: nn.Module = architecture if architecture is not None else nn.Linear(2, 2)
            optimizer = make(cfg.optimizer, architecture=network, weighting=weighting)
            make(cfg.scheduler, optimizer=optimizer, total_steps=20, steps_per_epoch=5, monitor="val/loss")
    if architecture is not None and losses is not None:
        found.add(tried.forward(losses, cfg.data.image_size))
    if label_transform is not None and architecture is not None:
        predicted = predicted_tasks(tasks, label_transform, architecture.tasks)
        with found.trying():
            resolve_monitor(cfg, predicted, architecture.tasks)
        names = ["val/loss", *(f"val/{t}/loss" for t in architecture.tasks.names)]
        check_callbacks(cfg, [*names, *(f"val/{n}" for n in TaskMetrics.names(predicted))], found)
        with found.trying():
            refuse_averaging(architecture, cfg.get("test_time_augmentation", "none"))
        if weighting is not None:
            with found.trying():
                refuse_impossible(architecture, weighting)
            with found.trying():
                refuse_graphs(cfg.trainer.compile, architecture, weighting, cfg.trainer.accumulate_grad_batches)
    for check in (check_weights, check_strategy, check_logger):
        with found.trying():
            check(cfg)
    found.refuse()
    assert architecture is not None
    return sum(p.numel() for p in architecture.parameters())


def check_weights(cfg: DictConfig) -> None:
    """Read `backbone.weights` into the backbone once; a download is left to the run."""
    if not cfg.backbone.get("weights"):
        return
    key = json.dumps([OmegaConf.to_container(cfg.backbone, resolve=True), cfg.data.image_size], sort_keys=True)
    if key not in _loaded:
        make(copy.deepcopy(cfg.backbone), image_size=cfg.data.image_size)
        _loaded.add(key)


def check_callbacks(cfg: DictConfig, names: list[str], found: Found) -> None:
    """What the group `callbacks` asks for can be built, is a callback, and watches a metric that there is."""
    for name, node in cfg.callbacks.items():
        if not OmegaConf.is_dict(node):
            continue
        with found.trying():
            callback(node, "val/loss", "min")
            watched = node.get("monitor")
            if watched is not None and not str(watched).startswith("train") and watched not in names:
                raise UserError(
                    f"callbacks.{name}.monitor={watched} is no metric of this run.{did_you_mean(watched, names)} "
                    f"There are: {', '.join(names)}. Null: the run's own."
                )


def check_strategy(cfg: DictConfig) -> None:
    from lightning.pytorch.strategies import StrategyRegistry

    known = ["auto", *StrategyRegistry.available_strategies()]
    given = str(cfg.trainer.strategy)
    if given not in known:
        short = [n for n in known if n in ("auto", "ddp", "fsdp") or n.startswith("deepspeed_stage")]
        raise UserError(
            f"trainer.strategy should be one of {', '.join(short)} or another of Lightning's. Found {given!r}."
            f"{did_you_mean(given, known)}"
        )


def check_logger(cfg: DictConfig) -> None:
    """That it is installed, and that W&B can go online where that was asked for."""
    logger = cfg.logger
    wanted = [logger.get("name"), *(logger.get("also") or [])]
    if "tensorboard" in wanted and not installed("tensorboard"):
        raise UserError("logger=tensorboard needs TensorBoard: pip install 'mtlcar[tensorboard]'")
    if logger.get("name") == "wandb" and logger.get("mode") == "online":
        from mtlcar.logs.wandb_mode import choose_mode

        choose_mode("online")
