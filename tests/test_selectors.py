"""DSelect-k's gate by hand: the smooth step, the codes of the experts, and both regularisers."""

import itertools
import math

import pytest
import torch

from mtlcar.architectures.selectors import Selectors, entropy, inverse_mass, smooth_step


@pytest.mark.parametrize("gamma", [0.3, 1.0, 7.0])
def test_the_smooth_step(gamma: float) -> None:
    t = torch.tensor([-1e30, -gamma, -0.5 * gamma, -0.25 * gamma, 0, 0.25 * gamma, 0.5 * gamma, gamma, 1e30])
    t.requires_grad_()
    value = smooth_step(t, gamma)
    torch.testing.assert_close(value, torch.tensor([0, 0, 0, 5 / 32, 0.5, 27 / 32, 1, 1, 1]))
    assert set(value[[0, 1, 7, 8]].tolist()) == {0.0, 1.0}
    torch.testing.assert_close(
        value, torch.where(t.abs() < gamma / 2, -2 * t**3 / gamma**3 + 1.5 * t / gamma + 0.5, value)
    )
    (slope,) = torch.autograd.grad(value.sum(), t)
    torch.testing.assert_close(slope * gamma, torch.tensor([0, 0, 0, 1.125, 1.5, 1.125, 0, 0, 0]), atol=1e-5, rtol=0)
    inside_and_out = torch.linspace(-gamma, gamma, 20, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: smooth_step(x, gamma), inside_and_out)


def set_bits(gate: Selectors, bits: list[list[float]], alpha: list[float] | None = None) -> None:
    """Constants: S(z) of each selector and bit (0, 1/2, 1 or 27/32), and softmax(alpha)."""
    z = {0.0: -1.0, 0.5: 0.0, 27 / 32: 0.25, 1.0: 1.0}
    with torch.no_grad():
        for layer in (gate.z, gate.alpha):
            for p in [] if layer is None else layer.parameters():
                p.zero_()
        gate.z.bias.copy_(gate.gamma * torch.tensor([z[s] for row in bits for s in row]))
        if alpha:
            gate.alpha.bias.copy_(torch.tensor(alpha).log())


def test_the_mixture_by_hand() -> None:
    # Bits 1, 1/2: experts 2 and 3 (binary 10 and 11) half each; bits 27/32, 0: expert 0 (00) 5/32 and expert 2 27/32.
    gate = Selectors(4, k=2, gamma=0.5, features=None)
    set_bits(gate, [[1.0, 0.5], [27 / 32, 0.0]], alpha=[0.25, 0.75])
    g, r = gate(torch.zeros(3, 7))
    torch.testing.assert_close(r[1], torch.tensor([[0, 0, 0.5, 0.5], [5 / 32, 0, 27 / 32, 0]]))
    torch.testing.assert_close(g, torch.tensor([15 / 128, 0, 1 / 8 + 81 / 128, 1 / 8]).expand(3, 4))


@pytest.mark.parametrize("experts", [2, 3, 4, 5, 8])
def test_saturated_bits_pick_one_expert_and_every_expert_has_its_code(experts: int) -> None:
    bits = math.ceil(math.log2(experts))
    gate = Selectors(experts, k=1, gamma=1.0, features=None)
    rows = []
    for code in itertools.product([0.0, 1.0], repeat=bits):  # counts upwards
        set_bits(gate, [list(code)])
        rows.append(gate(torch.zeros(1, 1))[0][0])
    found = torch.stack(rows)
    assert torch.equal(found[:experts], torch.eye(experts))
    assert torch.equal(found[experts:], torch.zeros(len(found) - experts, experts))


def test_a_missing_experts_mass_is_left_out_and_the_regularisers_by_hand() -> None:
    gate = Selectors(3, k=1, gamma=1.0, features=None)
    set_bits(gate, [[0.5, 0.5]])
    g, r = gate(torch.zeros(2, 1))
    torch.testing.assert_close(g, torch.full((2, 3), 0.25))
    torch.testing.assert_close(inverse_mass(r), torch.full((2, 1), 4 / 3))
    torch.testing.assert_close(entropy(r), torch.full((2, 1), 0.75 * math.log(4)), atol=1e-5, rtol=0)
    set_bits(gate, [[1.0, 1.0]])  # a code without an expert: finite, not infinite
    r = gate(torch.zeros(1, 1))[1]
    assert inverse_mass(r).isfinite().all()
    (grad,) = torch.autograd.grad((entropy(r) + inverse_mass(r)).sum(), gate.z.bias)
    assert grad.isfinite().all()


@pytest.mark.parametrize("features", [None, 1, 64, 3 * 224 * 224])
def test_every_bit_starts_in_the_middle_where_its_gradient_is(features: int | None) -> None:
    torch.manual_seed(0)
    gate = Selectors(4, k=2, gamma=0.1, features=features)
    z = gate.z(torch.randn(8, features or 1))
    assert z.abs().max() < 0.1 * gate.gamma
    assert z.unique().numel() > 1
    (g,) = torch.autograd.grad(gate(torch.randn(8, features or 1))[0][:, 1].sum(), gate.z.bias)
    assert (g.abs() > 0).all()
