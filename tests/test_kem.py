"""kem and skem: the definition, what the tasks share, and how they run."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mtlcar.architectures.cost import cost
from mtlcar.architectures.kem import KEM
from mtlcar.backbones.base import BackboneFactory, StagedBackbone
from mtlcar.backbones.tiny import tiny
from mtlcar.backbones.vit import map_to_tokens, vit_tiny
from mtlcar.errors import UserError
from mtlcar.heads.base import SameKind
from mtlcar.heads.linear import Linear
from mtlcar.tasks import Task, TaskSet
from tests.networks import (
    CARS,
    MAKE,
    PAIR,
    WEIGHT,
    assert_above_is_what_lies_between,
    assert_shared_is_what_two_losses_reach_and_none_is_idle,
    build,
)

BOTH = ("kem", "skem")


# --- the definition ---------------------------------------------------------------------------------------------------


class Strip(StagedBackbone):
    """The image is the map."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([nn.Identity()])
        self.channels = (2,)

    def pool(self, feature_map: Tensor) -> Tensor:
        return feature_map.mean((2, 3))


def by_loops(network: KEM, x: np.ndarray, k: int) -> list[np.ndarray]:
    """The definition for one image of 2 positions [2, C], number by number: its logits of 2 tasks."""
    w = {n: p.detach().double().numpy() for n, p in network.named_parameters()}
    d = w["embedding.0"].shape[-1]
    tokens = [w[f"projections.{t}.weight"] @ x[i] + w[f"embedding.{t}"] for t in (0, 1) for i in (0, 1)]
    m = {n: w[f"exchange.{n}.weight"] for n in ("retrieve_query", "retrieve_key", "retrieve_value")}
    retrieved = []
    for slot in w["exchange.memory"]:
        scores = [(m["retrieve_query"] @ slot) @ (m["retrieve_key"] @ f) / math.sqrt(d) for f in tokens]
        kept = sorted(range(4), key=lambda i: -scores[i])[:k]
        total = sum(math.exp(scores[i]) for i in kept)
        retrieved.append(sum(math.exp(scores[i]) / total * (m["retrieve_value"] @ tokens[i]) for i in kept))
    m = {n: w[f"exchange.{n}.weight"] for n in ("write_query", "write_key", "write_value")}
    after = []
    for f in tokens:
        scores = [(m["write_query"] @ f) @ (m["write_key"] @ r) / math.sqrt(d) for r in retrieved]
        total = sum(map(math.exp, scores))
        written = sum(math.exp(s) / total * (m["write_value"] @ r) for s, r in zip(scores, retrieved, strict=True))
        after.append(f + network.broadcast * written)
    return [
        w[f"heads.{t}.output.weight"] @ ((after[2 * t] + after[2 * t + 1]) / 2) + w[f"heads.{t}.output.bias"]
        for t in (0, 1)
    ]


@pytest.mark.parametrize("k", [2, 3, 9])
def test_two_tokens_of_two_tasks_by_hand(k: int) -> None:
    torch.manual_seed(0)
    network = KEM(
        tasks=PAIR,
        backbone=BackboneFactory(Strip, 2),
        head=SameKind(Linear),
        width=3,
        slots=2,
        top_k=k,
        broadcast=0.7,
    ).eval()
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(3).add_(0.1)
    image = torch.randn(5, 2, 1, 2)
    outputs = network(image).outputs
    for b in range(5):
        expected = by_loops(network, image[b, :, 0].T.double().numpy(), k)
        for name, logits in zip(PAIR.names, expected, strict=True):
            np.testing.assert_allclose(outputs[name][b].detach().numpy(), logits, rtol=1e-4, atol=1e-5)


def test_attention_costs_four_n_l_d() -> None:
    for slots in (4, 8):
        network = build("kem", PAIR, slots=slots, width=32)
        n, d, c = 2 * 4, 32, 64
        maps = n * c * d + (3 * n + 3 * slots) * d * d  # projections; query, key and value of both attentions
        expected = maps + 4 * n * slots * d + 5 * d
        trunk = cost(build("parallel", PAIR), 32)["forward_gmacs"] * 1e9 - 5 * c
        assert cost(network, 32)["forward_gmacs"] * 1e9 - trunk == pytest.approx(expected)


def test_the_bottlenecks_loss_is_added_in_training_with_its_weight() -> None:
    full = build("kem", beta=0.5)
    image = torch.randn(2, 3, 32, 32)
    expected = 0.5 * full.exchange(torch.cat(full.task_tokens(full.backbone(image)[-1]), 1))[1]
    torch.testing.assert_close(full(image).extra_loss, expected)
    assert build("kem")(image).extra_loss is None
    assert full.eval()(image).extra_loss is None


# --- the tasks share --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"broadcast": 0.0}, {"beta": 1e-3}, {"frozen": 2}, {"width": None}], ids=str)
@pytest.mark.parametrize(("name", "backbone"), [("kem", "tiny"), ("skem", "vit_tiny")])
def test_shared_parameters_are_those_that_two_losses_reach_and_none_is_idle(
    name: str, backbone: str, options: dict
) -> None:
    network = build(name, head="mixed", backbone=backbone, **options)
    assert_shared_is_what_two_losses_reach_and_none_is_idle(network)
    assert_above_is_what_lies_between(network)  # all sharing passes through the bottleneck, the trunk's last map


@pytest.mark.parametrize(
    ("backbone", "size", "norms"), [("convnext_tiny", 64, 2), ("swin_t", 64, 0), ("maxvit_t", 224, 4)]
)
@pytest.mark.parametrize("name", [*BOTH, "cross_attention"])
def test_larger_trunks_build_without_memory_and_what_only_pools_is_frozen(
    name: str, backbone: str, size: int, norms: int
) -> None:
    with torch.device("meta"):
        network = build(name, PAIR, backbone=backbone, size=size)
        outputs = network(torch.zeros(2, 3, size, size)).outputs
    assert {n: tuple(v.shape) for n, v in outputs.items()} == {"make": (2, 2), "model": (2, 3)}
    assert {t.device.type for t in network.state_dict().values()} == {"meta"}
    frozen = {n for n, p in network.named_parameters() if not p.requires_grad}
    assert len(frozen) == norms
    assert all(n.startswith("backbone.pooling") for n in frozen)


def test_without_broadcast_they_are_parallel_heads_on_the_tasks_own_tokens() -> None:
    image = torch.randn(2, 3, 32, 32)
    for options in ({"broadcast": 0.0}, {}):
        network = build("kem", PAIR, **options).eval()
        network.broadcast = 0.0
        f = network.backbone(image)[-1].mean((2, 3))
        outputs = network(image).outputs
        for t, task in enumerate(PAIR.names):
            own = f @ network.projections[t].weight.T + (network.embedding[t] if options == {} else 0)
            torch.testing.assert_close(outputs[task], network.heads[t](own))
    assert not any("exchange" in n or "embedding" in n for n in build("kem", broadcast=0.0).state_dict())


def test_a_conv_head_takes_the_grid_in_its_place_and_without_the_class_token() -> None:
    image = torch.randn(2, 3, 32, 32)
    for backbone in ("tiny", "vit_tiny"):
        network = build("kem", PAIR, head="conv", backbone=backbone, broadcast=0.0).eval()
        grid = network.backbone(image)[-1][:, :, int(backbone == "vit_tiny") :]
        own = nn.functional.conv2d(grid, network.projections[1].weight[:, :, None, None])
        torch.testing.assert_close(network(image).outputs["model"], network.heads[1](own))


def test_tokens_of_a_map_and_the_map_of_the_tokens() -> None:
    x = torch.randn(2, 5, 4, 3)
    for trunk in (tiny(32), vit_tiny(32)):
        grid = x[:, :, 1:] if trunk.class_row else x
        tokens = trunk.tokens(x)
        assert torch.equal(trunk.grid_map(tokens, 3), grid)
        torch.testing.assert_close(tokens, map_to_tokens(x) if trunk.class_row else x.flatten(2).mT)
    assert tokens.shape == (2, 1 + 9, 5)


@pytest.mark.parametrize("name", BOTH)
def test_what_only_the_noise_uses_is_pruned(name: str) -> None:
    network = build(name, beta=1e-3)
    assert any("log_variance" in n for n in network.state_dict())
    assert not any("log_variance" in n for n in network.pruned().state_dict())
    assert any("log_variance" in n for n in network.state_dict())


# --- bad input --------------------------------------------------------------------------------------------------------

VALUES = TaskSet((WEIGHT, Task("length", "regression")))


@pytest.mark.parametrize(
    ("name", "changes", "tasks", "hint"),
    [
        *((name, {}, TaskSet((MAKE,)), "architecture=single") for name in (*BOTH, "cross_attention")),
        *((n, {"width": w}, PAIR, "architecture.width") for n, w in itertools.product(BOTH, (0, 2.0, True))),
        ("kem", {"slots": 1}, PAIR, "architecture.slots should be a whole number of at least 2 .* Found 1"),
        ("kem", {"top_k": 1}, PAIR, "architecture.top_k should be a whole number of at least 2 .* Found 1"),
        ("kem", {"top_k": 1, "broadcast": 0.0}, PAIR, "architecture.top_k"),
        ("kem", {"broadcast": -1.0}, PAIR, "architecture.broadcast should be a number of at least 0. Found -1"),
        ("kem", {"broadcast": "on"}, PAIR, "architecture.broadcast"),
        ("kem", {"beta": math.nan}, PAIR, "architecture.beta"),
        ("kem", {"beta": 1e-3, "broadcast": 0.0}, PAIR, "architecture.beta=0.001"),
        ("skem", {"width": 2}, PAIR, r"at least the 3 vertices .* \(classes of model\). Found 2: raise architecture.w"),
        ("skem", {"vertices": 300}, PAIR, "architecture.width should be at least the 300 vertices"),
        ("skem", {"vertices": 1}, PAIR, "architecture.vertices should be a whole number of at least 2. Found 1"),
        ("skem", {}, VALUES, "architecture.vertices=null"),
    ],
)
def test_impossible_options_are_refused(name: str, changes: dict, tasks: TaskSet, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        build(name, tasks, **changes)
    assert build("skem", VALUES, vertices=4).frame.shape == (256, 4)


@pytest.mark.parametrize("name", [*BOTH, "cross_attention"])
def test_a_trunk_without_a_grid_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StagedBackbone, "grid", False)
    with pytest.raises(UserError, match=f"architecture={name} .* architecture=parallel"):
        build(name, CARS)
