"""Networks of any architecture on a small trunk, and losses on them."""

from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from mtlcar.architectures.base import Architecture
from mtlcar.backbones.base import BackboneFactory
from mtlcar.heads.base import SameKind
from mtlcar.heads.per_task import PerTask
from mtlcar.tasks import Task, TaskSet

CONF = Path(__file__).parent.parent / "conf"

MAKE = Task("make", "classification", classes=("a", "b"))
MODEL = Task("model", "classification", classes=("x", "y", "z"), parent="make")
WEIGHT = Task("weight", "regression", unit="kg")
CARS = TaskSet((MAKE, MODEL, WEIGHT), {"model": (0, 0, 1)})
PAIR = TaskSet((MAKE, MODEL), {"model": (0, 0, 1)})
STEEL = TaskSet((Task("class", "classification", classes=("p", "q", "r")), Task("hardness", "regression", unit="HV")))


def node(group: str, name: str, **changes: object) -> object:
    return OmegaConf.merge(OmegaConf.load(CONF / group / f"{name}.yaml"), changes)


def build(
    architecture: str,
    tasks: TaskSet = CARS,
    *,
    head: str = "linear",
    backbone: str = "tiny",
    size: int = 32,
    dropout: float = 0.0,
    frozen: int = 0,
    **options: object,
) -> Architecture:
    torch.manual_seed(0)
    small = {} if head == "linear" else {"hidden": 6}
    trunk = instantiate(node("backbone", backbone, frozen_stages=frozen), _partial_=True)
    if head == "mixed":
        factory = PerTask(default="mlp", kinds={tasks.names[-1]: "conv"}, dropout=dropout)
    else:
        factory = SameKind(instantiate(node("head", head, dropout=dropout, **small), _partial_=True))
    return instantiate(node("architecture", architecture, **options), _partial_=True)(
        tasks=tasks, backbone=BackboneFactory(lambda: trunk(image_size=size), size), head=factory
    )


def targets(tasks: TaskSet, batch: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    return {
        t.name: torch.randint(t.outputs, (batch,), generator=g) if t.classes else torch.randn(batch, generator=g)
        for t in tasks
    }


def losses(architecture: Architecture, image: Tensor) -> list[Tensor]:
    target = targets(architecture.tasks, len(image))
    outputs = architecture(image, target).outputs
    return [
        nn.functional.cross_entropy(outputs[t.name], target[t.name])
        if t.classes
        else nn.functional.mse_loss(outputs[t.name], target[t.name])
        for t in architecture.tasks
    ]
