"""Networks of any architecture on a small trunk, losses on them, and what every architecture is held to."""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from mtlcar.architectures.base import Architecture
from mtlcar.backbones.assemble import IMAGENET_MEAN, IMAGENET_STD, assemble
from mtlcar.backbones.base import BackboneFactory, GlobalAveragePool, StagedBackbone
from mtlcar.backbones.cut import CutBackbone, Pieces, Stage, cut
from mtlcar.backbones.tiny import _block
from mtlcar.bench.peers import without_init
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
IMAGE = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class ShortNetwork(nn.Module):
    """Like `tiny`, with fewer blocks in fewer and narrower stages: what a compiler takes goes with the layers."""

    def __init__(self, blocks: tuple[int, ...]) -> None:
        super().__init__()
        self.channels = (8, 16, 24)[: len(blocks)]
        widths = zip((3, *self.channels), self.channels, blocks, strict=False)
        self.stages = [
            Stage(_block(i, o, stride=2), *(_block(o, o, stride=1) for _ in range(n - 1))) for i, o, n in widths
        ]


@cut.register
def _(network: ShortNetwork) -> Pieces:
    return Pieces(network.stages, network.channels, GlobalAveragePool())


def short(blocks: tuple[int, ...], *, image_size: int) -> CutBackbone:
    return assemble(ShortNetwork(blocks), name="short", own_mean=IMAGENET_MEAN, own_std=IMAGENET_STD)


SHORT: dict[str, Callable[..., CutBackbone]] = {
    "short": partial(short, (1, 1, 2)),
    "two_stages": partial(short, (1, 2)),
    "one_block": partial(short, (1,)),
}


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
    trunk = SHORT.get(backbone) or instantiate(node("backbone", backbone, frozen_stages=frozen), _partial_=True)
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


def assert_shared_is_what_two_losses_reach_and_none_is_idle(network: Architecture, size: int = 32) -> None:
    """In every part of a schedule each trainable parameter is reached, those that several losses reach are the shared
    ones, and each learns at some time: a branch that was not drawn gets a gradient of zero."""
    trainable = {n: p for n, p in network.train().named_parameters() if p.requires_grad}
    names = {id(p): n for n, p in trainable.items()}
    idle = set(trainable)
    image = IMAGE if size == 32 else torch.randn(4, 3, size, size)
    scheduled = type(network).begin_epoch is not Architecture.begin_epoch
    for epoch in (0, *[9] * 12) if scheduled else (0,):
        network.begin_epoch(epoch, 10)
        reached = dict.fromkeys(trainable, 0)
        for loss in losses(network, image):
            grads = torch.autograd.grad(loss, list(trainable.values()), retain_graph=True, allow_unused=True)
            for name, grad in zip(trainable, grads, strict=True):
                reached[name] += grad is not None
                if grad is not None and bool(grad.any()):
                    idle.discard(name)
        shared = list(network.shared_parameters())
        assert len({id(p) for p in shared}) == len(shared)
        assert {names[id(p)] for p in shared} == {n for n, count in reached.items() if count > 1}
        assert [n for n, count in reached.items() if not count] == []
        if epoch and not idle:
            break
    assert idle == set()


def assert_above_is_what_lies_between(network: Architecture) -> None:
    """The losses, and the bottleneck or the representations, of which there are what the network says."""
    shared = network(IMAGE, targets(network.tasks, len(IMAGE)))
    between = shared.representations if shared.bottleneck is None else (shared.bottleneck,)
    assert (shared.bottleneck is not None) == (network.has_bottleneck or network.name == "single")
    assert (shared.representations != ()) == network.has_representations
    if not network.has_bottleneck and network.name not in ("single", "constant"):  # what has a head a task
        assert network.has_representations == (len({head.takes for head in network.heads}) == 1)
    if not between:
        return
    assert len(between) == (1 if network.has_bottleneck else len(network.tasks))
    assert len({z.shape for z in between}) == 1
    trainable = [p for p in network.parameters() if p.requires_grad]
    below = torch.autograd.grad(sum(z.sum() for z in between), trainable, allow_unused=True)
    expected = {id(p) for p, g in zip(trainable, below, strict=True) if g is None}
    above = [id(p) for p in network.above_bottleneck()]
    assert len(set(above)) == len(above)
    assert set(above) == expected


class Outputs(nn.Module):
    """The pruned network with tensors alone for output, which is what can be exported."""

    def __init__(self, network: Architecture) -> None:
        super().__init__()
        self.network = network.eval().pruned()

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return self.network(image).outputs


def assert_evaluates_compiles_exports(network: Architecture) -> None:
    """Evaluation draws nothing, takes images one by one and in either memory format, compiles to one graph, and is
    exported with the same outputs. (That a saved program reads back the same is for test_export.)"""
    image = IMAGE[:3]
    first = network.eval()(image).outputs
    torch._dynamo.reset()
    state = torch.get_rng_state()
    compiled = torch.compile(network, backend="eager", fullgraph=True)(image).outputs
    again, alone = network(image).outputs, network(image[:1]).outputs
    assert torch.equal(torch.get_rng_state(), state)
    exported = torch.export.export(Outputs(network), (image,)).module()(image)
    last = network.to(memory_format=torch.channels_last)(image.contiguous(memory_format=torch.channels_last)).outputs
    for name, value in first.items():
        assert torch.equal(again[name], value)
        torch.testing.assert_close(compiled[name], value)
        torch.testing.assert_close(exported[name], value)
        torch.testing.assert_close(alone[name], value[:1])
        torch.testing.assert_close(last[name], value, rtol=1e-4, atol=1e-5)


def assert_compiled_parts_are_called_as_modules(
    network: Architecture, calls: Mapping[type[nn.Module], int] | None = None
) -> None:
    """Each once a pass, or `calls[type]` times; and every stage of every trunk is among them or in one."""
    found: Counter[int] = Counter()
    parts = list(network.compiled_parts())
    for part in parts:
        part.register_forward_hook(lambda module, *_: found.update([id(module)]))
    network(IMAGE, targets(network.tasks, len(IMAGE)))
    assert found == {id(part): (calls or {}).get(type(part), 1) for part in parts}
    trunks = [m for m in network.modules() if isinstance(m, StagedBackbone)]
    stages = {id(s) for trunk in trunks for s in trunk.stages if not isinstance(s, nn.Identity)}
    assert stages <= {id(m) for part in parts for m in part.modules()}


def same_outputs(one: Architecture, other: Architecture) -> None:
    """Up to rounding, in evaluation."""
    expected, outputs = one.eval()(IMAGE).outputs, other.eval()(IMAGE).outputs
    for name, value in expected.items():
        torch.testing.assert_close(outputs[name], value)


def libmtl(module: str) -> Any:
    without_init("LibMTL")
    return pytest.importorskip(f"LibMTL.architecture.{module}", reason="needs LibMTL on PYTHONPATH")


def resnet(stages: nn.ModuleList) -> SimpleNamespace:
    """A trunk's own modules, under the names that torchvision's ResNet gives them."""
    stem = dict(zip(("conv1", "bn1", "relu", "maxpool"), stages[0], strict=False))
    layers = {"layer1": stages[0][4:], "layer2": stages[1], "layer3": stages[2], "layer4": stages[3]}
    return SimpleNamespace(**stem, **layers, feature_dim=512)
