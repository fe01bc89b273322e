"""What one task alone costs: the operations that it needs and no others, with the network's own outputs."""

import json
import logging
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor, fx, nn

from mtlcar.architectures import cost as cost_module
from mtlcar.architectures import latency
from mtlcar.architectures.base import Architecture, Shared
from mtlcar.architectures.common import TaskRepresentations, make_heads, represent, trunks_of, typed
from mtlcar.architectures.cost import cost, task_costs
from mtlcar.architectures.latency import task_graphs
from mtlcar.backbones.base import BackboneFactory, StagedBackbone
from mtlcar.config import groups
from mtlcar.heads.base import HeadFactory, SameKind
from mtlcar.runs.results import costs
from mtlcar.tasks import Task, TaskSet
from tests.networks import CARS, PAIR, build, node

WIDTH = 64
"""Features of the tiny trunk; the tasks have 2, 3 and 1 outputs."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "SECONDS", 0.0)


class Private(TaskRepresentations):
    """A trunk a task; nothing is shared."""

    def __init__(self, *, tasks: TaskSet, backbone: BackboneFactory, head: HeadFactory) -> None:
        super().__init__()
        self.name, self.tasks = "private", tasks
        self.trunks = nn.ModuleList(backbone() for _ in tasks)
        self.backbone = trunks_of(self.trunks)[0]
        self.set_heads(make_heads(tasks, head, self.backbone.features))

    def forward(self, image: Tensor, targets: dict[str, Tensor] | None = None) -> Shared:
        pairs = zip(trunks_of(self.trunks), typed(self.heads), strict=True)
        return self.read([represent(trunk, head, trunk(image)[-1]) for trunk, head in pairs])

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        return iter(())


class Undecided(Private):
    """What it computes depends on the image, which no graph can follow."""

    def forward(self, image: Tensor, targets: dict[str, Tensor] | None = None) -> Shared:
        return super().forward(image if image.mean() > 0 else -image)


class InPlace(Private):
    """After the first task has read the image, the others see it without its green channel, and read one trunk."""

    def forward(self, image: Tensor, targets: dict[str, Tensor] | None = None) -> Shared:
        image = image.clone()
        first, second = (trunks_of(self.trunks)[i] for i in (0, 1))
        mine = first.pool(first(image)[-1])
        image[:, 1].zero_()
        theirs = second.pool(second(image)[-1])
        return self.read([mine, theirs, theirs])


def toy(cls: type[Private]) -> Private:
    torch.manual_seed(0)
    trunk = instantiate(node("backbone", "tiny"), _partial_=True)
    head = SameKind(instantiate(node("head", "linear"), _partial_=True))
    return cls(tasks=CARS, backbone=BackboneFactory(lambda: trunk(image_size=32), 32), head=head)


def gmacs(found: Any) -> dict[str, float]:
    assert isinstance(found["task_gmacs"], dict)
    return found["task_gmacs"]


def trunk_gmacs(trunk: StagedBackbone) -> float:
    """By hand: two 3 x 3 convolutions a stage, each stage halving 32 px."""
    total, size = 0, 32
    for before, after in zip((3, *trunk.channels), trunk.channels, strict=False):
        size //= 2
        total += size * size * 9 * (before + after) * after
    return total / 1e9


def test_cost_counts_multiply_adds_as_torchvision_does() -> None:
    thousand = TaskSet((Task("c", "classification", classes=tuple(map(str, range(1000)))),))
    network = build("single", thousand, backbone="resnet18", size=224)
    assert cost(network, 224)["forward_gmacs"] == pytest.approx(1.814, abs=1e-3)  # torchvision's table


def test_cost_counts_attention_and_shared_parameters_and_leaves_the_mode() -> None:
    network = build("parallel", PAIR, backbone="vit_tiny", frozen=1).train()
    modes = [m.training for m in network.modules()]
    report = cost(network, 32)
    tokens, width = 16 + 1, 48
    layer = 4 * tokens * width**2 + 2 * tokens**2 * width + 2 * tokens * width * 96
    expected = 16 * 3 * 64 * width + 4 * layer + width * 5
    assert report["forward_gmacs"] * 1e9 == pytest.approx(expected)
    assert report["parameters"] == sum(p.numel() for p in network.parameters())
    assert report["shared_parameters"] == sum(p.numel() for s in network.backbone.stages[1:] for p in s.parameters())
    assert [m.training for m in network.modules()] == modes
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_task_of_a_shared_trunk_costs_the_trunk_and_its_own_head() -> None:
    network = build("parallel")
    whole = trunk_gmacs(network.backbone)
    expected = {"make": whole + 2 * WIDTH / 1e9, "model": whole + 3 * WIDTH / 1e9, "weight": whole + 1 * WIDTH / 1e9}
    assert gmacs(task_costs(network, 32)) == pytest.approx(expected, rel=1e-12)
    assert cost(network, 32)["forward_gmacs"] == pytest.approx(whole + 6 * WIDTH / 1e9, rel=1e-12)


def test_a_task_with_a_trunk_of_its_own_costs_that_trunk_alone() -> None:
    network = toy(Private)
    found = gmacs(task_costs(network, 32))
    one = trunk_gmacs(network.backbone)
    expected = {"make": one + 2 * WIDTH / 1e9, "model": one + 3 * WIDTH / 1e9, "weight": one + 1 * WIDTH / 1e9}
    assert found == pytest.approx(expected, rel=1e-12)
    assert sum(found.values()) == pytest.approx(cost(network, 32)["forward_gmacs"], rel=1e-12)


def test_a_child_costs_its_parents_and_a_parent_no_child() -> None:
    network = build("cascade")  # make feeds model, model feeds weight
    whole = trunk_gmacs(network.backbone)
    make = whole + 2 * WIDTH / 1e9
    model = make + 3 * (WIDTH + 2) / 1e9
    weight = model + 1 * (WIDTH + 3) / 1e9
    expected = {"make": make, "model": model, "weight": weight}
    assert gmacs(task_costs(network, 32)) == pytest.approx(expected, rel=1e-12)
    assert cost(network, 32)["forward_gmacs"] == pytest.approx(weight, rel=1e-12)


@pytest.mark.parametrize(
    "name",  # the others but `single` in test_bench_step, on two tasks
    [
        pytest.param(n, marks=() if n in ("single", "ltb", "kem") else pytest.mark.slow)
        for n in groups()["architecture"]
    ],
)
def test_every_architecture_can_be_taken_apart(name: str) -> None:
    network = build(name, backbone="short")
    found = task_costs(network, 32)
    assert list(gmacs(found)) == list(network.tasks.names)
    assert found["latency_ms"] is not None
    assert list(found["latency_ms"]) == [*network.tasks.names, "all"]
    assert all(math.isfinite(ms) and ms > 0 for ms in found["latency_ms"].values())
    whole = cost(network, 32)["forward_gmacs"]
    for task, value in gmacs(found).items():
        assert 0 <= value <= whole * (1 + 1e-9), task
        assert (value > 0) == (name != "constant"), task


@pytest.mark.parametrize("cls", [Private, Undecided])
def test_the_network_is_left_as_it_was(cls: type[Private], caplog: pytest.LogCaptureFixture) -> None:
    network = toy(cls)
    network.train()
    network.trunks[1].eval()
    modes = [m.training for m in network.modules()]
    buffers = [b.clone() for b in network.buffers()]
    state, fast = torch.get_rng_state(), torch.backends.mha.get_fastpath_enabled()
    with caplog.at_level(logging.WARNING, logger="mtlcar"):
        task_costs(network, 32)
    assert [m.training for m in network.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(buffers, network.buffers(), strict=True))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert torch.is_grad_enabled()


def test_what_cannot_be_taken_apart_is_left_out_with_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="mtlcar"):
        found = task_costs(toy(Undecided), 32)
    assert found == {"task_gmacs": None, "latency_ms": None}
    (record,) = caplog.records
    assert "cannot be taken apart" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_a_part_that_says_something_else_is_never_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(architecture: Architecture, image: Tensor) -> dict[str, Any]:
        parts = task_graphs(architecture, image)
        return {**parts, "model": lambda x: (parts["model"](x)[0] + 1.0,)}

    monkeypatch.setattr(cost_module, "task_graphs", wrong)
    with caplog.at_level(logging.WARNING, logger="mtlcar"):
        assert task_costs(toy(Private), 32)["task_gmacs"] is None
    assert "model alone differs" in caplog.text


def test_a_compiled_network_is_taken_apart_as_it_was_written() -> None:
    network = build("parallel")
    expected = gmacs(task_costs(network, 32))

    def backend(graph: fx.GraphModule, inputs: list[Tensor]) -> Any:
        raise AssertionError("measured what the compiler makes of it")

    network.backbone.compile(backend=backend)
    compiled = network.backbone._compiled_call_impl
    assert gmacs(task_costs(network, 32)) == expected
    assert cost(network, 32)["forward_gmacs"] > 0
    assert network.backbone._compiled_call_impl is compiled is not None


def test_a_run_reports_it_for_the_device_of_its_test() -> None:
    network = build("parallel").to(memory_format=torch.channels_last)
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")))
    module = SimpleNamespace(architecture=network, trainer=trainer, channels_last=True)
    found = costs(SimpleNamespace(module=module, image_size=32))  # type: ignore[arg-type]
    assert json.loads(json.dumps(found)) == found
    assert {k: found[k] for k in cost(network, 32)} == cost(network, 32)
    assert set(found) == {*cost(network, 32), "task_gmacs", "latency_ms", "latency_device"}
    assert found["task_gmacs"] == gmacs(task_costs(network, 32))
    assert found["latency_device"]
