"""graddrop, moco and db_mtl are the algorithms of their papers; averages outlive checkpoints and overflows."""

import itertools
import threading
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
import torch.distributed as dist
from torch import Tensor

from mtlcar.errors import UserError
from mtlcar.tasks import TaskSet
from mtlcar.weightings.base import GradientCombiner
from mtlcar.weightings.db_mtl import DBMTL
from mtlcar.weightings.graddrop import GradDrop
from mtlcar.weightings.moco import MoCo, simplex
from mtlcar.weightings.tracked import TrackedGradients
from tests.weighting_net import MAKE, SETS, TASKS, Net, NoHostRoundTrip, X, grads, make

TRACKED = {"moco": MoCo, "db_mtl": DBMTL}
COMBINERS = {**TRACKED, "graddrop": GradDrop}
BATCH, FEATURES = 4, 5


@pytest.fixture(autouse=True)
def _the_same_lots_in_every_run() -> None:
    torch.manual_seed(0)


def jacobians(steps: int, tasks: int, size: int = 20, scale: float = 1.0, spread: float = 1.0, seed: int = 0) -> Tensor:
    """[steps, T, P] with a drift that the averages can follow; `spread`: the last task's length by the first's."""
    g = torch.Generator().manual_seed(seed)
    rows = torch.randn(tasks, size, generator=g) + torch.randn(steps, tasks, size, generator=g)
    return rows * scale * torch.logspace(0, float(np.log10(spread)), tasks)[:, None]


def losses_of(steps: int, tasks: int, seed: int = 0) -> Tensor:
    return torch.rand(steps, tasks, generator=torch.Generator().manual_seed(seed + 1)) * 3 + 0.01


def features_of(seed: int = 0) -> Tensor:
    return torch.randn(BATCH, FEATURES, generator=torch.Generator().manual_seed(seed + 2))


def run(weighting: GradientCombiner, rows: Tensor, losses: Tensor) -> Tensor:
    """Combined gradients [steps, P]."""
    features = features_of() if weighting.level == "representation" else None
    with torch.no_grad():
        return torch.stack([weighting.combine(j.clone(), of, features) for j, of in zip(rows, losses, strict=True)])


def combiner(name: str, tasks: TaskSet = TASKS, **overrides: Any) -> GradientCombiner:
    weighting = make(name, tasks, **overrides)
    assert isinstance(weighting, GradientCombiner)
    return weighting


def tracker(name: str) -> TrackedGradients:
    weighting = make(name)
    assert isinstance(weighting, TrackedGradients)
    return weighting


def applied(weighting: GradientCombiner) -> Tensor:
    assert weighting.applied is not None
    return weighting.applied


def tracked(weighting: TrackedGradients) -> Tensor:
    assert weighting.tracked is not None
    return weighting.tracked


# ---- independent versions, in numpy and float64, written from the papers


def supports(tasks: int) -> list[list[int]]:
    return [list(s) for n in range(1, tasks + 1) for s in itertools.combinations(range(tasks), n)]


def nearest_of_simplex(v: np.ndarray) -> np.ndarray:
    """By trying every support."""
    best = None
    for s in supports(len(v)):
        x = np.zeros(len(v))
        x[s] = v[s] + (1 - v[s].sum()) / len(s)
        if (x >= 0).all() and (best is None or ((x - v) ** 2).sum() < ((best - v) ** 2).sum()):
            best = x
    assert best is not None
    return best


def min_norm(gram: np.ndarray) -> np.ndarray:
    """MGDA's weights, by trying every support."""
    best = None
    for s in supports(len(gram)):
        a = np.linalg.solve(gram[np.ix_(s, s)], np.ones(len(s)))
        x = np.zeros(len(gram))
        x[s] = a / a.sum()
        if (x >= 0).all() and (best is None or x @ gram @ x < best @ gram @ best):
            best = x
    assert best is not None
    return best


def moco_of_the_paper(rows: np.ndarray, beta0: float, gamma0: float, rho: float) -> tuple[np.ndarray, np.ndarray]:
    """-> directions [steps, P], weights [steps, T]."""
    y, lam = np.zeros_like(rows[0]), np.full(rows.shape[1], 1 / rows.shape[1])
    directions, weights = [], []
    for k, j in enumerate(rows, 1):
        y = y - beta0 / k**0.5 * (y - j)
        lam = nearest_of_simplex(lam - gamma0 / k**0.5 * (y @ y.T + rho * np.eye(len(j))) @ lam)
        directions.append(y.T @ lam)
        weights.append(lam)
    return np.array(directions), np.array(weights)


def db_mtl_of_the_paper(rows: np.ndarray, losses: np.ndarray, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """-> directions [steps, P], factors [steps, T]."""
    y = np.zeros_like(rows[0])
    directions, factors = [], []
    for k, (j, losses_k) in enumerate(zip(rows, losses, strict=True), 1):
        y = beta * y + (1 - beta) * j / (losses_k[:, None] + 1e-8)
        hat = y / (1 - beta**k)
        n = np.sqrt((hat**2).sum(1))
        factors.append(n.max() / n)
        directions.append((hat * factors[-1][:, None]).sum(0))
    return np.array(directions), np.array(factors)


def graddrop_of_the_paper(j: np.ndarray, z: np.ndarray, u: np.ndarray, leak: list[float]) -> np.ndarray:
    """J [T, B, D], z [B, D], u [D] -> [B, D], feature by feature."""
    out = np.zeros_like(z)
    for d in range(z.shape[1]):
        s = [(np.sign(z[:, d]) * g[:, d]).sum() for g in j]
        p = (1 + sum(s) / sum(abs(x) for x in s)) / 2
        for t in range(len(j)):
            m = float((s[t] > 0 and p > u[d]) or (s[t] < 0 and p < u[d]))
            out[:, d] += (leak[t] + (1 - leak[t]) * m) * j[t][:, d]
    return out


# ---- moco


@pytest.mark.parametrize("tasks", [1, 2, 3, 4, 6])
def test_simplex_is_the_nearest_point_found_by_trying_every_support(tasks: int) -> None:
    rng = np.random.default_rng(tasks)
    for scale in (1e-12, 0.1, 1.0, 10.0, 1e6):
        for offset in (0.0, -50.0, 3.0):
            v = rng.normal(size=tasks) * scale + offset
            np.testing.assert_allclose(simplex(torch.from_numpy(v)).numpy(), nearest_of_simplex(v), atol=1e-9)


@pytest.mark.parametrize("tasks", [2, 3, 4])
def test_simplex_is_the_nearest_point_that_scipy_finds(tasks: int) -> None:
    rng = np.random.default_rng(tasks)
    for _ in range(20):
        v = rng.normal(size=tasks)
        found = scipy.optimize.minimize(
            lambda x, v=v: ((x - v) ** 2).sum(),
            np.full(tasks, 1 / tasks),
            jac=lambda x, v=v: 2 * (x - v),
            bounds=[(0, None)] * tasks,
            constraints={"type": "eq", "fun": lambda x: x.sum() - 1, "jac": lambda x: np.ones_like(x)},
            method="SLSQP",
            options={"ftol": 1e-14},
        )
        np.testing.assert_allclose(simplex(torch.from_numpy(v)).numpy(), found.x, atol=1e-6)


def test_simplex_shares_ties_evenly_and_has_no_trouble_with_large_numbers() -> None:
    assert simplex(torch.tensor([7.0, 7.0, 7.0])).tolist() == pytest.approx([1 / 3] * 3)
    assert simplex(torch.tensor([1e24, 1e24, -1e24], dtype=torch.float64)).tolist() == [0.5, 0.5, 0.0]


@pytest.mark.parametrize("tasks", [2, 3, 4])
@pytest.mark.parametrize(("scale", "spread"), [(1.0, 1.0), (0.3, 1.0), (3.0, 1.0), (1e-12, 1.0), (1e-3, 1e3)])
@pytest.mark.parametrize("rho", [0.0, 0.7])
def test_moco_takes_the_steps_of_the_paper(tasks: int, scale: float, spread: float, rho: float) -> None:
    rows = jacobians(12, tasks, scale=scale, spread=spread)
    weighting = MoCo(SETS[tasks], rho=rho)
    expected, lambdas = moco_of_the_paper(rows.double().numpy(), 0.5, 0.1, rho)
    for k, (j, losses) in enumerate(zip(rows, losses_of(12, tasks), strict=True)):
        found = weighting.combine(j.clone(), losses, None)
        np.testing.assert_allclose(applied(weighting).numpy(), lambdas[k], atol=1e-5)
        np.testing.assert_allclose(found.numpy(), expected[k], atol=1e-5 * np.abs(expected[k]).max())


@pytest.mark.parametrize("seed", [0, *(pytest.param(k, marks=pytest.mark.slow) for k in (1, 2))])
@pytest.mark.parametrize("tasks", [2, 3, 4])
def test_mocos_weights_go_to_mgdas_when_the_gradients_stand_still(tasks: int, seed: int) -> None:
    j = torch.randn(tasks, 30, generator=torch.Generator().manual_seed(seed))
    j *= torch.linspace(0.4, 0.6, tasks)[:, None]
    weighting = MoCo(SETS[tasks])
    run(weighting, j.expand(800, -1, -1), torch.ones(800, tasks))
    torch.testing.assert_close(tracked(weighting), j, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(applied(weighting), min_norm((j.double() @ j.double().T).numpy()), atol=2e-3)


def test_first_step_of_moco_by_hand() -> None:
    # Y = J/2, Y Y^T lambda = (1/4)(4 - 1, -1 + 1)/2 = (.375, 0); lambda = simplex(.4625, .5) = (.48125, .51875).
    j = torch.tensor([[2.0, 0.0], [-0.5, 0.75**0.5]])
    weighting = MoCo(TASKS)
    found = weighting.combine(j.clone(), torch.tensor([0.7, 2.0]), None)
    torch.testing.assert_close(applied(weighting), torch.tensor([0.48125, 0.51875]))
    torch.testing.assert_close(found, 0.5 * applied(weighting) @ j)


def test_normalized_moco_is_t_times_as_long() -> None:
    rows, losses = jacobians(5, 3), losses_of(5, 3)
    normalized = MoCo(SETS[3], normalize=True)
    torch.testing.assert_close(run(normalized, rows, losses), 3 * run(MoCo(SETS[3]), rows, losses))
    assert applied(normalized).sum() == pytest.approx(3)


def test_what_moco_gave_to_the_log_stays_when_lambda_moves_on() -> None:
    weighting = MoCo(TASKS)
    run(weighting, jacobians(1, 2), losses_of(1, 2))
    first = applied(weighting)
    assert first is not None
    before = first.clone()
    run(weighting, jacobians(3, 2, spread=5.0), losses_of(3, 2))
    assert first.equal(before)
    assert not weighting.lambdas.equal(before)


# ---- db_mtl


@pytest.mark.parametrize("tasks", [2, 3, 4])
@pytest.mark.parametrize(("scale", "spread"), [(1.0, 1.0), (1e-12, 1.0), (1e12, 1.0), (1e-3, 1e6)])
@pytest.mark.parametrize("beta", [0.9, 0.0, 0.999])
def test_db_mtl_takes_the_steps_of_the_paper(tasks: int, scale: float, spread: float, beta: float) -> None:
    rows, losses = jacobians(12, tasks, scale=scale, spread=spread), losses_of(12, tasks)
    weighting = DBMTL(SETS[tasks], beta=beta)
    expected, factors = db_mtl_of_the_paper(rows.double().numpy(), losses.double().numpy(), beta)
    for k, (j, of) in enumerate(zip(rows, losses, strict=True)):
        found = weighting.combine(j.clone(), of, None)
        np.testing.assert_allclose(applied(weighting).numpy(), factors[k], rtol=1e-5)
        np.testing.assert_allclose(found.numpy(), expected[k], atol=1e-5 * np.abs(expected[k]).max())
    assert weighting.degenerate == 0


def test_first_step_of_db_mtl_by_hand() -> None:
    # Gradients of log L have norms 2/.7 and 1/2: factors 1 and 40/7; on the rows of J that is 1/.7 and 20/7.
    j = torch.tensor([[2.0, 0.0], [-0.5, 0.75**0.5]])
    weighting = DBMTL(TASKS)
    found = weighting.combine(j.clone(), torch.tensor([0.7, 2.0]), None)
    torch.testing.assert_close(applied(weighting), torch.tensor([1, 40 / 7]))
    torch.testing.assert_close(found, torch.tensor([1 / 0.7, 20 / 7]) @ j)


def test_db_mtl_does_not_see_what_a_loss_is_multiplied_by() -> None:
    rows, losses, units = jacobians(6, 3), losses_of(6, 3), torch.tensor([1.0, 1000.0, 0.01])
    found = run(DBMTL(SETS[3]), rows * units[:, None], losses * units)
    torch.testing.assert_close(found, run(DBMTL(SETS[3]), rows, losses), rtol=1e-4, atol=1e-5)


def test_normalized_factors_of_db_mtl_sum_to_t() -> None:
    rows, losses = jacobians(4, 3, spread=50.0), losses_of(4, 3)
    raw, normalized = DBMTL(SETS[3]), DBMTL(SETS[3], normalize=True)
    a, b = run(raw, rows, losses), run(normalized, rows, losses)
    assert applied(normalized).sum() == pytest.approx(3)
    assert applied(raw).sum() > 3.1
    torch.testing.assert_close(b[-1], a[-1] * 3 / applied(raw).sum())


@pytest.mark.parametrize("zero", [(0,), (1,), (0, 1, 2)])
def test_a_task_without_gradient_leaves_the_others_alone_and_is_counted(zero: tuple[int, ...]) -> None:
    j, losses = jacobians(1, 3)[0], losses_of(1, 3)[0]
    j[list(zero)] = 0
    weighting = DBMTL(SETS[3])
    found = weighting.combine(j.clone(), losses, None)
    h = j / losses[:, None]
    longest = h.norm(dim=1).max()
    expected = sum((longest * row / row.norm() for row in h if row.any()), torch.zeros(j.shape[1]))
    torch.testing.assert_close(found, expected)
    assert weighting.degenerate == 1
    assert applied(weighting)[list(zero)].eq(1).all()


def test_db_mtl_goes_downhill_and_counts_where_a_loss_is_negative() -> None:
    j, weighting = jacobians(1, 2)[0], DBMTL(TASKS)
    found = weighting.combine(j.clone(), torch.tensor([-0.5, 2.0]), None)
    torch.testing.assert_close(found, run(DBMTL(TASKS), j[None], torch.tensor([[0.5, 2.0]]))[0])
    assert weighting.degenerate == 1


# ---- what moco and db_mtl share


@pytest.mark.parametrize("name", TRACKED)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["jacobian", "loss", "first call"])
def test_an_overflow_moves_nothing_is_counted_and_stays_visible(name: str, bad: float, where: str) -> None:
    rows, losses = jacobians(6, 2), losses_of(6, 2)
    weighting, spared = combiner(name), combiner(name)
    before = 0 if where == "first call" else 3
    run(weighting, rows[:before], losses[:before]) if before else None
    spoilt, spoilt_losses = rows[0].clone(), losses[0].clone()
    if where == "loss":
        spoilt_losses[1] = bad
    else:
        spoilt[1, 7] = bad
    found = weighting.combine(spoilt, spoilt_losses, None)
    assert not found.isfinite().any()
    assert weighting.degenerate == 1
    assert applied(weighting).isfinite().all()
    after = run(weighting, rows[before:], losses[before:])
    assert after.equal(run(spared, rows, losses)[before:])
    assert weighting.degenerate == 1


@pytest.mark.parametrize("name", COMBINERS)
def test_three_steps_a_checkpoint_and_three_more_are_six_steps(name: str) -> None:
    rows, losses = jacobians(6, 3), losses_of(6, 3)
    whole, first, second = (combiner(name, SETS[3]) for _ in range(3))
    expected = run(whole, rows, losses)
    run(first, rows[:3], losses[:3])
    second.load_state_dict(first.state_dict(), strict=True)
    assert run(second, rows[3:], losses[3:]).equal(expected[3:])
    for key, value in whole.state_dict().items():
        other = second.state_dict()[key]
        assert value.equal(other) if isinstance(value, Tensor) else value == other


@pytest.mark.parametrize("name", TRACKED)
@pytest.mark.parametrize("assign", [False, True])
def test_state_from_before_the_first_call_and_after_it_loads_into_either(name: str, assign: bool) -> None:
    rows, losses = jacobians(4, 2), losses_of(4, 2)
    for calls_there, calls_here in itertools.product((0, 2), repeat=2):
        there, here = tracker(name), tracker(name)
        if calls_there:
            run(there, rows[:calls_there], losses[:calls_there])
        if calls_here:
            run(here, rows[2:] * 5, losses[2:])
        parent = torch.nn.ModuleDict({"weighting": here})
        state = {f"weighting.{k}": v.clone() for k, v in there.state_dict().items()}
        parent.load_state_dict(state, strict=True, assign=assign)
        assert set(here.state_dict()) == set(there.state_dict())
        assert run(here, rows, losses).equal(run(there, rows, losses))


@pytest.mark.parametrize("name", TRACKED)
def test_averages_are_one_float32_buffer_that_moves_with_the_module_and_is_updated_in_place(name: str) -> None:
    weighting = tracker(name)
    run(weighting, jacobians(1, 2), losses_of(1, 2))
    assert tracked(weighting).dtype == torch.float32
    assert tracked(weighting).shape == (2, 20)
    place = tracked(weighting).data_ptr()
    weighting.combine(jacobians(1, 2)[0], losses_of(1, 2)[0], None)
    assert tracked(weighting).data_ptr() == place
    assert tracked(weighting.to("meta")).device.type == "meta"


@pytest.mark.parametrize("name", TRACKED)
def test_gradients_in_any_memory_layout_are_averaged_as_the_jacobian_is(name: str) -> None:
    """A convolution's gradients come in channels_last; two tasks may even differ."""
    g = torch.Generator().manual_seed(3)
    shapes = ((8, 4, 3, 3), (7,), (2, 5))
    flat, parts = combiner(name), combiner(name)
    assert isinstance(parts, TrackedGradients)
    for k in range(3):
        rows = [[torch.randn(s, generator=g) for s in shapes] for _ in range(2)]
        losses = losses_of(3, 2)[k]
        expected = flat.combine(torch.stack([torch.cat([t.flatten() for t in row]) for row in rows]), losses, None)
        layout = [t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for t in rows[0]]
        for row in rows[: k + 1]:  # kernels may give any layout at any time
            row[0] = row[0].contiguous(memory_format=torch.channels_last)
        divisors = parts.divisors(losses)
        if divisors is not None:
            rows = [[t / c for t in row] for row, c in zip(rows, divisors, strict=True)]
        found, _ = parts._combine(rows, layout, losses, None, torch.ones(()), guarded=False)
        assert found[0].is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(torch.cat([t.flatten() for t in found]), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", TRACKED)
def test_every_micro_batch_moves_the_average_on(name: str) -> None:
    weighting, net = tracker(name), Net()
    for last in (False, False, True):
        weighting.backward(net.step(X, last=last))
    assert weighting.steps == 3


@pytest.mark.parametrize("name", TRACKED)
def test_another_number_of_shared_parameters_is_an_error_that_says_so(name: str) -> None:
    weighting = tracker(name)
    run(weighting, jacobians(1, 2), losses_of(1, 2))
    with pytest.raises(UserError, match="gradients of 20 shared parameters, and now there are 21"):
        run(weighting, jacobians(1, 2, size=21), losses_of(1, 2))


@pytest.mark.parametrize("name", TRACKED)
def test_without_shared_parameters_there_is_nothing_to_combine(name: str) -> None:
    weighting = combiner(name)
    assert run(weighting, torch.zeros(2, 2, 0), losses_of(2, 2)).shape == (2, 0)


@pytest.mark.parametrize("name", TRACKED)
@pytest.mark.parametrize("kind", ["zero", "identical", "opposed", "one zero", "1e-12", "1e12"])
@pytest.mark.parametrize("tasks", [2, 3, 4])
def test_hard_gradients_give_finite_directions(name: str, kind: str, tasks: int) -> None:
    rows = jacobians(5, tasks)
    if kind == "zero":
        rows.zero_()
    elif kind == "identical":
        rows[:] = rows[:, :1]
    elif kind == "opposed":
        rows[:, 1] = -rows[:, 0]
    elif kind == "one zero":
        rows[:, 0] = 0
    else:
        rows *= float(kind)
    weighting = combiner(name, SETS[tasks])
    assert run(weighting, rows, losses_of(5, tasks)).isfinite().all()
    assert applied(weighting).isfinite().all()
    if name == "moco":
        assert applied(weighting).sum() == pytest.approx(1)
        assert applied(weighting).min() >= 0
        assert weighting.degenerate == 0
    if kind == "identical" and name == "moco":
        assert applied(weighting).tolist() == pytest.approx([1 / tasks] * tasks)


@pytest.mark.parametrize("name", COMBINERS)
@pytest.mark.parametrize("tasks", [2, 3, 4])
def test_the_order_of_the_tasks_does_not_matter(name: str, tasks: int) -> None:
    rows, losses = jacobians(6, tasks, spread=3.0), losses_of(6, tasks)
    order = torch.randperm(tasks, generator=torch.Generator().manual_seed(5))
    one, other = combiner(name, SETS[tasks]), combiner(name, SETS[tasks])
    torch.testing.assert_close(run(one, rows, losses), run(other, rows[:, order], losses[:, order]))
    torch.testing.assert_close(applied(one)[order], applied(other))


@pytest.mark.parametrize("name", COMBINERS)
def test_no_value_is_waited_for(name: str) -> None:
    weighting = combiner(name, SETS[3], **({"leak": 0.2} if name == "graddrop" else {}), normalize=True)
    features = features_of() if weighting.level == "representation" else None
    rows, losses = jacobians(2, 3), losses_of(2, 3)
    with NoHostRoundTrip():
        for j, of in zip(rows, losses, strict=True):
            weighting.combine(j, of, features)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoHostRoundTrip():
        losses[0, 0].item()


@pytest.mark.parametrize("name", COMBINERS)
def test_what_enters_grad_is_the_combination_of_the_rows_times_the_factor(name: str) -> None:
    """Under the fp16 scale 1024 and two accumulated batches; other parameters get their own task's gradient."""
    net = Net()
    losses, z = net(X)
    targets = [z] if name == "graddrop" else net.of(losses, z).shared
    j = torch.stack(
        [
            torch.cat([torch.zeros(p.numel()) if g is None else g.flatten() for p, g in zip(targets, row, strict=True)])
            for row in (torch.autograd.grad(loss, targets, retain_graph=True, allow_unused=True) for loss in losses)
        ]
    )
    weighting, twin = combiner(name), combiner(name)
    d = twin.combine(j.clone(), losses.detach(), z.detach() if name == "graddrop" else None)
    if name == "graddrop":
        z.backward(d.view_as(z) * 512)
        expected = [p.grad.clone() for p in net.trunk.parameters() if p.grad is not None]
    else:
        parts = d.split([t.numel() for t in targets])
        expected = [512 * v.view(t.shape) for v, t in zip(parts, targets, strict=True)]
    net = Net()
    done = weighting.backward(net.step(X, factor=512.0, scale=1024.0))
    for found, wanted in zip(grads(net), expected, strict=False):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(done.weights, applied(twin), rtol=1e-4, atol=1e-6)
    own = torch.autograd.grad(net(X)[0][1], list(net.second.parameters()))
    for p, g in zip(net.second.parameters(), own, strict=True):
        torch.testing.assert_close(p.grad, 512 * g, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        *(("moco", "beta0", v) for v in (0, 1.1, float("nan"))),
        *(("moco", "gamma0", v) for v in (0, -1, float("inf"))),
        *(("moco", "rho", v) for v in (-0.1, float("nan"))),
        *(("db_mtl", "beta", v) for v in (-0.1, 1.0, float("nan"))),
        *(("graddrop", "leak", v) for v in (-0.1, 1.1, float("nan"), None, "half")),
        ("graddrop", "leak", {"make": 0.1}),
        ("graddrop", "leak", {"make": 0.1, "wieght": 0.1}),
        ("graddrop", "leak", {"make": 0.1, "weight": 2}),
        ("graddrop", "level", "parameters"),
        ("moco", "level", "representation"),
        ("db_mtl", "level", "representation"),
    ],
)
def test_values_that_cannot_be_meant_are_refused_by_name(name: str, key: str, value: object) -> None:
    with pytest.raises(UserError, match=f"weighting.{key}") as error:
        COMBINERS[name](TASKS, **{key: value})
    assert "wieght" not in str(value) or "Did you mean 'weight'?" in str(error.value)


# ---- graddrop


def uniform(weighting: GradDrop, features: int = FEATURES) -> Tensor:
    """The U that the next step of a weighting in this state draws."""
    twin = GradDrop(weighting.tasks)
    twin.seed, twin.calls = weighting.seed, weighting.calls
    return torch.rand(features, generator=twin.draw())


@pytest.mark.parametrize("tasks", [2, 3, 4])
@pytest.mark.parametrize("leak", [0.0, 0.3, {"make": 0.1, "weight": 1.0, "year": 0.0, "model": 0.5}])
def test_graddrop_keeps_what_the_paper_keeps(tasks: int, leak: Any) -> None:
    names = SETS[tasks].names
    per_task = [leak[n] if isinstance(leak, dict) else leak for n in names]
    weighting = GradDrop(SETS[tasks], leak=dict(zip(names, per_task, strict=True)) if isinstance(leak, dict) else leak)
    for seed, scale in enumerate((1.0, 1e-12, 1e12) * 10):
        j, z = jacobians(1, tasks, BATCH * FEATURES, scale=scale, seed=seed)[0], features_of(seed)
        u = uniform(weighting)
        found = weighting.combine(j.clone(), torch.ones(tasks), z).view(BATCH, FEATURES)
        rows = j.view(tasks, BATCH, FEATURES).double().numpy()
        expected = graddrop_of_the_paper(rows, z.double().numpy(), u.double().numpy(), per_task)
        np.testing.assert_allclose(found.numpy(), expected, atol=2e-6 * scale)
    assert weighting.degenerate == 0


def test_each_sign_is_kept_as_often_as_it_is_pure_and_never_both() -> None:
    """Gradients 3 and -1 at every feature: p = 3/4; with features below 0 both turn round and nothing changes."""
    n = 200_000
    for sign in (1.0, -1.0):
        weighting = GradDrop(TASKS)
        j = torch.tensor([[3.0], [-1.0]]).repeat(1, n)
        kept = weighting.combine(j, torch.ones(2), torch.full((1, n), sign))
        assert set(kept.tolist()) == {3.0, -1.0}
        wide = 5 * (0.75 * 0.25 / n) ** 0.5
        assert float((kept == 3).float().mean()) == pytest.approx(0.75, abs=wide)
        assert applied(weighting).tolist() == pytest.approx([0.75, 0.25], abs=wide)


def test_where_all_tasks_agree_everything_is_kept() -> None:
    j = jacobians(1, 3, BATCH * FEATURES)[0].abs() * features_of().sign().flatten()
    for way in (1, -1):
        weighting = GradDrop(SETS[3])
        torch.testing.assert_close(weighting.combine(way * j, torch.ones(3), features_of()), way * j.sum(0))
        assert applied(weighting).tolist() == [1, 1, 1]


def test_the_lot_that_is_exactly_p_keeps_one_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    """p = 0 and U = 0: all tasks agree on the way down, and the paper's strict p < U would drop them all."""
    monkeypatch.setattr(torch, "rand", lambda n, generator: torch.zeros(n))
    j = -jacobians(1, 2, FEATURES)[0].abs()
    assert GradDrop(TASKS).combine(j.clone(), torch.ones(2), torch.ones(1, FEATURES)).equal(j.sum(0))


def test_leak_one_is_the_sum_of_all() -> None:
    j = jacobians(1, 2, BATCH * FEATURES)[0]
    found = GradDrop(TASKS, leak=1).combine(j.clone(), torch.ones(2), features_of())
    torch.testing.assert_close(found, j.sum(0))


def test_graddrop_ignores_normalize() -> None:
    rows, losses = jacobians(3, 2), losses_of(3, 2)
    assert run(GradDrop(TASKS, normalize=True), rows, losses).equal(run(GradDrop(TASKS), rows, losses))


def test_features_that_are_zero_in_the_whole_batch_keep_the_leak_only() -> None:
    z = features_of()
    z[:, 2] = 0
    weighting = GradDrop(TASKS, leak=0.25)
    j = jacobians(1, 2, BATCH * FEATURES)[0]
    found = weighting.combine(j.clone(), torch.ones(2), z).view(BATCH, FEATURES)
    torch.testing.assert_close(found[:, 2], 0.25 * j.view(2, BATCH, FEATURES)[:, :, 2].sum(0))
    assert weighting.degenerate == 0
    weighting.combine(j.clone(), torch.ones(2), torch.zeros_like(z))
    assert weighting.degenerate == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_an_overflow_reaches_the_result_of_graddrop_and_is_counted(bad: float) -> None:
    j = jacobians(1, 2, BATCH * FEATURES)[0]
    j[1, 3] = bad
    weighting = GradDrop(TASKS)
    found = weighting.combine(j, torch.ones(2), features_of())
    assert not found.isfinite().all()
    assert weighting.degenerate == 1


def test_micro_batches_of_a_step_share_their_lots_and_steps_do_not() -> None:
    weighting, net = GradDrop(TASKS), Net()
    shares = []
    for last in (False, False, True, True, True, True, True):
        weighting.backward(net.step(X, last=last))
        shares.append(tuple(applied(weighting).tolist()))
    assert shares[0] == shares[1] == shares[2]
    assert weighting.calls == 5
    assert len(set(shares[2:])) > 1


def test_two_processes_drop_what_one_would_on_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads in the place of two processes; each process' gradients are twice too long, its loss being a mean
    over half the batch."""
    rows, z = jacobians(1, 3, BATCH * FEATURES)[0], features_of()
    whole = GradDrop(SETS[3])
    expected = whole.combine(rows.clone(), torch.ones(3), z).view(BATCH, FEATURES)
    barrier = threading.Barrier(2, timeout=20)
    parts: dict[int, Tensor] = {}

    def all_reduce(t: Tensor) -> None:
        parts[threading.get_ident()] = t.clone()
        barrier.wait()
        t.copy_(torch.stack(list(parts.values())).sum(0))
        barrier.wait()

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    found: dict[int, Tensor] = {}
    shares: dict[int, Tensor] = {}

    def process(rank: int) -> None:
        half = slice(rank * BATCH // 2, (rank + 1) * BATCH // 2)
        j = 2 * rows.view(3, BATCH, FEATURES)[:, half].reshape(3, -1)
        weighting = GradDrop(SETS[3])
        found[rank] = weighting.combine(j, torch.ones(3), z[half]).view(-1, FEATURES) / 2
        shares[rank] = applied(weighting)

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    torch.testing.assert_close(torch.cat([found[0], found[1]]), expected)
    assert shares[0].equal(shares[1])
    assert shares[0].equal(applied(whole))


def test_one_task_alone_needs_no_leak_of_its_own() -> None:
    alone = GradDrop(TaskSet((MAKE,)), leak={"make": 0.1, "weight": 0.2})
    assert not alone.needs_bottleneck


def test_graddrop_is_torchjds_where_features_are_positive(monkeypatch: pytest.MonkeyPatch) -> None:
    torchjd = pytest.importorskip("torchjd.aggregation")
    leak = {"make": 0.2, "weight": 0.0, "year": 0.7}
    for seed in range(20):
        j = jacobians(1, 3, FEATURES, seed=seed)[0]
        weighting = GradDrop(SETS[3], leak=leak)
        weighting.calls = seed
        u = uniform(weighting)
        found = weighting.combine(j.clone(), torch.ones(3), torch.ones(1, FEATURES))
        with monkeypatch.context() as m:
            m.setattr(torch, "rand", lambda *_, u=u, **__: u)
            expected = torchjd.GradDrop(leak=torch.tensor(list(leak.values())))(j)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
