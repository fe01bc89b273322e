"""What every weighting promises, over all of conf/weighting."""

import copy
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from mtlcar.config import conf_dir, groups
from mtlcar.errors import UserError
from mtlcar.weightings.base import GradientCombiner, GramianWeighting, LossWeighting, Weighting
from tests.weighting_net import MAKE, SETS, Net, TaskSet, X, autograd_of_sum, grads, make
from tests.weighting_rows import GRADIENTS, LOSSES, OPPOSING, ROWS

NAMES = sorted(ROWS)
CASES = [(name, level) for name in NAMES for level in ROWS[name].levels or ("parameters",)]
SCALES = (1e-12, 1e-6, 1.0, 1e6, 1e12)


def built(name: str, tasks: int = 2, **overrides: Any) -> Weighting:
    row = ROWS[name]
    if row.extra:
        pytest.importorskip(row.extra, reason=f"the extra {row.extra} is not installed")
    own = {k: v for k, v in row.overrides.items() if k != "weights" or tasks == 2}
    torch.manual_seed(0)
    return make(name, SETS[tasks], **{**own, **overrides})


def gramian_methods() -> list[str]:
    from hydra.utils import get_class

    def target(name: str) -> Any:
        return get_class(OmegaConf.load(conf_dir() / "weighting" / f"{name}.yaml")._target_)

    return [name for name in NAMES if issubclass(target(name), GramianWeighting)]


GRAMIANS = gramian_methods()


def grid(tasks: int, dtype: torch.dtype, nearly: float = 1e-4) -> list[Tensor]:
    """Gramians from rank 1 to full, of gradients that agree, oppose or vanish, at very different scales.

    `nearly`: how far nearly identical gradients differ. At 1e-7 the Gramian's own float64 rounding is a percent of its
    small eigenvalues, so that methods which look at those (imtl, aligned_mtl) have no digits left to compare.
    """
    g = torch.Generator().manual_seed(tasks)
    found = []
    for rank in range(1, tasks + 1):
        for spread in (0.0, 3.0):
            J = torch.randn(tasks, rank, generator=g, dtype=torch.float64)
            found.append(J * 10 ** (spread * (torch.rand(tasks, 1, generator=g, dtype=torch.float64) - 0.5)))
    e = torch.eye(tasks, dtype=torch.float64)
    same, near = torch.ones(tasks, 1, dtype=torch.float64), torch.ones(tasks, tasks, dtype=torch.float64)
    opposed, one_zero = same.clone(), e.clone()
    opposed[0], one_zero[-1] = -1, 0
    found += [e, same, near + nearly * torch.randn(tasks, tasks, generator=g, dtype=torch.float64), opposed, one_zero]
    found += [torch.zeros(tasks, 2, dtype=torch.float64), opposed * 0.3, torch.tril(near)]
    return [((J * s) @ (J * s).T).to(dtype) for J in found for s in SCALES]


def test_every_yaml_has_its_row_and_every_row_its_yaml() -> None:
    assert sorted(ROWS) == groups()["weighting"]


@pytest.mark.parametrize("name", NAMES)
def test_yaml_gives_one_of_the_three_kinds_with_the_common_keys(name: str) -> None:
    cfg = OmegaConf.load(conf_dir() / "weighting" / f"{name}.yaml")
    row = ROWS[name]
    assert cfg.name == name
    assert cfg.weights is None
    assert cfg.normalize is False
    assert cfg.level == (row.levels[0] if row.levels else "parameters")
    weighting = built(name)
    assert isinstance(weighting, LossWeighting | GramianWeighting | GradientCombiner)
    assert weighting.takes_gradients_apart == bool(row.levels)
    documented = [type(weighting).__doc__ or ""]
    assert all("sum" in text.lower() for text in documented), "its docstring states what the weights sum to"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_first_weights_are_those_derived_by_hand(name: str, dtype: torch.dtype) -> None:
    weighting, expected = built(name), ROWS[name].expected
    losses, G = torch.tensor(LOSSES, dtype=dtype), torch.tensor(OPPOSING, dtype=dtype)
    if isinstance(weighting, LossWeighting):
        losses.requires_grad_()
        (found,) = torch.autograd.grad(weighting(losses), losses)
    elif isinstance(weighting, GramianWeighting):
        found = weighting.weights(G, losses)
        assert found.dtype == dtype
    else:
        assert isinstance(weighting, GradientCombiner)
        J = torch.linalg.cholesky(G.float())
        direction = weighting.combine(J.clone(), losses.float(), J[:1] if weighting.level == "representation" else None)
        assert direction.shape == (2,)
        assert weighting.applied is not None
        found = weighting.applied.to(dtype)
    assert found.isfinite().all()
    if expected is not None:
        close = 1e-5 if dtype == torch.float32 or isinstance(weighting, GradientCombiner) else 1e-9
        torch.testing.assert_close(found, torch.tensor(expected, dtype=dtype), rtol=close, atol=close)


# --- properties of the functions of a Gramian -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tasks", [2, 3, 4])
@pytest.mark.parametrize("name", GRAMIANS)
def test_weights_are_finite_over_every_geometry(name: str, tasks: int, dtype: torch.dtype) -> None:
    losses = torch.tensor([0.7, 2.0, 1.3, 0.1], dtype=dtype)[:tasks]
    fresh = built(name, tasks)
    geometries = grid(tasks, dtype)
    pairs = zip(geometries, grid(tasks, dtype, nearly=1e-7), strict=True)
    closer = [other for one, other in pairs if not torch.equal(one, other)]
    assert closer
    for G in [*geometries, *closer]:
        w = copy.deepcopy(fresh).weights(G, losses)
        assert w.shape == (tasks,)
        assert w.dtype == dtype
        assert w.isfinite().all(), (G, w)


@pytest.mark.parametrize("tasks", [2, 3, 4])
@pytest.mark.parametrize("name", [n for n in GRAMIANS if ROWS[n].permutes])
def test_permuting_the_tasks_permutes_the_weights(name: str, tasks: int) -> None:
    losses = torch.tensor([0.7, 2.0, 1.3, 0.1], dtype=torch.float64)[:tasks]
    fresh = built(name, tasks)
    orders = [torch.arange(tasks).roll(1), torch.arange(tasks).flip(0)][: tasks - 1]  # of two tasks they are the same
    for G in grid(tasks, torch.float64)[::2]:  # each geometry at two or three of the scales
        w = copy.deepcopy(fresh).weights(G, losses)
        for order in orders:
            other = copy.deepcopy(fresh).weights(G[order][:, order], losses[order])
            torch.testing.assert_close(other, w[order], rtol=1e-5, atol=1e-6 * float(w.abs().max()))


@pytest.mark.parametrize("tasks", [2, 3, 4])
@pytest.mark.parametrize("name", [n for n in GRAMIANS if ROWS[n].degree is not None])
def test_scaling_all_gradients_scales_the_weights_as_the_definition_says(name: str, tasks: int) -> None:
    losses = torch.tensor([0.7, 2.0, 1.3, 0.1], dtype=torch.float64)[:tasks]
    degree = ROWS[name].degree
    assert degree is not None
    fresh = built(name, tasks)
    for G in grid(tasks, torch.float64)[2 :: len(SCALES)]:  # those of scale 1
        w = copy.deepcopy(fresh).weights(G, losses)
        for s in (1e-9, 1e-3, 1e8):
            scaled = copy.deepcopy(fresh).weights(G * s**2, losses) * s**-degree
            torch.testing.assert_close(scaled, w, rtol=1e-5, atol=1e-6 * float(w.abs().max()))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", GRAMIANS)
def test_a_step_that_overflowed_is_counted_and_spoils_nothing(name: str, bad: float) -> None:
    weighting, untouched = built(name, 3), built(name, 3)
    losses, good = torch.tensor([0.7, 2.0, 1.3]), torch.eye(3) + 0.1
    for w in (weighting, untouched):
        w.weights(good, losses)
    before = int(weighting.degenerate)
    overflowed = good.clone()
    overflowed[0, 1] = overflowed[1, 0] = overflowed[0, 0] = bad
    if name not in ("callable",):  # what a user's function makes of a NaN is the user's
        assert weighting.weights(overflowed, losses).isfinite().all()
        assert int(weighting.degenerate) == before + 1
        state, plain = weighting.state_dict(), untouched.state_dict()
        for key in plain:
            if key not in ("degenerate", "_extra_state"):
                torch.testing.assert_close(state[key], plain[key])


# --- steps on a network -----------------------------------------------------------------------------------------------


def run(weighting: Weighting, steps: int, net: Net | None = None, **options: Any) -> list[list[Tensor]]:
    """Gradients of `steps` steps, each on its own images; parameters of net and weighting move along."""
    net = Net() if net is None else net
    found = []
    for k in range(steps):
        for p in (*net.parameters(), *weighting.parameters()):
            p.grad = None
        weighting.backward(net.step(X + 0.1 * k, **options))
        found.append(grads(net))
        with torch.no_grad():
            for p in (*net.parameters(), *weighting.parameters()):
                if p.grad is not None:
                    p -= 0.1 * p.grad
    return found


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(("name", "level"), CASES)
def test_gradients_are_the_applied_weights_times_the_task_gradients(name: str, level: str, normalize: bool) -> None:
    weighting = built(name, level=level, normalize=normalize)
    if isinstance(weighting, GradientCombiner):
        pytest.skip("more than weights times gradients; tests of its own")
    net = Net()
    applied = weighting.backward(net.step(X)).weights
    assert applied is not None
    if normalize:
        torch.testing.assert_close(applied.sum(), torch.tensor(2.0))
    rows = []
    for t in range(2):
        other = Net()
        losses, _ = other(X)
        losses[t].backward()
        rows.append([torch.zeros_like(p) if p.grad is None else p.grad for p in other.parameters()])
    weighted = [(a * applied[0] + b * applied[1]) for a, b in zip(*rows, strict=True)]
    plain = [a + b for a, b in zip(*rows, strict=True)]
    names = [n for n, _ in net.named_parameters()]
    for n, mine, w, p in zip(names, grads(net), weighted, plain, strict=True):
        if isinstance(weighting, LossWeighting):
            expected = w
        elif level == "parameters":
            expected = p if n.startswith("second") else w
        else:
            expected = w if n.startswith("trunk") else p
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "level"), CASES)
def test_weights_and_gradients_do_not_depend_on_the_fp16_scale(name: str, level: str) -> None:
    plain = run(built(name, level=level), 1)[0]
    scaled = run(built(name, level=level), 1, factor=65536.0, scale=65536.0)[0]
    torch.testing.assert_close([g / 65536 for g in scaled], plain)


@pytest.mark.parametrize(("name", "level"), [c for c in CASES if not ROWS[c[0]].averages])
def test_four_identical_micro_batches_are_one(name: str, level: str) -> None:
    net, weighting = Net(), built(name, level=level)
    for k in range(4):
        weighting.backward(net.step(X, factor=0.25, last=k == 3))
    torch.testing.assert_close(grads(net), run(built(name, level=level), 1)[0])


@pytest.mark.parametrize(("name", "level"), CASES)
def test_a_resumed_weighting_goes_on_as_if_never_stopped(name: str, level: str) -> None:
    whole = run(built(name, level=level), 6)
    net, first = Net(), built(name, level=level)
    run(first, 3, net)
    saved = copy.deepcopy(first.state_dict())
    torch.manual_seed(99)  # another process: nothing may come from the global generator
    second = built(name, level=level)
    second.load_state_dict(saved)
    for k in range(3, 6):
        for p in (*net.parameters(), *second.parameters()):
            p.grad = None
        second.backward(net.step(X + 0.1 * k))
        torch.testing.assert_close(grads(net), whole[k], rtol=0, atol=0)
        with torch.no_grad():
            for p in (*net.parameters(), *second.parameters()):
                if p.grad is not None:
                    p -= 0.1 * p.grad


@pytest.mark.parametrize("name", NAMES)
def test_one_task_alone_has_weight_one(name: str) -> None:
    row = ROWS[name]
    if row.extra:
        pytest.importorskip(row.extra, reason=f"the extra {row.extra} is not installed")
    alone = make(name, TaskSet((MAKE,)), **row.overrides)
    assert not alone.needs_bottleneck
    assert not [p for p in alone.parameters() if p.requires_grad]
    net, expected = Net(), Net()
    step = net.step(X, factor=0.5)
    step.losses = step.losses[:1]
    applied = alone.backward(step)
    (expected(X)[0][0] * 0.5).backward()
    torch.testing.assert_close(grads(net), grads(expected))
    assert applied.weights is not None
    assert applied.weights.tolist() == [1.0]


@pytest.mark.parametrize("name", [n for n in NAMES if ROWS[n].levels and set(ROWS[n].levels) != set(GRADIENTS)])
def test_an_impossible_level_is_refused_with_the_possible_ones(name: str) -> None:
    (possible,) = ROWS[name].levels
    (other,) = set(GRADIENTS) - {possible}
    with pytest.raises(Exception, match=possible) as caught:
        built(name, level=other)
    assert isinstance(caught.value, UserError) or isinstance(caught.value.__cause__, UserError)


@pytest.mark.parametrize(("name", "level"), CASES)
def test_nothing_is_drawn_from_the_global_generator(name: str, level: str) -> None:
    weighting = built(name, level=level)
    net = Net()
    before = torch.get_rng_state()
    weighting.backward(net.step(X))
    assert torch.equal(torch.get_rng_state(), before)


def test_equal_weighting_is_plain_autograd() -> None:
    assert all(torch.equal(a, b) for a, b in zip(run(built("equal"), 1)[0], autograd_of_sum(), strict=True))
