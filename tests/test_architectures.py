"""Architectures: what holds for every one of them, first of all exactly what the tasks share."""

import itertools

import pytest
import torch
from torch import nn

from mtlcar.architectures.base import Architecture
from mtlcar.architectures.mtan import PassedOn
from mtlcar.errors import UserError
from mtlcar.tasks import Task, TaskSet
from tests.networks import (
    CONF,
    IMAGE,
    MAKE,
    MODEL,
    PAIR,
    STEEL,
    WEIGHT,
    assert_above_is_what_lies_between,
    assert_compiled_parts_are_called_as_modules,
    assert_evaluates_compiles_exports,
    assert_shared_is_what_two_losses_reach_and_none_is_idle,
    build,
    losses,
    node,
)
from tests.weighting_net import NoHostRoundTrip

# Every yaml of conf/architecture: the tests over it hold for any architecture.
TABLE = (
    *("constant", "single", "parallel", "cascade"),
    *("cross_stitch", "mtan", "mmoe", "cgc", "ple", "dselect_k", "ltb"),
    *("kem", "skem", "cross_attention"),
)
HEADS = ("linear", "mlp", "conv", "mixed")


def test_every_yaml_has_a_row() -> None:
    assert sorted(p.stem for p in (CONF / "architecture").glob("*.yaml")) == sorted(TABLE)
    for name in TABLE:
        assert node("architecture", name).name == name


# --- what is shared ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(  # what a head shares does not depend on the trunk
    ("architecture", "head", "backbone"),
    [*itertools.product(TABLE, HEADS, ("tiny",)), *itertools.product(TABLE, ("mixed",), ("vit_tiny",))],
)
def test_shared_parameters_are_those_that_two_losses_reach_and_none_is_idle(
    architecture: str, head: str, backbone: str
) -> None:
    network = build(architecture, head=head, backbone=backbone)
    assert_shared_is_what_two_losses_reach_and_none_is_idle(network)
    assert_above_is_what_lies_between(network)


def test_frozen_trunk_is_not_shared() -> None:
    network = build("parallel", frozen=4)
    assert list(network.shared_parameters()) == []
    partly = build("parallel", frozen=2)
    assert {id(p) for p in partly.shared_parameters()} == {
        id(p) for s in partly.backbone.stages[2:] for p in s.parameters()
    }


def test_a_map_head_freezes_the_norm_it_never_reaches() -> None:
    with torch.device("meta"):
        network = build("parallel", head="conv", backbone="convnext_tiny", size=64)
        vector = build("parallel", backbone="convnext_tiny", size=64)
    frozen = {n for n, p in network.named_parameters() if not p.requires_grad}
    assert frozen == {"backbone.pooling.1.weight", "backbone.pooling.1.bias"}
    assert all(p.requires_grad for p in vector.parameters())


@pytest.mark.parametrize(
    ("backbone", "counts"),
    [
        ("densenet121", (7_154_756, 7_204_981, 7_214_585)),
        ("maxvit_t", (30_508_172, 30_533_309, 30_542_913)),
        ("convnext_base", (87_767_364, 87_817_589, 87_827_193)),
    ],
)
def test_parameter_counts_are_the_papers(backbone: str, counts: tuple[int, int, int]) -> None:
    make = Task("make", "classification", classes=tuple(f"make{i}" for i in range(49)))
    model = Task("model", "classification", classes=tuple(f"model{i}" for i in range(196)), parent="make")
    tasks = TaskSet((make, model), {"model": [i % 49 for i in range(196)]})
    for architecture, expected in zip(("single", "parallel", "cascade"), counts, strict=True):
        with torch.device("meta"):
            network = build(architecture, tasks, backbone=backbone, size=224)
        assert sum(p.numel() for p in network.parameters()) == expected


# --- outputs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["linear", "mlp", "conv"])
@pytest.mark.parametrize("architecture", TABLE)
def test_outputs_have_a_row_of_logits_or_a_value_an_image_in_task_order(architecture: str, head: str) -> None:
    tasks = TaskSet((WEIGHT, MODEL, MAKE), {"model": (0, 0, 1)})  # children before their parents
    network = build(architecture, tasks, head=head)
    shared = network(torch.randn(5, 3, 32, 32))
    expected = {"weight": (5,), "model": (5, 3), "make": (5, 2)}
    assert list(shared.outputs) == list(network.tasks.names)
    assert {k: tuple(v.shape) for k, v in shared.outputs.items()} == {n: expected[n] for n in network.tasks.names}
    assert network.has_bottleneck == (architecture in ("parallel", "cascade", "kem", "skem"))
    if architecture in ("single", "parallel", "cascade", "kem", "skem"):
        assert shared.bottleneck.shape == ((5, 64, 2, 2) if head == "conv" or "kem" in architecture else (5, 64))
    else:
        assert shared.bottleneck is None


def test_task_names_that_modules_have_themselves_work() -> None:
    kinds = Task("type", "classification", classes=("suv", "van"))
    tasks = TaskSet((kinds, Task("train", "classification", classes=("x", "y"), parent="type")), {"train": (0, 1)})
    for architecture in TABLE:
        assert list(build(architecture, tasks)(torch.randn(2, 3, 32, 32)).outputs)[-1] == "train"


@pytest.mark.parametrize("architecture", [name for name in TABLE if name != "constant"])  # it has no features to drop
@pytest.mark.parametrize("head", ["linear", "mlp", "conv"])
def test_the_configured_dropout_reaches_every_head(architecture: str, head: str) -> None:
    image = torch.randn(4, 3, 32, 32)
    network = build(architecture, head=head, dropout=0.37).train()
    for h in network.heads:
        assert {m.p for m in h.modules() if isinstance(m, nn.Dropout)} == {0.37}
    first, second = network(image).outputs, network(image).outputs
    assert all(not torch.equal(first[n], second[n]) for n in first)
    without = build(architecture, head=head, dropout=0.0).train()
    without.begin_epoch(0, 2)  # a warm-up draws nothing else
    first, second = without(image).outputs, without(image).outputs
    assert all(torch.equal(first[n], second[n]) for n in first)


def test_single_trains_the_finest_class_unless_told() -> None:
    assert build("single").tasks.names == ("model",)
    assert build("single", task="weight").tasks.names == ("weight",)
    assert build("single", STEEL).tasks.names == ("class",)
    with pytest.raises(UserError, match="Did you mean 'model'"):
        build("single", task="modl")


def test_parallel_heads_see_one_dropout_mask() -> None:
    tasks = TaskSet((MAKE, Task("other", "classification", classes=("a", "b"))))
    network = build("parallel", tasks, dropout=0.5).train()
    network.heads[1].load_state_dict(network.heads[0].state_dict())
    outputs = network(torch.randn(4, 3, 32, 32)).outputs
    assert torch.equal(outputs["make"], outputs["other"])


# --- running ----------------------------------------------------------------------------------------------------------

BY_DEFAULT = [pytest.param(name, "tiny", {}, id=name) for name in TABLE]


@pytest.mark.parametrize(
    ("architecture", "backbone", "options"),
    [
        *(pytest.param(name, "short", {}, id=name) for name in TABLE),
        ("mtan", "vit_tiny", {}),  # the class token is convolved apart
        pytest.param("ple", "short", {"levels": 3, "gate": "image", "share_until": 0}, marks=pytest.mark.slow),
        ("dselect_k", "short", {"gate": "static", "share_until": 0, "k": 1, "experts": 3}),
        ("kem", "short", {"beta": 1e-3}),  # noise that evaluation leaves out
    ],
)
def test_evaluation_is_deterministic_compiles_to_one_graph_and_exports(
    architecture: str, backbone: str, options: dict
) -> None:
    network = build(architecture, PAIR, head="mixed", backbone=backbone, dropout=0.5, **options)
    for name, parameter in network.named_parameters():
        if "logits" in name:  # a tree that is not the first of several equal ones
            nn.init.normal_(parameter)
    assert_evaluates_compiles_exports(network)


@pytest.mark.parametrize("architecture", TABLE)
def test_the_parts_that_are_compiled_have_all_the_stages_and_are_called_as_modules(architecture: str) -> None:
    assert_compiled_parts_are_called_as_modules(build(architecture), {PassedOn: 3})


RUNNING = [
    *BY_DEFAULT,
    ("dselect_k", "tiny", {"gate": "static", "share_until": 0}),
    ("dselect_k", "tiny", {"gate": "image", "k": 1, "experts": 3}),
    ("cascade", "tiny", {"combine": "select", "feed": "softmax", "order": [["model", "weight"]]}),
    ("kem", "tiny", {"beta": 1e-3}),
    ("skem", "tiny", {"beta": 1e-3}),
]


def objective(network: Architecture, image: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(0)
    extra = network(image).extra_loss
    torch.manual_seed(0)  # the same branches
    return sum(losses(network, image), torch.zeros(()) if extra is None else extra)


@pytest.mark.parametrize(("architecture", "backbone", "options"), RUNNING)
def test_half_precision_in_channels_last_without_waiting_for_the_device(
    architecture: str, backbone: str, options: dict
) -> None:
    network = build(architecture, backbone=backbone, **options)
    network.train().to(memory_format=torch.channels_last)
    image = IMAGE.contiguous(memory_format=torch.channels_last)
    for epoch in (0, 9) if architecture == "ltb" else (9,):  # the warm-up, and drawn branches
        network.begin_epoch(epoch, 10)
        wide = objective(network, image)
        with NoHostRoundTrip():
            with torch.autocast("cpu", torch.bfloat16):
                total = objective(network, image)
            total.backward()  # outside, as in training
        assert total.dtype == torch.float32
        torch.testing.assert_close(total, wide, rtol=0.05, atol=0.05)
        assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
        network.zero_grad()


@pytest.mark.parametrize("architecture", ["mmoe", "cgc", "ple"])
def test_bfloat16_changes_little_of_mixed_maps(architecture: str) -> None:
    network = build(architecture, head="conv").eval().to(memory_format=torch.channels_last)
    image = IMAGE.contiguous(memory_format=torch.channels_last)
    expected = network(image).outputs
    with torch.autocast("cpu", torch.bfloat16):
        outputs = network(image).outputs
    for name, value in expected.items():
        torch.testing.assert_close(outputs[name].float(), value, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(("architecture", "backbone", "options"), RUNNING)
def test_a_step_depends_on_no_number(architecture: str, backbone: str, options: dict) -> None:
    """On the meta device there are none: whatever asks for one, as a copy to the host would, fails."""
    with torch.device("meta"):
        network = build(architecture, head="mlp", backbone=backbone, **options).train()
        network.begin_epoch(9, 10)
        sum(x.sum() for x in network(torch.randn(4, 3, 32, 32)).outputs.values()).backward()
    assert all(p.grad is not None for p in network.parameters())
