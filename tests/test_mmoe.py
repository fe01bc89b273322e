"""MMoE: Ma 2018's mixture, by hand and against LibMTL, and what its experts share."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtlcar.architectures.gates import Gate, mix, over_positions
from mtlcar.errors import UserError
from mtlcar.tasks import TaskSet
from tests.expert_networks import (
    Adder,
    assert_weights_reach_every_trunk,
    libmtl_outputs,
    of_adders,
    put_all_on_first,
    set_gate,
    values,
    with_mixed_heads,
)
from tests.networks import (
    CARS,
    IMAGE,
    MAKE,
    PAIR,
    assert_compiled_parts_are_called_as_modules,
    assert_shared_is_what_two_losses_reach_and_none_is_idle,
    build,
    losses,
    same_outputs,
)

IMAGE_GATE = {"gate": "image", "share_until": 0}


def test_the_mixture_by_hand() -> None:
    # Stem + 1; experts + 10, + 20, + 30. A gate weighs 1/8, 2/8, 5/8 where the stem's map is 1, and 1/3 each where 0.
    network = of_adders("mmoe", [Adder(1, 10), Adder(1, 20), Adder(1, 30)])
    set_gate(network.gates[0], at_one=(1, 2, 5), at_zero=(1, 1, 1))
    set_gate(network.gates[1], at_one=(3, 1, 1e-9))
    image = torch.stack([torch.zeros(3, 2, 2), -torch.ones(3, 2, 2)])
    a, b = values(network, image)
    torch.testing.assert_close(a, torch.tensor([1 + (10 + 2 * 20 + 5 * 30) / 8, 0 + 20.0]))
    torch.testing.assert_close(b, torch.tensor([1 + (3 * 10 + 20) / 4, 0 + (3 * 10 + 20) / 4]))


def test_the_gate_reads_the_mean_over_positions_of_the_stem_or_all_pixels() -> None:
    image = torch.zeros(1, 3, 2, 2)
    image[0, :, 0, 0] = 4  # mean 1 at a stem that adds nothing
    network = of_adders("mmoe", [Adder(0, 10), Adder(0, 20)], experts=2)
    for gate in network.gates:
        set_gate(gate, at_one=(1, 3), at_zero=(1, 0.001))
    torch.testing.assert_close(values(network, image)[0], torch.tensor([1 + 17.5]))
    network = of_adders("mmoe", [Adder(0, 10), Adder(0, 20)], experts=2, **IMAGE_GATE)
    assert network.gates[0].linear.weight.shape == (2, 12)
    with torch.no_grad():
        network.gates[0].linear.bias.zero_()
        network.gates[0].linear.weight.zero_()
        network.gates[0].linear.weight[1, 4] = torch.tensor(3.0).log() / 4  # the second channel's first pixel
    torch.testing.assert_close(values(network, image)[0], torch.tensor([1 + 17.5]))


def test_heads_that_take_vectors_mix_vectors_that_each_expert_pools() -> None:
    trunks = [Adder(0, 10, scale=1.0), Adder(0, 20, scale=3.0)]
    network = of_adders("mmoe", trunks, experts=2)
    for gate in network.gates:
        set_gate(gate, at_one=(1, 1))
    torch.testing.assert_close(values(network, torch.zeros(1, 3, 2, 2))[0], torch.tensor([(10 + 3 * 20) / 2]))


def test_with_all_weight_on_one_expert_it_is_hard_parameter_sharing() -> None:
    network, parallel = build("mmoe", head="mixed"), build("parallel", head="mixed")
    put_all_on_first(network)
    parallel.backbone.load_state_dict(network.backbone.state_dict())
    parallel.heads.load_state_dict(network.heads.state_dict())
    same_outputs(parallel, network)


@pytest.mark.parametrize("head", ["mlp", "conv"])
def test_it_gives_what_libmtl_gives(head: str) -> None:
    network = build("mmoe", head=head, **IMAGE_GATE).eval()
    image = torch.randn(4, 3, 32, 32)
    expected = libmtl_outputs("MMoE", network, [0, 1, 2], [3], image)
    for name, value in network(image).outputs.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-5)


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_mix_is_the_weighted_sum_in_any_shape(data: st.DataObject) -> None:
    experts, batch = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 3))
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    weights, parts = torch.rand(batch, experts), torch.randn(experts, batch, *shape)
    expected = torch.einsum("be,eb...->b...", weights.double(), parts.double())
    torch.testing.assert_close(mix(weights, parts.unbind()), expected.float())


def test_gates_stay_in_float32_under_autocast_and_maps_keep_type_and_memory_format() -> None:
    gate, feature_map = Gate(16, 3), torch.randn(5, 16, 4, 4).to(torch.bfloat16, memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        features = over_positions(feature_map)
        weights = gate(features)
        mixed = mix(weights, [feature_map, 2 * feature_map, 3 * feature_map])
    assert features.dtype == weights.dtype == torch.float32
    torch.testing.assert_close(weights.sum(1), torch.ones(5), rtol=0, atol=1e-6)
    assert mixed.dtype == torch.bfloat16
    assert mixed.is_contiguous(memory_format=torch.channels_last)


# --- what is shared ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        ("tiny", {"experts": 2, **IMAGE_GATE}),
        ("vit_tiny", {"share_until": 3}),
        ("tiny", {"frozen": 2}),
        ("tiny", {"frozen": 4}),
    ],
)
def test_shared_parameters_are_those_that_two_losses_reach_and_none_is_idle(backbone: str, options: dict) -> None:
    network = build("mmoe", head="mixed", backbone=backbone, **options)
    assert_shared_is_what_two_losses_reach_and_none_is_idle(network)


@pytest.mark.parametrize("tasks", [PAIR, CARS], ids=["one vector head", "two vector heads"])
def test_poolings_are_shared_where_two_heads_take_vectors(tasks: TaskSet) -> None:
    network = with_mixed_heads("mmoe", tasks)
    assert_shared_is_what_two_losses_reach_and_none_is_idle(network)
    scales = {id(e.scale) for e in network.experts}
    assert len(scales & {id(p) for p in network.shared_parameters()}) == (3 if tasks is CARS else 0)


def test_the_parts_that_are_compiled_are_the_stages() -> None:
    network = build("mmoe", **IMAGE_GATE)
    assert_compiled_parts_are_called_as_modules(network)
    assert len(list(network.compiled_parts())) == 3 * 4


def test_pretrained_weights_reach_every_expert_and_the_gates_tell_equal_experts_apart(tmp_path: Path) -> None:
    network = assert_weights_reach_every_trunk("mmoe", tmp_path / "w.pt", 3)
    for loss in losses(network.train(), IMAGE):
        loss.backward(retain_graph=True)
    first, *others = (e.stage(3)[0][0].weight.grad for e in network.experts)
    for grad in others:  # not even proportional, which Adam would not see
        assert torch.cosine_similarity(first.flatten(), grad.flatten(), 0) < 0.9999


def test_vits_experts_may_share_blocks_and_the_token_row_survives_the_mixture() -> None:
    network = build("mmoe", backbone="vit_tiny", share_until=2).eval()
    put_all_on_first(network)
    trunk, image = network.backbone, torch.randn(2, 3, 32, 32)
    z = trunk.pool(trunk(image)[-1])
    torch.testing.assert_close(network(image).outputs["make"], network.heads[0](z))


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        (
            {"experts": 1},
            "architecture.experts should be a whole number of at least 2 .*architecture=parallel.* Found 1",
        ),
        ({"experts": 2.0}, "architecture.experts should be a whole number"),
        ({"share_until": 0}, "architecture.gate=stem reads what the stages common.*architecture.gate=image"),
        ({"share_until": 4}, "architecture.share_until should be a whole number from 0 to 3"),
        ({"gate": "pixels"}, "architecture.gate should be one of stem, image. Found 'pixels'"),
    ],
)
def test_impossible_options_are_refused(changes: dict, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        build("mmoe", **changes)


def test_one_task_is_refused() -> None:
    with pytest.raises(UserError, match="architecture=mmoe needs at least two tasks"):
        build("mmoe", TaskSet((MAKE,)))
