"""The constant baseline: one answer for all images, which training makes the best one."""

from typing import Any

import pytest
import torch
from hydra.utils import instantiate

from mtlcar.architectures.cost import cost, task_costs
from mtlcar.backbones.base import BackboneFactory
from mtlcar.errors import UserError
from mtlcar.losses import TaskLosses
from mtlcar.module import refuse_impossible
from mtlcar.optim import parameter_groups
from tests.networks import CARS, IMAGE, STEEL, build, node
from tests.test_architecture_matrix import FEW, WEIGHTINGS, composed, make, rig_of, without_gradient


def test_it_answers_zero_for_every_image_at_the_start_and_then_its_biases() -> None:
    network = build("constant")
    for x in network(IMAGE).outputs.values():
        assert not x.any()
    with torch.no_grad():
        for i, p in enumerate(network.parameters()):
            p += torch.arange(len(p)) + i
    expected = {"make": [0.0, 1.0], "model": [1.0, 2.0, 3.0], "weight": 2.0}
    for name, x in network(IMAGE).outputs.items():
        assert x.tolist() == [expected[name]] * len(IMAGE)


def test_it_has_a_number_an_output_and_calls_neither_trunk_nor_head() -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("weights would be read for nothing")

    network = instantiate(node("architecture", "constant"), _partial_=True)(
        tasks=CARS, backbone=BackboneFactory(never, 32), head=never
    )
    assert [tuple(p.shape) for p in network.parameters()] == [(2,), (3,), (1,)]
    assert (network.backbone.mean, network.backbone.std) == ((0.5,) * 3, (0.5,) * 3)


def test_training_finds_the_frequencies_and_the_mean() -> None:
    network = build("constant", STEEL)
    labels = {"class": torch.tensor([0, 0, 0, 1, 1, 2]), "hardness": torch.tensor([100.0, 200, 300, 400, 500, 900])}
    losses = TaskLosses(STEEL).fit(labels)
    mean = losses.predictions(network(IMAGE).outputs)["hardness"]
    torch.testing.assert_close(mean, torch.full((6,), 400.0))
    start = losses(network(IMAGE).outputs, labels)
    torch.testing.assert_close(start[1], torch.tensor(1.0))  # the variance, standardised
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    for _ in range(300):
        optimizer.zero_grad()
        losses(network(IMAGE).outputs, labels).sum().backward()
        optimizer.step()
    outputs = network(IMAGE).outputs
    torch.testing.assert_close(losses.scores(outputs)["class"][0], torch.tensor([3, 2, 1]) / 6, atol=1e-4, rtol=0)
    torch.testing.assert_close(losses.predictions(outputs)["hardness"], mean)


def test_its_biases_learn_without_weight_decay() -> None:
    (group,) = parameter_groups(build("constant"), lr=0.1, weight_decay=0.5)
    assert (len(group["params"]), group["lr"], group["weight_decay"]) == (3, 0.1, 0.0)


def test_it_costs_nothing() -> None:
    network = build("constant")
    assert cost(network, 32) == {
        "parameters": 6, "shared_parameters": 0, "pruned_parameters": 6, "forward_gmacs": 0.0
    }  # fmt: skip
    found = task_costs(network, 32)
    assert found["task_gmacs"] == dict.fromkeys(CARS.names, 0.0)


def test_weightings_of_gradients_have_nothing_to_balance() -> None:
    rig = rig_of("constant", "backbone=tiny", "data.image_size=32", *FEW)
    for words in WEIGHTINGS:
        weighting = make(composed(*words).weighting, tasks=rig.tasks)
        if weighting.takes_gradients_apart:
            with pytest.raises(UserError, match="architecture=constant has no trunk and shares nothing"):
                refuse_impossible(rig.architecture, weighting)
        else:
            assert without_gradient(rig, weighting) == []
