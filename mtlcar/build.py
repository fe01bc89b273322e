"""From a composed configuration to live parts. Nothing here knows a method's name; `_target_` does."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch import Callback
from omegaconf import DictConfig, OmegaConf

from mtlcar.architectures.base import Architecture
from mtlcar.backbones.base import BackboneFactory
from mtlcar.data.datamodule import MultiTaskData
from mtlcar.errors import UserError, did_you_mean
from mtlcar.heads.base import HeadFactory, SameKind
from mtlcar.heads.per_task import PerTask
from mtlcar.label_transforms.base import LabelTransform
from mtlcar.metrics.direction import lower_is_better
from mtlcar.metrics.tasks import TaskMetrics
from mtlcar.module import MultiTaskModule
from mtlcar.tasks import TaskSet

FAULTS = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RuntimeError, InstantiationException)
"""What constructors raise for values that they cannot take. `NotImplementedError` is a RuntimeError too."""


def factory(node: DictConfig) -> Callable[..., Any]:
    """What `node` names, with its keys bound; called with live objects, which so go past OmegaConf untouched.

    Raises:
        UserError: there is nothing of that name.
    """
    try:
        return partial(instantiate(node, _partial_=True, _convert_="all"))
    except FAULTS as error:
        raise UserError(described(node, error.__cause__ or error)) from error


def make(node: DictConfig, **live: Any) -> Any:
    """What `node` builds with live objects.

    Raises:
        UserError: also for a value of a type that its part cannot take.
    """
    try:
        return factory(node)(**live)
    except torch.OutOfMemoryError:  # the machine's, not the configuration's
        raise
    except FAULTS as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
        if isinstance(cause, UserError):
            raise cause from error
        raise UserError(described(node, cause)) from error


def described(node: DictConfig, cause: BaseException) -> str:
    """Which part could not be built, why, and with which values."""
    key: str = node._get_full_key(None)
    name = str(node.get("name", node.get("_target_")))
    values = OmegaConf.to_container(node, resolve=True)
    assert isinstance(values, dict)
    given = ", ".join(f"{k!s}={v}" for k, v in values.items() if not str(k).startswith("_") and k != "name")
    words = " ".join(str(cause).strip().splitlines()[:2])
    where = f"{key}={name}" if "name" in node else key or name
    shown = f" Its values: {given[:400]}." if given else ""
    return f"{where} cannot be built: {type(cause).__name__}: {words}.{shown}"


def callback(node: DictConfig, monitor: str, mode: str) -> Callback:
    """What a node of the group `callbacks` makes; a metric to watch that it leaves open becomes the run's.

    Raises:
        UserError: it cannot be built, or is no callback.
    """
    node = copy.deepcopy(node)  # with its place in the configuration, for messages
    OmegaConf.set_struct(node, False)
    if "monitor" in node and node.monitor is None:
        node.monitor, node.mode = monitor, mode
    elif "monitor" in node and "mode" in node and node.mode is None:
        node.mode = "min" if lower_is_better(str(node.monitor)) else "max"
    try:
        built: Any = make(node)
    except UserError:
        raise
    except Exception as error:  # Lightning's own kinds, and those of somebody else's callback
        raise UserError(described(node, error)) from error
    if not isinstance(built, Callback):
        raise UserError(
            f"{node._get_full_key(None)}._target_={node._target_} should make a lightning.pytorch.Callback. "
            f"It made {type(built).__name__}."
        )
    return built


@dataclass
class Parts:
    data: MultiTaskData
    module: MultiTaskModule
    monitor: str
    mode: str
    image_size: int


def build_data(cfg: DictConfig) -> MultiTaskData:
    """The data module, set up: annotations read, split, decoded into the cache."""
    sharing = cfg.get("jobs_per_gpu") or 1
    data: MultiTaskData = make(cfg.data, cache_dir=Path(cfg.paths.cache), seed=cfg.seed, sharing=sharing)
    data.setup()
    return data


def build_architecture(cfg: DictConfig, trained: TaskSet) -> Architecture:
    size = cfg.data.image_size
    backbone = BackboneFactory(lambda: make(cfg.backbone, image_size=size), size)
    head = head_factory(cfg.head, trained)
    architecture: Architecture = make(cfg.architecture, tasks=trained, backbone=backbone, head=head)
    return architecture


def head_factory(node: DictConfig, tasks: TaskSet) -> HeadFactory:
    """What makes the heads of `tasks`: one kind for all, or each its own."""
    if node._target_ != f"{PerTask.__module__}.{PerTask.__qualname__}":
        return SameKind(factory(node))
    heads: PerTask = make(node)
    heads.check(tasks.names)
    return heads


def build(cfg: DictConfig, data: MultiTaskData | None = None) -> Parts:
    """Every part of a run, with its constants fitted on the training labels."""
    data = build_data(cfg) if data is None else data
    label_transform = make(cfg.label_transform, tasks=data.tasks)
    label_transform.fit(data.train_targets)
    trained = label_transform.encoded_tasks(data.tasks)
    architecture = build_architecture(cfg, trained)
    weighting = make(cfg.weighting, tasks=architecture.tasks)
    losses = make(cfg.loss, tasks=architecture.tasks)
    if not label_transform.own_scale:
        losses.fit(label_transform.encode(data.train_targets))
    data.set_normalization(architecture.backbone.mean, architecture.backbone.std)
    predicted = predicted_tasks(data.tasks, label_transform, architecture.tasks)
    monitor, mode = resolve_monitor(cfg, predicted, architecture.tasks)
    batches = data.steps_per_epoch
    limit = cfg.trainer.limit_train_batches
    batches = max(1, int(batches * limit)) if isinstance(limit, float) else min(batches, limit)
    steps = math.ceil(batches / cfg.trainer.accumulate_grad_batches)
    module = MultiTaskModule(
        tasks=data.tasks,
        architecture=architecture,
        weighting=weighting,
        losses=losses,
        label_transform=label_transform,
        optimizer=factory(cfg.optimizer),
        scheduler=factory(cfg.scheduler),
        steps_per_epoch=steps,
        total_steps=steps * cfg.trainer.max_epochs,
        monitor=monitor,
        channels_last=cfg.trainer.channels_last,
        test_time_augmentation=cfg.get("test_time_augmentation", "none"),  # older runs' configurations have no such key
    )
    return Parts(data, module, monitor, mode, cfg.data.image_size)


def without_weights(cfg: DictConfig) -> DictConfig:
    """A copy for a network whose parameters come from elsewhere: no weight file is read, nothing downloaded."""
    bare = copy.deepcopy(cfg)
    for key, value in (("weights", None), ("pretrained", False)):
        if key in bare.backbone:
            bare.backbone[key] = value
    return bare


def predicted_tasks(tasks: TaskSet, label_transform: LabelTransform, trained: TaskSet) -> TaskSet:
    """The dataset's tasks that get a prediction from a network of the trained ones: what is decoded, and the coarser
    tasks that this implies."""
    decoded = label_transform.decoded(trained.names)
    return tasks.subset(n for t in decoded for n in (t, *tasks.ancestors(t)))


def resolve_monitor(cfg: DictConfig, tasks: TaskSet, trained: TaskSet) -> tuple[str, str]:
    """The metric that picks the best checkpoint, by default a decoded one of the finest predicted class task, the same
    for all cells of a comparison. `val/loss` and `val/<task>/loss` may be asked for, as the papers do."""
    finest = tasks.finest()
    if cfg.monitor is None:
        monitor = f"val/{finest.name}/" + ("accuracy" if finest.kind == "classification" else "mae")
    else:
        monitor = str(cfg.monitor)
    names = [f"val/{n}" for n in ("loss", *(f"{t}/loss" for t in trained.names), *TaskMetrics.names(tasks))]
    if monitor not in names:
        raise UserError(
            f"monitor={monitor} is no metric of this run.{did_you_mean(monitor, names)} There are: {', '.join(names)}."
        )
    if monitor == "val/hierarchy/mistake_severity":
        raise UserError(
            f"monitor={monitor} has no value in an epoch without a mistake. Use monitor=val/hierarchy/distance, "
            "where a right answer counts 0."
        )
    return monitor, cfg.monitor_mode or ("min" if lower_is_better(monitor) else "max")
