"""Learning to branch: the definition on networks small enough to compute by hand, and what its tree leaves out."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from mtlcar.architectures.branches import Choice
from mtlcar.architectures.ltb import LTB
from mtlcar.backbones.base import BackboneFactory, StagedBackbone
from mtlcar.errors import UserError
from mtlcar.heads.base import SameKind
from mtlcar.heads.linear import Linear
from mtlcar.tasks import Task, TaskSet
from tests.networks import (
    CARS,
    IMAGE,
    MAKE,
    assert_shared_is_what_two_losses_reach_and_none_is_idle,
    build,
    losses,
)


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.by * x


class Scales(StagedBackbone):
    """Three stages that each multiply by a number."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(Scale() for _ in range(3))
        self.channels = (3, 3, 3)

    def pool(self, feature_map: Tensor) -> Tensor:
        return feature_map.mean((2, 3))


def by_hand() -> LTB:
    """Two values from a white image: 2 shared, then branches 3 and 5, then 7 for task a and 11 for task b."""
    tasks = TaskSet((Task("a", "regression"), Task("b", "regression")))
    network = LTB(tasks=tasks, backbone=BackboneFactory(Scales, 4), head=SameKind(Linear))
    (first, second) = (network._trunk(j) for j in (0, 1))
    scales = {
        first.stage(0): 2.0,
        first.stage(1): 3.0,
        second.stage(1): 5.0,
        first.stage(2): 7.0,
        second.stage(2): 11.0,
    }
    with torch.no_grad():
        for stage, by in scales.items():
            stage.by.fill_(by)
        for head in network.heads:
            head.output.weight.fill_(1 / 3)
            head.output.bias.zero_()
    return network.train()


def prefer(network: LTB, parents: dict[int, list[int]], by: float = 1000.0) -> None:
    """Logits that leave no doubt: step -> the parent of each branch."""
    with torch.no_grad():
        for step, chosen in parents.items():
            for choice, parent in zip(network._choices(step), chosen, strict=True):
                choice.logits.zero_()[parent] = by


SHAPES = [
    ("tiny", "linear", {}),
    ("vit_tiny", "mlp", {"branches": 2, "share_until": 0}),
    ("tiny", "conv", {"branches": 4}),
    ("vit_tiny", "mixed", {"branches": 4, "share_until": 2}),
    ("tiny", "mixed", {"branches": 2, "frozen": 2}),
    ("tiny", "linear", {"frozen": 3, "share_until": 2}),
]


@pytest.mark.parametrize(("backbone", "head", "options"), SHAPES[1:])
def test_shared_parameters_are_those_that_two_losses_reach_in_both_phases_and_none_is_idle(
    backbone: str, head: str, options: dict
) -> None:
    network = build("ltb", backbone=backbone, head=head, **options)
    assert_shared_is_what_two_losses_reach_and_none_is_idle(network)


def test_in_the_warm_up_all_but_the_logits_learn() -> None:
    network = build("ltb").train()
    network.begin_epoch(0, 2)
    sum(losses(network, IMAGE)).backward()
    assert all(("logits" in n) == (not p.grad.any()) for n, p in network.named_parameters())


# --- the definition ---------------------------------------------------------------------------------------------------


def test_the_values_and_the_gradients_by_hand() -> None:
    network, white = by_hand(), torch.ones(1, 3, 4, 4)
    network.begin_epoch(0, 2)
    outputs = {n: v.item() for n, v in network(white).outputs.items()}
    assert outputs == pytest.approx({"a": 56, "b": 88})  # the mean of 6 and 10
    network.begin_epoch(1, 2)
    tau = network.temperature
    choice = network._choices(1)[0]
    prefer(network, {1: [1, 0]})
    assert {n: v.item() for n, v in network(white).outputs.items()} == pytest.approx({"a": 70, "b": 66})
    with torch.no_grad():
        choice.logits.copy_(torch.tensor([0.3, -0.2]))
    torch.manual_seed(5)
    a = network(white).outputs["a"]
    torch.manual_seed(5)
    noise = -torch.empty(2).exponential_().log()
    p = ((choice.logits + noise) / tau).softmax(0)
    value = torch.tensor([42.0, 70.0])
    (grad,) = torch.autograd.grad(a, choice.logits)
    torch.testing.assert_close(a.item(), value[p.argmax()].item())
    torch.testing.assert_close(grad, p * (value - (p * value).sum()) / tau)


@pytest.mark.parametrize("temperature", [0.1, 5.0])
def test_parents_are_drawn_by_the_softmax_of_the_logits_at_any_temperature(temperature: float) -> None:
    torch.manual_seed(0)
    choice = Choice(3)
    with torch.no_grad():
        choice.logits.copy_(torch.tensor([1.0, 0.0, -1.0]))
    draws = torch.stack([choice.weights(temperature).detach() for _ in range(4000)])
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(draws.mean(0), choice.logits.detach().softmax(0), atol=0.03, rtol=0)


def test_training_reads_the_chosen_path() -> None:
    network = build("ltb", warmup=0).train()
    parents = {1: [2, 0, 0], 2: [1, 1, 0]}
    prefer(network, parents)
    assert network.tree() == {"make": (0, 1, 0), "model": (0, 1, 1), "weight": (2, 0, 2)}
    outputs = copy.deepcopy(network)(IMAGE).outputs
    for head, (name, path) in zip(network.heads, network.tree().items(), strict=True):
        x = network.backbone.stage(0)(IMAGE)
        for k, j in enumerate(path, 1):
            x = network._trunk(j).stage(k)(x)
        expected = head(network._trunk(path[-1]).pool(x))
        torch.testing.assert_close(outputs[name], expected.reshape(outputs[name].shape))


def test_training_finds_the_branch_that_serves() -> None:
    torch.manual_seed(0)
    network, white = by_hand(), torch.ones(1, 3, 4, 4)
    network.begin_epoch(50, 100)
    optimizer = torch.optim.SGD([p for n, p in network.named_parameters() if "logits" in n], lr=0.3)
    for _ in range(150):
        optimizer.zero_grad()
        outputs = network(white).outputs  # 10 * 7 and 6 * 11 are what is wanted
        (((outputs["a"] - 70) / 28) ** 2 + ((outputs["b"] - 66) / 44) ** 2).sum().backward()
        optimizer.step()
    assert network.tree() == {"a": (1, 0), "b": (0, 1)}
    assert all(c.logits.softmax(0).max() > 0.8 for c in network._choices(1))


def test_the_schedule() -> None:
    network = build("ltb")
    assert network.temperature == 5.0  # never told of an epoch: the only one, which is no warm-up
    network.begin_epoch(0, 2)
    assert network.temperature is None
    found = []
    for epoch in range(100):
        network.begin_epoch(epoch, 100)
        found.append(network.temperature)
    assert found[:5] == [None] * 5
    assert found[5:] == pytest.approx([100 / 20 / math.sqrt(epoch + 1) for epoch in range(5, 100)])  # LibMTL's
    network = build("ltb", warmup=0, temperature=2.0, final_temperature=2.0)
    assert network.temperature == 2.0
    for epoch, epochs in ((0, 1), (0, 7), (6, 7)):
        network.begin_epoch(epoch, epochs)
        assert network.temperature == 2.0


@pytest.mark.parametrize("temperature", [None, 2.0])
def test_a_choice_keeps_the_maps_type_and_memory_format(temperature: float | None) -> None:
    maps = [x.contiguous(memory_format=torch.channels_last).bfloat16() for x in torch.randn(3, 2, 4, 5, 5)]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = Choice(3)(maps, temperature)
    assert mixed.dtype == torch.bfloat16
    assert mixed.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"tasks": TaskSet((MAKE,))}, "architecture=single"),
        ({"share_until": 3}, "from 0 to 2 .*2 must stay apart"),
        ({"share_until": 4}, "architecture.share_until should be"),
        ({"branches": 1}, "architecture.branches should be a whole number of at least 2. Found 1"),
        ({"branches": 2.0}, "architecture.branches"),
        ({"warmup": 1}, "architecture.warmup should be a number of at least 0 and below 1"),
        ({"temperature": 0.0, "final_temperature": 0.0}, "architecture.temperature should be a number above 0"),
        ({"temperature": 0.4}, r"final_temperature should be a number above 0 and at most 0.4"),
    ],
)
def test_impossible_options_are_refused(changes: dict, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        build("ltb", changes.pop("tasks", CARS), **changes)
