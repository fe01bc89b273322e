"""CGC and PLE: Tang 2020's gates, by hand and against LibMTL, and what their experts share."""

import itertools
from pathlib import Path

import pytest
import torch

from mtlcar.architectures.ple import segments
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
UNEVEN = {"shared_experts": 2, "task_experts": {"make": 0, "weight": 2}}
ZEROS = torch.zeros(1, 3, 2, 2)


def copied(target: torch.nn.Module, source: torch.nn.Module) -> None:
    target.load_state_dict(source.state_dict())


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_cgc_by_hand() -> None:
    # Stem + 1. Shared experts + 10, + 20; task a's + 100; b's + 1000, + 2000.
    trunks = [Adder(1, c) for c in (10, 20, 100, 1000, 2000)]
    network = of_adders("cgc", trunks, shared_experts=2, task_experts={"b": 2})
    set_gate(network.gates[0], at_one=(1, 2, 5), at_zero=(1, 1, 2))
    set_gate(network.gates[1], at_one=(1, 2, 3, 4))
    a, b = values(network, torch.stack([ZEROS[0], ZEROS[0] - 1]))
    torch.testing.assert_close(a, torch.tensor([1 + (10 + 40 + 500) / 8, (10 + 20 + 200) / 4]))
    torch.testing.assert_close(b, torch.tensor([1, 0]) + (10 + 40 + 3000 + 8000) / 10)


def test_ple_by_hand() -> None:
    # Stem + 1. Shared expert: + 10, then + 1; a's: + 20, then + 2; b's: + 40, then + 4.
    network = of_adders("ple", [Adder(1, 10, 1), Adder(1, 20, 2), Adder(1, 40, 4)])
    assert network.segments == [(1, 2), (2, 3)]
    for gate, weights in zip(network.gates[0], [(1, 3), (3, 1)], strict=True):
        set_gate(gate, at_one=weights)
    set_gate(network.shared_gates[0], at_one=(1, 1, 2))
    for gate, weights in zip(network.gates[1], [(1, 1), (1, 4)], strict=True):
        set_gate(gate, at_one=weights)
    x_a, x_b, x_s = 1 + (10 + 3 * 20) / 4, 1 + (3 * 10 + 40) / 4, 1 + (10 + 20 + 2 * 40) / 4
    a, b = values(network, ZEROS)
    assert a.item() == pytest.approx(((x_s + 1) + (x_a + 2)) / 2)
    assert b.item() == pytest.approx(((x_s + 1) + 4 * (x_b + 4)) / 5)


def test_each_gate_of_ple_reads_what_enters_its_level() -> None:
    # Level 0 sends 1 to task a and 0 to task b and to the shared experts of level 1, level 1 adds the experts' terms.
    network = of_adders("ple", [Adder(0, 0, 0, 10), Adder(0, 1, 0, 20), Adder(0, -1, 0, 40)], levels=3)
    assert network.segments == [(1, 2), (2, 3), (3, 4)]
    tiny = 1e-9
    set_gate(network.gates[0][0], at_one=(tiny, 1))  # x_a = 1
    set_gate(network.gates[0][1], at_one=(1, tiny))  # x_b = 0
    set_gate(network.shared_gates[0], at_one=(1, tiny, tiny))  # x_s = 0
    for gate in network.gates[1]:  # a's sees 1: on to its own expert, which saw 1; b's sees 0: to the shared one
        set_gate(gate, at_one=(tiny, 1), at_zero=(1, tiny))
    set_gate(network.shared_gates[1], at_one=(1, tiny, tiny), at_zero=(tiny, 1, tiny))  # sees 0: on to a's expert: 1
    for gate in network.gates[2]:
        set_gate(gate, at_one=(1, 3), at_zero=(3, 1))
    a, b = values(network, ZEROS)
    assert a.item() == pytest.approx(((1 + 10) + 3 * (1 + 20)) / 4, rel=1e-5)
    assert b.item() == pytest.approx((3 * (1 + 10) + (0 + 40)) / 4, rel=1e-5)


# --- identities -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("architecture", "more"), [("cgc", {}), ("ple", {"levels": 3})])
def test_with_all_weight_on_one_shared_expert_it_is_hard_parameter_sharing(architecture: str, more: dict) -> None:
    network, parallel = build(architecture, head="mixed", **more), build("parallel", head="mixed")
    put_all_on_first(network)
    copied(parallel.backbone, network.backbone)
    copied(parallel.heads, network.heads)
    same_outputs(parallel, network)


@pytest.mark.parametrize("more", [{}, UNEVEN, IMAGE_GATE])
def test_ple_of_one_level_is_cgc(more: dict) -> None:
    cgc, ple = build("cgc", head="mixed", **more), build("ple", head="mixed", levels=1, **more)
    for part in ("backbone", "others", "heads"):
        copied(getattr(ple, part), getattr(cgc, part))
    copied(ple.gates[0], cgc.gates)
    assert len(ple.gates) == 1
    assert len(ple.shared_gates) == 0
    same_outputs(cgc, ple)
    shared = [{n for n, p in x.named_parameters() if id(p) in set(map(id, x.shared_parameters()))} for x in (cgc, ple)]
    assert shared[0] == shared[1]


def test_cgc_without_private_experts_is_mmoe() -> None:
    cgc, mmoe = build("cgc", shared_experts=3, task_experts=0), build("mmoe", experts=3)
    copied(mmoe, cgc)
    same_outputs(cgc, mmoe)


@pytest.mark.parametrize("head", ["mlp", "conv"])
def test_cgc_gives_what_libmtl_gives(head: str) -> None:
    network = build("cgc", head=head, shared_experts=2, task_experts={"make": 1, "model": 2, "weight": 1}, **IMAGE_GATE)
    image = torch.randn(4, 3, 32, 32)
    # LibMTL makes the shared experts, then each task's.
    expected = libmtl_outputs("CGC", network.eval(), range(6), [2, 1, 2, 1], image)
    for name, value in network(image).outputs.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-5)


# --- what is shared ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "backbone", "options"),
    [
        ("cgc", "tiny", {**UNEVEN, **IMAGE_GATE}),
        ("cgc", "tiny", {"share_until": 3, "frozen": 2}),
        ("cgc", "tiny", {"frozen": 4}),
        ("ple", "tiny", {"levels": 1}),
        ("ple", "vit_tiny", {"levels": 3}),
        ("ple", "tiny", {"levels": 4, **UNEVEN, **IMAGE_GATE}),
        ("ple", "tiny", {"share_until": 2, "frozen": 3}),
        ("ple", "tiny", {"frozen": 4}),
    ],
)
def test_shared_parameters_are_those_that_two_losses_reach_and_none_is_idle(
    architecture: str, backbone: str, options: dict
) -> None:
    network = build(architecture, head="mixed", backbone=backbone, **options)
    assert_shared_is_what_two_losses_reach_and_none_is_idle(network)


@pytest.mark.parametrize(
    ("tasks", "shared_experts", "shared"), [(PAIR, 1, 0), (CARS, 1, 1), (CARS, 2, 2)], ids=["one vector", "two", "two2"]
)
@pytest.mark.parametrize("architecture", ["cgc", "ple"])
def test_poolings_are_shared_where_two_vector_heads_read_the_expert(
    architecture: str, tasks: TaskSet, shared_experts: int, shared: int
) -> None:
    network = with_mixed_heads(architecture, tasks, shared_experts=shared_experts)
    assert_shared_is_what_two_losses_reach_and_none_is_idle(network)
    # ... and that of the experts whose only reader takes the map does not train.
    assert [e.scale.requires_grad for e in network.experts] == [True] * (len(network.experts) - 1) + [False]
    assert sum(e.scale is p for e in network.experts for p in network.shared_parameters()) == shared


def test_a_lower_levels_private_experts_are_shared_by_way_of_the_shared_gate() -> None:
    network = build("ple", PAIR, levels=3)
    of_make, of_model = network.experts[1:]
    reach = {}
    for task, loss in zip(("make", "model"), losses(network, IMAGE), strict=True):
        for owner, expert in (("make", of_make), ("model", of_model)):
            weights = [expert.stage(k)[0][0].weight for k in (1, 2, 3)]
            grads = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
            reach[task, owner] = [g is not None and bool(g.any()) for g in grads]
    assert reach["make", "make"] == reach["model", "model"] == [True, True, True]
    assert reach["make", "model"] == reach["model", "make"] == [True, True, False]


@pytest.mark.parametrize(("architecture", "more"), [("cgc", {}), ("ple", {"levels": 4})])
def test_the_parts_that_are_compiled_are_the_stages(architecture: str, more: dict) -> None:
    assert_compiled_parts_are_called_as_modules(build(architecture, **more, **UNEVEN, **IMAGE_GATE))


@pytest.mark.parametrize(("architecture", "more"), [("cgc", UNEVEN), ("ple", {**UNEVEN, "levels": 3})])
def test_pretrained_weights_reach_every_expert_at_every_level(architecture: str, more: dict, tmp_path: Path) -> None:
    assert_weights_reach_every_trunk(architecture, tmp_path / "w.pt", 5, **more)


# --- options ----------------------------------------------------------------------------------------------------------


def test_segments_cover_the_stages_evenly_and_the_later_ones_are_longer() -> None:
    assert segments(1, 4, 2) == [(1, 2), (2, 4)]
    assert segments(0, 4, 3) == [(0, 1), (1, 2), (2, 4)]
    for start, stages in itertools.product((0, 2), range(1, 7)):
        for levels in range(1, stages + 1):
            found = segments(start, start + stages, levels)
            lengths = [b - a for a, b in found]
            assert [k for a, b in found for k in range(a, b)] == list(range(start, start + stages))
            assert lengths == sorted(lengths)
            assert max(lengths) - min(lengths) <= 1


@pytest.mark.parametrize("architecture", ["cgc", "ple"])
@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"shared_experts": 0}, "architecture.shared_experts should be a whole number of at least 1"),
        ({"task_experts": 0}, "architecture.task_experts should be .* at least 1 .*needs two shared.* Found 0"),
        ({"task_experts": {"make": 0}}, "architecture.task_experts.make should be"),
        ({"shared_experts": 2, "task_experts": -1}, "architecture.task_experts should be .* at least 0"),
        ({"task_experts": {"modle": 1}}, "names 'modle', which is no task here. Did you mean 'model'"),
        ({"task_experts": 1.5}, "architecture.task_experts should be a whole number"),
        ({"share_until": 0}, "architecture.gate=stem"),
        ({"gate": "pixels"}, "architecture.gate should be one of"),
        ({"share_until": 4}, "architecture.share_until should be"),
    ],
)
def test_impossible_options_are_refused(architecture: str, changes: dict, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        build(architecture, **changes)


@pytest.mark.parametrize(("levels", "share_until"), [(0, 1), (4, 1), (2, 3), (True, 1), (1.5, 1)])
def test_a_level_needs_a_stage(levels: object, share_until: int) -> None:
    with pytest.raises(UserError, match=f"architecture.levels should be 1 to {4 - share_until}: "):
        build("ple", levels=levels, share_until=share_until)


@pytest.mark.parametrize("architecture", ["cgc", "ple"])
def test_one_task_is_refused(architecture: str) -> None:
    with pytest.raises(UserError, match=f"architecture={architecture} needs at least two tasks"):
        build(architecture, TaskSet((MAKE,)))
