"""No weighting makes a GPU wait: on up to four tasks nothing of its arithmetic has to come to the host."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from mtlcar.weightings.base import GradientCombiner, GramianWeighting, LossWeighting, Weighting
from mtlcar.weightings.draws import RandomWeighting
from tests.test_weighting_rows import CASES, built
from tests.weighting_net import NoHostRoundTrip

ADAPTERS = ("callable", "torchjd")  # somebody else's arithmetic
CALLS = 3  # the first call of a method with a state is often a shorter one
BATCH, FEATURES = 4, 5


class NoCopyOut(TorchFunctionMode):
    """Fails at the copies to the host that are none for the CPU tensors of a test."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert getattr(func, "__name__", "") not in ("tolist", "numpy", "cpu", "__array__"), func
        return func(*args, **(kwargs or {}))


def once(weighting: Weighting, tasks: int, seed: int) -> None:
    """One call of what the kind defines, on inputs made outside the watched part."""
    g = torch.Generator().manual_seed(seed)
    J = torch.randn(tasks, BATCH * FEATURES, generator=g)
    losses = torch.rand(tasks, generator=g) + 0.1
    gramian, features = J @ J.T, torch.randn(BATCH, FEATURES, generator=g)
    own_draws = isinstance(weighting, RandomWeighting)  # on the CPU, where it may read them
    with NoHostRoundTrip(), nullcontext() if own_draws else NoCopyOut():
        if isinstance(weighting, LossWeighting):
            leaf = losses.requires_grad_()
            own = [p for p in weighting.parameters() if p.requires_grad]
            grads = torch.autograd.grad(weighting(leaf), [leaf, *own])
            weighting._normalized(grads[0])
        elif isinstance(weighting, GramianWeighting):
            with torch.no_grad():
                weighting._normalized(weighting.weights(gramian, losses))
        else:
            assert isinstance(weighting, GradientCombiner)
            with torch.no_grad():
                weighting.combine(J, losses, features if weighting.level == "representation" else None)


@pytest.mark.parametrize("tasks", [2, 3, 4])
@pytest.mark.parametrize(("name", "level"), [c for c in CASES if c[0] not in ADAPTERS])
def test_no_value_is_waited_for(name: str, level: str, tasks: int) -> None:
    overrides: dict[str, Any] = {"level": level, "normalize": True}
    if name == "fixed":
        overrides["weights"] = {"make": 0.25, "weight": 3.0, "year": 1.0, "model": 2.0}
        overrides["weights"] = dict(list(overrides["weights"].items())[:tasks])
    weighting = built(name, tasks, **overrides)
    for seed in range(CALLS):
        once(weighting, tasks, seed)
        with NoHostRoundTrip(), NoCopyOut():
            weighting.on_train_epoch_end(None, None)  # type: ignore[arg-type]


def test_nothing_is_waited_for_after_famos_second_forward() -> None:
    weighting: Any = built("famo", 3)
    once(weighting, 3, 0)
    after = torch.tensor([0.2, 0.5, 0.9])
    with NoHostRoundTrip(), NoCopyOut():
        weighting.update(after)


@pytest.mark.parametrize(
    "wait",
    [
        lambda t: t[0].item(),
        lambda t: float(t[0]),
        lambda t: bool(t[0] > 0),
        lambda t: t[t > 0],
        lambda t: t.nonzero(),
        lambda t: t.tolist(),
        lambda t: torch.equal(t, t),
        lambda t: t.cpu(),
        lambda t: t.numpy(),
    ],
)
def test_every_way_to_wait_is_seen(wait: Any) -> None:
    with pytest.raises(AssertionError), NoHostRoundTrip(), NoCopyOut():
        wait(torch.tensor([1.0, -2.0, 3.0]))
