"""GradDrop where every task has its own representation: feature by feature the tasks compete."""

import pytest
import torch
from torch import Tensor, nn

from mtlcar.architectures.base import Architecture
from mtlcar.weightings.gradients import Step
from tests.networks import CARS, IMAGE, build, losses
from tests.weighting_net import make


def step_of(network: Architecture, each: Tensor, between: tuple[Tensor, ...], factor: float) -> Step:
    shared = list(network.shared_parameters())
    ids = {id(p) for p in shared}
    private = [p for p in network.parameters() if id(p) not in ids]
    one = torch.ones(())
    return Step(each, one * factor, one, shared, private, list(network.above_bottleneck()), between)


def forward(network: Architecture) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Losses [T], and what each head took."""
    found: list[tuple[Tensor, ...]] = []
    handle = network.register_forward_hook(lambda _, __, shared: found.append(shared.representations))
    each = torch.stack(losses(network, IMAGE))
    handle.remove()
    return each, found[0]


def by_hand(network: Architecture, leak: float, u: Tensor, factor: float) -> dict[str, Tensor]:
    """The definition feature by feature, in loops; the whole graph is walked once from the masked gradients."""
    each, z = forward(network)
    grads = [torch.autograd.grad(loss, x, retain_graph=True)[0] for loss, x in zip(each, z, strict=True)]
    masked = [torch.empty_like(g) for g in grads]
    for d in range(z[0].shape[1]):
        s = [float((x[:, d].detach().sign() * g[:, d]).sum()) for x, g in zip(z, grads, strict=True)]
        total = sum(map(abs, s))
        p = (1 + sum(s) / total) / 2 if total else float("nan")
        for t, g in enumerate(grads):
            keep = (s[t] > 0 and p > u[d]) or (s[t] < 0 and p <= u[d])
            masked[t][:, d] = (1.0 if keep else leak) * g[:, d]
    heads = torch.autograd.grad(each.sum(), list(network.heads.parameters()), retain_graph=True)
    below = {n: p for n, p in network.named_parameters() if not n.startswith("heads.")}
    trunk = torch.autograd.grad(z, list(below.values()), masked)
    names = [n for n, _ in network.named_parameters() if n.startswith("heads.")]
    return {n: factor * g for n, g in [*zip(below, trunk, strict=True), *zip(names, heads, strict=True)]}


@pytest.mark.parametrize("leak", [0.0, 0.3])
@pytest.mark.parametrize("name", ["cross_stitch", "mtan", "mmoe"])
def test_graddrop_without_a_bottleneck_is_the_definition_over_the_tasks_representations(name: str, leak: float) -> None:
    network = build(name, CARS).train()
    network.apply(lambda m: setattr(m, "momentum", 0.0) if isinstance(m, nn.BatchNorm2d) else None)
    weighting = make("graddrop", CARS, leak=leak)
    u = torch.rand(network.backbone.features, generator=make("graddrop", CARS).draw())
    expected = by_hand(network, leak, u, factor=0.5)
    each, between = forward(network)
    applied = weighting.backward(step_of(network, each, between, factor=0.5))
    for n, p in network.named_parameters():
        torch.testing.assert_close(p.grad, expected[n], rtol=1e-4, atol=1e-6, msg=n)
    assert applied.weights is not None
    assert bool((applied.weights >= leak).all())
    assert bool((applied.weights < 1).all())
