"""The part of a network that one task needs, and how its time is taken."""

from typing import Any

import pytest
import torch
from torch import fx, nn

from mtlcar.architectures import latency
from mtlcar.architectures.cost import task_costs
from mtlcar.architectures.latency import as_evaluated, latency_ms, task_graphs
from tests.networks import build
from tests.test_cost import InPlace, gmacs, toy, trunk_gmacs


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "SECONDS", 0.0)


@pytest.mark.parametrize(
    ("backbone", "size"),
    [
        ("tiny", 32),
        ("vit_tiny", 32),
        ("resnet18", 32),
        ("swin_t", 64),  # its mask of shifted windows is filled in place, by slices
        pytest.param("convnext_tiny", 32, marks=pytest.mark.slow),
        pytest.param("efficientnet_lite0", 32, marks=pytest.mark.slow),
        pytest.param("densenet121", 32, marks=pytest.mark.slow),
        pytest.param("maxvit_t", 224, marks=pytest.mark.slow),
    ],
)
def test_a_part_says_bit_for_bit_what_the_network_says_with_its_own_parameters(backbone: str, size: int) -> None:
    network = build("cascade", backbone=backbone, size=size, head="mlp")
    g = torch.Generator().manual_seed(3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.uniform_(-0.1, 0.1, generator=g)
            module.running_var.uniform_(0.5, 2.0, generator=g)
    own = {t.data_ptr() for t in (*network.parameters(), *network.buffers())}
    with as_evaluated(network):
        parts = task_graphs(network, torch.randn(1, 3, size, size, generator=g))
        image = torch.randn(1, 3, size, size, generator=g)
        expected = network(image).outputs
        assert list(parts) == [*expected, "all"]
        for name, part in parts.items():
            wanted = list(expected.values()) if name == "all" else [expected[name]]
            assert all(torch.equal(a, b) for a, b in zip(part(image), wanted, strict=True)), name
            assert isinstance(part, fx.GraphModule)
            tensors = [t for t in (*part.parameters(), *part.buffers()) if t.numel() > 1]
            assert len(tensors) > 2
            assert {t.data_ptr() for t in tensors} <= own, "copies would take memory"
        heads = [network.heads[i] for i in (1, 2)]
        others = {p.data_ptr() for head in heads for p in head.parameters()}
        assert others.isdisjoint(p.data_ptr() for p in parts["make"].parameters())  # type: ignore[attr-defined]


def test_writing_into_what_another_task_has_read_changes_nothing_for_it() -> None:
    network = toy(InPlace)
    image = torch.randn(1, 3, 32, 32)
    with as_evaluated(network):
        parts = task_graphs(network, image)
        for name, expected in network(image).outputs.items():
            assert torch.equal(parts[name](image)[0], expected)
    one = trunk_gmacs(network.backbone)
    assert all(one < value < 1.1 * one for value in gmacs(task_costs(network, 32)).values())


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, 3), (1e9, 21)])
def test_the_time_that_is_there_decides_the_rounds(
    seconds: float, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "SECONDS", seconds)
    said: list[str] = []

    def run(name: str) -> Any:
        return lambda image: said.append(name)

    latency_ms({"a": run("a"), "b": run("b")}, torch.zeros(1))
    assert said == ["a", "b"] * (rounds + 1), "interleaved, and once to warm up"


def test_latency_is_the_median_after_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([900.0, 7.0, 1.0, 50.0])
    monkeypatch.setattr(latency, "timed", lambda run, synchronize: next(times))
    assert latency_ms({"a": lambda image: (image,)}, torch.zeros(1)) == {"a": 7.0}
