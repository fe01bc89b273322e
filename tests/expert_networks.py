"""What the tests of mixtures of experts have in common: trunks and gates whose arithmetic is done by hand."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from hydra.utils import instantiate
from torch import Tensor, nn

from mtlcar.architectures.base import Architecture
from mtlcar.architectures.common import as_output
from mtlcar.architectures.gates import Gate
from mtlcar.backbones.base import BackboneFactory, StagedBackbone
from mtlcar.backbones.tiny import TinyNetwork
from mtlcar.heads.base import SameKind
from mtlcar.heads.per_task import PerTask
from mtlcar.tasks import Task, TaskSet
from tests.networks import CARS, libmtl, node

VALUES = TaskSet([Task(n, "regression") for n in ("a", "b")])


class Plus(nn.Module):
    """x + c, c the same for every number of x."""

    def __init__(self, c: float) -> None:
        super().__init__()
        self.c = nn.Parameter(torch.tensor(float(c)))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.c


class Adder(StagedBackbone):
    """A trunk whose stage k adds `terms[k]`, and which pools by the mean, times `scale`."""

    def __init__(self, *terms: float, scale: float = 1.0) -> None:
        super().__init__()
        self.stages = nn.ModuleList(Plus(c) for c in terms)
        self.channels = (3,) * len(terms)
        self.scale = nn.Parameter(torch.tensor(scale))

    def pool(self, feature_map: Tensor) -> Tensor:
        return self.scale * feature_map.mean((2, 3))


def of_adders(architecture: str, trunks: Sequence[Adder], **options: object) -> Architecture:
    """The architecture on these trunks and 2 px images, for two values whose heads give the mean of what they take."""
    made: Iterator[Adder] = iter(trunks)
    head = SameKind(instantiate(node("head", "linear"), _partial_=True))
    network: Architecture = instantiate(node("architecture", architecture, **options), _partial_=True)(
        tasks=VALUES, backbone=BackboneFactory(lambda: next(made), 2), head=head
    )
    assert next(made, None) is None
    for one in network.heads:
        nn.init.constant_(one.output.weight, 1 / 3)
        nn.init.zeros_(one.output.bias)
    return network


def values(network: Architecture, image: Tensor) -> list[Tensor]:
    """Each task's value [B]."""
    return list(network.eval()(image).outputs.values())


def set_gate(gate: nn.Module, at_one: Sequence[float], at_zero: Sequence[float] | None = None) -> None:
    """Weights proportional to `at_one` where the gate reads ones, to `at_zero` (None: the same) where zeros."""
    assert isinstance(gate, Gate)
    ones, zeros = (torch.tensor(list(w)).log() for w in (at_one, at_zero or at_one))
    with torch.no_grad():
        gate.linear.bias.copy_(zeros)
        gate.linear.weight.copy_(((ones - zeros) / gate.linear.in_features)[:, None].expand_as(gate.linear.weight))


def put_all_on_first(network: Architecture) -> None:
    """Every gate's weights on its first expert."""
    with torch.no_grad():
        for gate in network.modules():
            if isinstance(gate, Gate):
                gate.linear.weight.zero_()
                gate.linear.bias.fill_(-1e4)
                gate.linear.bias[0] = 0


def with_mixed_heads(architecture: str, tasks: TaskSet, **options: object) -> Architecture:
    """On trunks with a layer in their pooling; the last task's head takes the map, the others' the vector."""
    factory = PerTask(default="mlp", kinds={tasks.names[-1]: "conv"}, dropout=0.0)
    network: Architecture = instantiate(node("architecture", architecture, **options), _partial_=True)(
        tasks=tasks, backbone=BackboneFactory(lambda: Adder(*torch.randn(4).tolist()), 32), head=factory
    )
    return network


def assert_weights_reach_every_trunk(architecture: str, path: Path, trunks: int, **options: object) -> Architecture:
    """The weights of one trunk, in a file, are found in all `trunks`, of which the first alone has the stem."""
    source = TinyNetwork()
    torch.save(source.state_dict(), path)
    make = instantiate(node("backbone", "tiny", weights=str(path)), _partial_=True)
    network: Architecture = instantiate(node("architecture", architecture, **options), _partial_=True)(
        tasks=CARS,
        backbone=BackboneFactory(lambda: make(image_size=32), 32),
        head=SameKind(instantiate(node("head", "linear"), _partial_=True)),
    )
    found = [m for m in network.modules() if isinstance(m, StagedBackbone)]
    assert [t.first_stage for t in found] == [0] + [1] * (trunks - 1)
    for trunk in found:
        for k in range(trunk.first_stage, 4):
            for name, tensor in source.stages[k].state_dict().items():
                assert torch.equal(trunk.stage(k).state_dict()[name], tensor)
    return network


class Encoder(nn.Module):
    """A whole trunk as LibMTL has it: the image -> what the heads take."""

    def __init__(self, trunk: StagedBackbone, takes: str) -> None:
        super().__init__()
        self.trunk = trunk
        self.takes = takes

    def forward(self, image: Tensor) -> Tensor:
        last = self.trunk(image)[-1]
        return last if self.takes == "map" else self.trunk.pool(last)


def libmtl_outputs(
    name: str, network: Architecture, order: Sequence[int], num_experts: list[int], image: Tensor
) -> dict[str, Tensor]:
    """What LibMTL's class `name` gives with the network's own trunks, in the order in which that class makes its
    encoders, the network's gates and its heads."""
    module = libmtl(name)
    trunks = network.experts
    made = iter([Encoder(trunks[e], network.heads[0].takes) for e in order])
    peer = getattr(module, name)(
        list(network.tasks.names),
        lambda: next(made),
        nn.ModuleDict(dict(zip(network.tasks.names, network.heads, strict=True))),
        rep_grad=False,
        multi_input=False,
        device=image.device,
        img_size=list(image.shape[1:]),
        num_experts=num_experts,
    )
    assert next(made, None) is None
    for task, gate in zip(network.tasks.names, network.gates, strict=True):
        peer.gate_specific[task][0].load_state_dict(gate.linear.state_dict())
    return {task.name: as_output(task, x) for task, x in zip(network.tasks, peer(image).values(), strict=True)}
