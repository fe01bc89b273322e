"""From a composed configuration to live parts. Nothing here knows a method's name; `_target_` does."""

import contextlib
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
from omegaconf import DictConfig

from mtlcar.architectures.base import Architecture
from mtlcar.backbones.base import BackboneFactory
from mtlcar.compiled import refuse_graphs
from mtlcar.data.datamodule import MultiTaskData, make_augment, plain
from mtlcar.errors import UserError, did_you_mean
from mtlcar.heads.base import HeadFactory, SameKind
from mtlcar.heads.per_task import PerTask
from mtlcar.label_transforms.base import LabelTransform
from mtlcar.losses import TaskLosses
from mtlcar.metrics.direction import lower_is_better
from mtlcar.metrics.tasks import TaskMetrics
from mtlcar.module import MultiTaskModule, refuse_averaging, refuse_impossible
from mtlcar.tasks import TaskSet


def factory(node: DictConfig) -> Callable[..., Any]:
    """What `node` names, with its keys bound; called with live objects, which so go past OmegaConf untouched."""
    return partial(instantiate(node, _partial_=True, _convert_="all"))


def make(node: DictConfig, **live: Any) -> Any:
    """What `node` builds with live objects.

    Raises:
        UserError: also for a value of a type that its part cannot take.
    """
    try:
        return factory(node)(**live)
    except (TypeError, ValueError, InstantiationException) as error:
        raise UserError(f"{node.get('name', node.get('_target_'))}: {error}") from error


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


def check_parts(cfg: DictConfig, tasks: TaskSet) -> None:
    """Build everything but the data on the meta device, to find what does not fit before any run starts.

    Raises:
        UserError: as `build` would.
    """
    bare = without_weights(cfg)
    with torch.device("meta"):
        label_transform = make(cfg.label_transform, tasks=tasks)
        encoded = label_transform.encoded_tasks(tasks)
        architecture = build_architecture(bare, encoded)
        weighting = make(cfg.weighting, tasks=architecture.tasks)
        losses = make(cfg.loss, tasks=architecture.tasks)
        optimizer = make(cfg.optimizer, architecture=architecture, weighting=weighting)
        make(cfg.scheduler, optimizer=optimizer, total_steps=20, steps_per_epoch=5, monitor="val/loss")
        try_forward(architecture, losses, label_transform, cfg.data.image_size)
    resolve_monitor(cfg, predicted_tasks(tasks, label_transform, architecture.tasks), architecture.tasks)
    make_augment(plain(cfg.data.augment))
    refuse_impossible(architecture, weighting)
    refuse_graphs(cfg.trainer.compile, architecture, weighting, cfg.trainer.accumulate_grad_batches)
    refuse_averaging(architecture, cfg.get("test_time_augmentation", "none"))


def try_forward(
    architecture: Architecture, losses: TaskLosses, label_transform: LabelTransform, image_size: int
) -> None:
    """One pass of two images without numbers, to find maps that are too small for what reads them, and predictions that
    cannot be decoded."""
    kinds = {t.name: torch.int64 if t.classes else torch.float32 for t in architecture.tasks}
    targets = {name: torch.zeros(2, dtype=dtype) for name, dtype in kinds.items()}
    with contextlib.suppress(NotImplementedError):  # an operation of somebody's network that cannot be tried so
        outputs = architecture.train()(torch.zeros(2, 3, image_size, image_size), targets).outputs
        label_transform.decode(losses.predictions(outputs), losses.scores(outputs))


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
