"""DSelect-k: the mixture and the regularisers of all tasks, and LibMTL's class where it computes the same."""

from pathlib import Path

import pytest
import torch
from torch import nn

from mtlcar.architectures.cost import cost
from mtlcar.architectures.dselect_k import DSelectK
from mtlcar.errors import UserError
from mtlcar.tasks import TaskSet
from tests.expert_networks import Adder, Encoder, assert_weights_reach_every_trunk, of_adders, values
from tests.networks import (
    CARS,
    MAKE,
    assert_compiled_parts_are_called_as_modules,
    assert_shared_is_what_two_losses_reach_and_none_is_idle,
    build,
    libmtl,
    same_outputs,
)
from tests.test_selectors import set_bits

IMAGE = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))
GATES = ({"gate": "static"}, {"gate": "stem"}, {"gate": "image"})


def test_the_network_by_hand() -> None:
    trunks = [Adder(1, 10), Adder(1, 20), Adder(1, 30), Adder(1, 40)]
    network = of_adders("dselect_k", trunks, gate="static")
    set_bits(network.gates[0], [[0.0, 1.0], [1.0, 1.0]], alpha=[0.25, 0.75])  # experts 1 and 3
    set_bits(network.gates[1], [[1.0, 0.5], [1.0, 0.0]], alpha=[0.5, 0.5])  # 2 and 3 half each, 2
    a, b = values(network, torch.zeros(2, 3, 2, 2))
    torch.testing.assert_close(a, torch.full((2,), 1 + 0.25 * 20 + 0.75 * 40))
    torch.testing.assert_close(b, torch.full((2,), 1 + 0.75 * 30 + 0.25 * 40))


def test_one_saturated_selector_is_hard_parameter_sharing() -> None:
    network, parallel = build("dselect_k", head="mixed", gate="static", k=1), build("parallel", head="mixed")
    for gate in network.gates:
        set_bits(gate, [[0.0, 0.0]])
    parallel.backbone.load_state_dict(network.backbone.state_dict())
    parallel.heads.load_state_dict(network.heads.state_dict())
    same_outputs(parallel, network)


@pytest.mark.parametrize("options", GATES)
@pytest.mark.parametrize("experts", [3, 4])
def test_the_regulariser_is_over_all_tasks_and_selectors_and_the_batch_mean(experts: int, options: dict) -> None:
    network = build("dselect_k", experts=experts, entropy=0.7, **options)
    x = network.gate_features(network.backbone.through(IMAGE, 0, 1), IMAGE)
    expected = torch.zeros(())
    for gate in network.gates:
        for i in range(2):
            for image in range(4):
                r = gate(x)[1][image, i]
                expected = expected - 0.7 * (r * r.log()).sum() / 4 + ((1 / r.sum()) / 4 if experts == 3 else 0)
    loss = network.train()(IMAGE).extra_loss
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-5)
    loss.backward()
    assert all(p.grad.abs().sum() > 0 for gate in network.gates for p in gate.z.parameters())
    assert network.eval()(IMAGE).extra_loss is None
    assert (build("dselect_k", experts=experts, entropy=0.0)(IMAGE).extra_loss is None) == (experts == 4)


def test_descending_on_the_regulariser_makes_every_selector_choose_an_expert() -> None:
    network = build("dselect_k", experts=3, gate="static", entropy=1.0).train()
    optimizer = torch.optim.SGD(network.gates.parameters(), lr=0.02)
    for _ in range(400):
        optimizer.zero_grad()
        network.mixtures(IMAGE, IMAGE)[1].backward()
        optimizer.step()
    for gate in network.gates:
        g, r = gate(IMAGE)
        torch.testing.assert_close(r.max(-1).values, torch.ones(4, 2), atol=1e-3, rtol=0)
        torch.testing.assert_close(g.sum(1), torch.ones(4), atol=1e-3, rtol=0)


@pytest.mark.parametrize("experts", [3, 4])
def test_it_gives_what_libmtl_gives_and_regularises_all_tasks_instead_of_the_last(experts: int) -> None:
    network = build("dselect_k", head="mlp", gate="image", share_until=0, experts=experts)
    names = list(network.tasks.names)
    made = iter([Encoder(trunk, "vector") for trunk in network.experts])
    peer = libmtl("DSelect_k").DSelect_k(
        names,
        lambda: next(made),
        nn.ModuleDict(dict(zip(names, network.heads, strict=True))),
        rep_grad=False,
        multi_input=False,
        device=IMAGE.device,
        img_size=[3, 32, 32],
        num_experts=[experts],
        num_nonzeros=2,
        kgamma=1.0,
    )
    with torch.no_grad():  # theirs saturates some bits from the start
        for name, gate in zip(names, network.gates, strict=True):
            gate.z.load_state_dict(peer._z_logits[name].state_dict())
            gate.alpha.load_state_dict(peer._w_logits[name].state_dict())
    # Theirs makes the codes from strings, and to NumPy 2.4 the string "0" is true: all experts get one code.
    peer._binary_codes = network.gates[0].codes[None]
    expected = peer.eval()(IMAGE)
    for name, value in network.eval()(IMAGE).outputs.items():
        torch.testing.assert_close(value, expected[name].reshape(value.shape), rtol=1e-5, atol=1e-5)
    peer.train()(IMAGE)  # a backward pass of the regulariser, summed over the batch
    network.train()(IMAGE).extra_loss.backward()
    grads = [gate.z.weight.grad * len(IMAGE) for gate in network.gates]
    theirs = peer._z_logits[names[-1]].weight.grad
    torch.testing.assert_close(grads[-1], theirs, rtol=1e-4, atol=1e-6 * theirs.abs().max().item())
    assert all(peer._z_logits[name].weight.grad is None for name in names[:-1])
    assert all(g.abs().sum() > 0 for g in grads)


# --- the promises of every architecture -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        ("tiny", {"gate": "static"}),
        ("vit_tiny", {"gate": "image"}),
        ("tiny", {"gate": "static", "share_until": 0}),
        ("tiny", {"k": 1}),
        ("tiny", {"experts": 3, "k": 3}),
        ("tiny", {"frozen": 2}),
        ("tiny", {"frozen": 4}),
    ],
)
def test_shared_parameters_are_those_that_two_losses_reach_and_none_is_idle(backbone: str, options: dict) -> None:
    network = build("dselect_k", head="mixed", backbone=backbone, **options)
    assert_shared_is_what_two_losses_reach_and_none_is_idle(network)


def test_every_expert_has_the_pretrained_weights_and_compiles_stage_by_stage(tmp_path: Path) -> None:
    assert_weights_reach_every_trunk("dselect_k", tmp_path / "weights.pt", 4)
    assert_compiled_parts_are_called_as_modules(build("dselect_k", gate="static", share_until=0))


def test_the_parameters_are_mmoes_and_the_selectors() -> None:
    def size(network: nn.Module) -> int:
        return sum(p.numel() for p in network.parameters())

    mmoe, width = build("mmoe", experts=5), build("parallel").backbone.channels[0]
    rest = size(mmoe) - size(mmoe.gates)
    for gate, inputs in (("static", 0), ("stem", width), ("image", 3 * 32 * 32)):
        network = build("dselect_k", experts=5, gate=gate)
        assert size(network) == rest + 3 * (inputs + 1) * (2 * 3 + 2)
        assert isinstance(network, DSelectK)


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"tasks": TaskSet((MAKE,))}, "architecture=single"),
        ({"gate": "pixels"}, "architecture.gate should be one of static, stem, image"),
        ({"share_until": 0}, "architecture.gate=image"),
        ({"gamma": 0.0}, "architecture.gamma should be a number above 0"),
        ({"entropy": -1.0}, "architecture.entropy"),
        ({"k": 0}, "architecture.k should be a whole number of at least 1"),
        ({"k": 5}, "architecture.k should be at most architecture.experts=4. Found 5"),
        ({"experts": 1, "k": 1}, "architecture=parallel"),
    ],
)
def test_impossible_options_are_refused(options: dict, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        build("dselect_k", options.get("tasks", CARS), **{k: v for k, v in options.items() if k != "tasks"})


def test_constant_gates_are_counted_too() -> None:
    found = cost(build("dselect_k", gate="static"), 32)
    assert found["forward_gmacs"] > 0
