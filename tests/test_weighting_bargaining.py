"""nash_mtl, fairgrad, imtl, aligned_mtl: the answers of their definitions, found by other means."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mtlcar.errors import UserError
from mtlcar.tasks import Task, TaskSet
from mtlcar.weightings.aligned_mtl import AlignedMTL
from mtlcar.weightings.base import SolvedWeighting
from mtlcar.weightings.eigen import symmetric_eigen
from mtlcar.weightings.fairgrad import FairGrad
from mtlcar.weightings.imtl import IMTL
from mtlcar.weightings.nash_mtl import NashMTL
from mtlcar.weightings.newton import Elimination

METHODS: dict[str, tuple[Callable[..., SolvedWeighting], dict[str, Any], float]] = {
    "nash_mtl": (NashMTL, {}, -1.0),
    "nash_mtl clipped": (NashMTL, {"max_norm": 1.0}, -1.0),
    "fairgrad": (FairGrad, {}, -1.0),
    "fairgrad 2": (FairGrad, {"alpha": 2.0}, -4 / 3),
    "imtl": (IMTL, {}, 0.0),
    "aligned_mtl min": (AlignedMTL, {"scale": "min"}, 0.0),
    "aligned_mtl median": (AlignedMTL, {"scale": "median"}, 0.0),
    "aligned_mtl rmse": (AlignedMTL, {"scale": "rmse"}, 0.0),
}
every_method = pytest.mark.parametrize("method", METHODS)


def task_set(tasks: int) -> TaskSet:
    return TaskSet(tuple(Task(f"t{i}", "regression") for i in range(tasks)))


def make(method: str, tasks: int) -> SolvedWeighting:
    cls, options, _ = METHODS[method]
    return cls(task_set(tasks), **options)


def run(weighting: SolvedWeighting, gramian: Tensor) -> tuple[Tensor, int]:
    """Weights in float64, and by how much `degenerate` rose."""
    before = int(weighting.degenerate)
    found = weighting.weights(gramian, torch.ones(len(gramian), dtype=gramian.dtype))
    assert found.dtype == gramian.dtype
    return found.double(), int(weighting.degenerate) - before


def jacobians(tasks: int, number: int, seed: int) -> Iterator[Tensor]:
    """Random rows in float64: independent, leaning on one another, and of lengths up to 1e3 apart each way."""
    draw = torch.Generator().manual_seed(seed)
    for i in range(number):
        j = torch.randn(tasks, tasks + 1, generator=draw, dtype=torch.float64)
        if i % 3 == 1:
            j[:, 0] += 3 * torch.randn((), generator=draw, dtype=torch.float64)
        if i % 2:
            j = j * 10 ** (6 * torch.rand(tasks, 1, generator=draw, dtype=torch.float64) - 3)
        yield j


def unit(j: Tensor) -> tuple[Tensor, Tensor]:
    n = j.norm(dim=1)
    return n, j / n[:, None]


# Definitions, checked by their equations.


@pytest.mark.parametrize("tasks", [2, 3, 4, 6])
@pytest.mark.parametrize("alpha", [None, 1.0, 0.5, 2.0, 5.0])
def test_fair_weights_solve_their_equation(tasks: int, alpha: float | None) -> None:
    weighting = NashMTL(task_set(tasks)) if alpha is None else FairGrad(task_set(tasks), alpha=alpha)
    power = 1 / (alpha or 1.0)
    solved = 0
    for j in jacobians(tasks, 30, seed=tasks):
        g = j @ j.T
        w, degenerate = run(weighting, g)
        if degenerate:
            continue
        solved += 1
        assert (w > 0).all()
        torch.testing.assert_close(g @ w, w**-power, rtol=1e-6, atol=0)
    assert solved >= (30 if power >= 0.5 else 27)


@pytest.mark.parametrize("tasks", [2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nash_is_the_minimum_that_a_general_optimiser_finds(tasks: int, dtype: torch.dtype) -> None:
    for j in jacobians(tasks, 8, seed=7):
        g = (j @ j.T).to(dtype)
        w, degenerate = run(NashMTL(task_set(tasks)), g)
        assert not degenerate
        a = g.double().numpy()
        n = np.sqrt(np.diag(a))
        c = a / np.outer(n, n)

        def value(x: np.ndarray, c: np.ndarray = c) -> tuple[float, np.ndarray]:
            v = np.exp(x)
            return v @ c @ v / 2 - x.sum(), v * (c @ v) - 1

        best = minimize(value, np.zeros(tasks), jac=True, method="BFGS", options={"gtol": 1e-11, "maxiter": 2000})
        np.testing.assert_allclose(w.numpy(), np.exp(best.x) / n, rtol=1e-5)


def test_nash_of_two_tasks_is_the_closed_form_and_general_code_agrees() -> None:
    for cosine in [-0.999, -0.5, 0.0, 0.3, 0.99, 1.0]:
        for n in [(1.0, 1.0), (1e-3, 1e3), (5.0, 0.2)]:
            cross = cosine * n[0] * n[1]
            g = torch.tensor([[n[0] ** 2, cross], [cross, n[1] ** 2]], dtype=torch.float64)
            w, _ = run(NashMTL(task_set(2)), g)
            expected = torch.tensor([1 / (x * math.sqrt(1 + cosine)) for x in n], dtype=torch.float64)
            torch.testing.assert_close(w, expected, rtol=1e-11, atol=0)
            wider = torch.block_diag(g, torch.ones(1, 1, dtype=torch.float64))
            torch.testing.assert_close(run(NashMTL(task_set(3)), wider)[0][:2], w, rtol=1e-9, atol=0)
            close, _ = run(FairGrad(task_set(2), alpha=1 + 1e-9), g)
            torch.testing.assert_close(close, w, rtol=1e-6, atol=0)


@pytest.mark.parametrize("tasks", [3, 4])
def test_nash_is_found_at_the_end_of_long_valleys(tasks: int) -> None:
    """Cosines near rank 1: condition up to 1e7, weights a thousand times those of orthogonal gradients."""
    draw = torch.Generator().manual_seed(3)
    large = 0.0
    for _ in range(50):
        j = torch.randn(tasks, tasks, generator=draw, dtype=torch.float64)
        _, u = unit(j * torch.tensor([1, 0.1, 0.01, 0.001], dtype=torch.float64)[:tasks])
        g = u @ u.T
        w, degenerate = run(NashMTL(task_set(tasks)), g)
        assert not degenerate
        torch.testing.assert_close(w * (g @ w), torch.ones(tasks, dtype=torch.float64), rtol=1e-6, atol=0)
        large = max(large, float(w.max()))
    assert large > 100


@pytest.mark.parametrize("tasks", [2, 3, 4, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_imtl_has_equal_projections_and_sum_one(tasks: int, dtype: torch.dtype) -> None:
    solved = 0
    for j in jacobians(tasks, 60, seed=11):
        g = (j @ j.T).to(dtype)
        w, degenerate = run(IMTL(task_set(tasks)), g)
        a = g.double().numpy()
        n = np.sqrt(np.diag(a))
        x = np.linalg.solve(a / np.outer(n, n), np.ones(tasks)) / n
        if degenerate:
            expected = (1 / n) / (1 / n).sum()
            assert x.sum() <= 1e-3 * np.abs(x).sum() or dtype == torch.float32
        else:
            solved += 1
            expected = x / x.sum()
        np.testing.assert_allclose(w.numpy(), expected, rtol=1e-5, atol=1e-7)
    assert solved > 45


def exact_aligned(j: Tensor, scale: str) -> np.ndarray:
    """In 60 digits."""
    with mpmath.workdps(60):
        m = mpmath.matrix(j.tolist())
        values, vectors = mpmath.eigsy(m * m.T)
        tasks = len(values)
        ordered = sorted(values)
        b = {"min": ordered[0], "median": ordered[(tasks - 1) // 2], "rmse": sum(ordered) / tasks}[scale]
        root = vectors * mpmath.diag([mpmath.sqrt(b / s) for s in values]) * vectors.T
        return np.array([float(sum(root[t, u] for u in range(tasks)) / tasks) for t in range(tasks)])


@pytest.mark.parametrize("tasks", [2, 3, 4, 6])
@pytest.mark.parametrize("scale", ["min", "median", "rmse"])
def test_aligned_is_the_inverse_root(tasks: int, scale: str) -> None:
    kept = 0
    for j in jacobians(tasks, 16, seed=tasks):
        # Lengths as far apart as float64's rank test lets them be.
        if tasks > 4:  # LAPACK's absolute precision
            _, j = unit(j)
        w, degenerate = run(AlignedMTL(task_set(tasks), scale=scale), j @ j.T)
        if not degenerate:
            kept += 1
            expected = exact_aligned(j, scale)
            np.testing.assert_allclose(
                w.numpy(), expected, rtol=1e-5 if tasks > 4 else 1e-8, atol=1e-11 * w.abs().max()
            )
    assert kept == 16


def test_aligned_over_the_eigenvalues_that_are_left() -> None:
    """Rank 1: w = v v^T 1/T whatever the scale; zero rows do not take part."""
    for tasks in (2, 3, 4):
        for dtype in (torch.float32, torch.float64):
            lengths = torch.tensor([2.0, -1.0, 3.0, 0.0], dtype=dtype)[:tasks]
            g = torch.outer(lengths, lengths)
            expected = lengths * lengths.sum() / lengths.square().sum() / tasks
            for scale in ("min", "median", "rmse"):
                w, degenerate = run(AlignedMTL(task_set(tasks), scale=scale), g)
                assert degenerate == 1
                torch.testing.assert_close(w, expected.double(), rtol=1e-5, atol=1e-6)
            w, degenerate = run(AlignedMTL(task_set(tasks)), torch.zeros_like(g))
            assert degenerate == 1
            assert (w == 0).all()
    g = torch.diag(torch.tensor([4.0, 1.0, 0.0, 9.0]))
    for scale, b in {"min": 1.0, "median": 4.0, "rmse": 14 / 3}.items():
        w, degenerate = run(AlignedMTL(task_set(4), scale=scale), g)
        assert degenerate == 1
        expected = torch.tensor([1 / 2, 1, 0, 1 / 3]).double() * math.sqrt(b) / 4
        torch.testing.assert_close(w, expected, rtol=1e-6, atol=0)


# Where a definition has no answer.


@pytest.mark.parametrize("method", ["nash_mtl", "fairgrad", "fairgrad 2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fair_takes_the_orthogonal_value_where_gradients_cancel(method: str, dtype: torch.dtype) -> None:
    third = 2 * math.pi / 3
    star = [[math.cos(k * third), math.sin(k * third)] for k in range(3)]
    rows = {
        "opposed": [[3.0, 1.0], [-0.3, -0.1]],
        "opposed beside another": [[3.0, 1.0], [-0.3, -0.1], [1.0, -2.0]],
        "opposed twice": [[3.0, 1.0], [-0.3, -0.1], [1.0, -2.0], [-2.0, 4.0]],
        "star": star,
        "star beside another": [[*r, 0.0] for r in star] + [[0.3, 0.1, 2.0]],
        "four in a half line": [[1.0, 0], [2, 0], [-1, 0], [3, 0]],
        "zero": [[1.0, 2.0], [0.0, 0.0], [1.0, 1.0]],
        "zero of two": [[0.0, 0.0], [1.0, 1.0]],
        "all zero": [[0.0], [0.0], [0.0]],
    }
    power = METHODS[method][2]
    for name, r in rows.items():
        for size in (1e-9, 1.0, 1e9):
            j = torch.tensor(r, dtype=dtype) * size
            w, degenerate = run(make(method, len(r)), j @ j.T)
            assert degenerate == 1, name
            n = j.double().norm(dim=1)
            expected = torch.where(n > 0, n**power, 0.0)
            torch.testing.assert_close(w, expected, rtol=1e-5, atol=0, msg=name)


def test_fair_weights_stay_bounded_up_to_opposed_gradients() -> None:
    """From the definition's answer to the way out, weights never pass 1 / sqrt(8 eps) of the orthogonal ones."""
    for tasks in (2, 3):
        ways_out = 0
        for angle in [0.0, *np.logspace(-8, 0, 40)]:
            rows = [[1.0, 0.0, 0.0], [-math.cos(angle), math.sin(angle), 0.0], [0.0, 0.0, 1.0]][:tasks]
            j = torch.tensor(rows, dtype=torch.float64)
            w, degenerate = run(NashMTL(task_set(tasks)), (j @ j.T).float())
            assert (w > 0).all()
            assert w.max() < 1100
            if tasks == 3:
                torch.testing.assert_close(w[2], torch.ones_like(w[2]), rtol=1e-6, atol=0)
            ways_out += degenerate
        assert 5 < ways_out < 30


def test_nash_clips_the_direction_not_the_task() -> None:
    for j in jacobians(3, 6, seed=5):
        g = j @ j.T
        free, _ = run(NashMTL(task_set(3)), g)
        clipped, _ = run(NashMTL(task_set(3), max_norm=1.0), g)
        torch.testing.assert_close(clipped, free / math.sqrt(3), rtol=1e-9, atol=0)
        torch.testing.assert_close(run(NashMTL(task_set(3), max_norm=2.0), g)[0], free, rtol=1e-12, atol=0)
    opposed = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    assert run(NashMTL(task_set(2), max_norm=1.0), opposed)[0].tolist() == [1.0, 1.0]  # no direction to clip


def test_imtl_of_two_tasks_ignores_the_cosine() -> None:
    for cosine in (-1.0, -0.99, 0.0, 1.0):
        g = torch.tensor([[4.0, 2 * cosine], [2 * cosine, 1.0]])
        w, degenerate = run(IMTL(task_set(2)), g)
        assert degenerate == 0
        torch.testing.assert_close(w, torch.tensor([1 / 3, 2 / 3]).double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_imtl_treats_identical_tasks_alike(dtype: torch.dtype) -> None:
    """Up to the rounding of the Gramian, not exactly identical: noise must not become weights."""
    draw = torch.Generator().manual_seed(0)
    eps = torch.finfo(dtype).eps
    for trial in range(60):
        j = torch.randn(4 if trial % 2 else 3, 50, generator=draw, dtype=torch.float64) + 0.5
        j[1] = j[0] * (5.0 if trial % 3 else 1.0)
        g = (j @ j.T).to(dtype)
        noise = 1 + eps * (torch.rand(g.shape, generator=draw, dtype=torch.float64) - 0.5)
        g = (g * torch.triu(noise).maximum(torch.triu(noise).T)).to(dtype)
        w, degenerate = run(IMTL(task_set(len(j))), g)
        assert degenerate == 0
        n, u = unit(j)
        torch.testing.assert_close(w[0] * n[0], w[1] * n[1], rtol=1e-4, atol=0)
        alone, _ = run(IMTL(task_set(len(j) - 1)), j[1:] @ j[1:].T)
        direction = w @ j
        torch.testing.assert_close(
            direction / direction.norm(), (alone @ j[1:]) / (alone @ j[1:]).norm(), rtol=1e-3, atol=1e-4
        )
        assert (u @ direction).std() < 1e-4 * (u @ direction).mean()


def test_imtl_without_a_common_direction_lets_it_vanish() -> None:
    """Three gradients in a plane, equal projections on all of them: none. The one combination that sums to 1."""
    third = 2 * math.pi / 3
    j = torch.tensor([[math.cos(k * third), math.sin(k * third)] for k in range(3)]) * torch.tensor([[1.0], [2], [4]])
    w, degenerate = run(IMTL(task_set(3)), j @ j.T)
    assert degenerate == 0
    torch.testing.assert_close(w, torch.tensor([4.0, 2, 1]).double() / 7, rtol=1e-5, atol=0)


def test_imtl_turns_to_inverse_norms_where_every_task_would_go_uphill() -> None:
    j = torch.tensor([[1.0, 0, 0.2], [0, 1.0, 0.2], [100.0, 100.0, 1.0]])
    n = j.double().norm(dim=1)
    c = torch.tensor((j @ j.T).tolist()).double() / torch.outer(n, n)
    raw = torch.linalg.solve(c, torch.ones(3).double()) / n
    signs = set()
    for lengths in ([1.0, 1, 1], [0.001, 1, 1], [1, 1, 0.001]):
        scale = torch.tensor(lengths)
        g = (j * scale[:, None]) @ (j * scale[:, None]).T
        w, degenerate = run(IMTL(task_set(3)), g)
        x = raw / scale
        signs.add(degenerate)
        expected = (1 / (n * scale)) / (1 / (n * scale)).sum() if x.sum() < 0 else x / x.sum()
        assert degenerate == int(x.sum() < 0)
        torch.testing.assert_close(w, expected, rtol=1e-3, atol=1e-5)
    assert signs == {0, 1}
    w, degenerate = run(IMTL(task_set(3)), torch.diag(torch.tensor([4.0, 0.0, 1.0])))
    assert degenerate == 1
    torch.testing.assert_close(w, torch.tensor([1 / 3, 0, 2 / 3]).double(), rtol=1e-6, atol=0)
    assert run(IMTL(task_set(2)), torch.diag(torch.tensor([4.0, 0.0])))[0].tolist() == [1.0, 0.0]
    assert run(IMTL(task_set(3)), torch.zeros(3, 3)) == (pytest.approx([0, 0, 0]), 1)


def test_imtl_weights_are_bounded_by_the_inputs_precision() -> None:
    draw = torch.Generator().manual_seed(1)
    for trial in range(120):
        tasks, rank = 3 + trial % 2, 1 + trial % 3
        j = torch.randn(tasks, rank, generator=draw)
        j = torch.cat([j, 10 ** (-6 * torch.rand((), generator=draw)) * torch.randn(tasks, tasks, generator=draw)], 1)
        w, _ = run(IMTL(task_set(tasks)), j @ j.T)
        assert w.sum() == pytest.approx(1, abs=1e-3 * float(w.abs().sum()))
        assert w.abs().sum() < 1e6


# Hybrid.


def test_hybrid_imtl_trains_its_scales_and_weighs_scaled_losses() -> None:
    weighting = IMTL(task_set(2), hybrid=True, lr=0.1)
    g, losses = torch.tensor([[4.0, 1.0], [1.0, 1.0]]), torch.tensor([3.0, 0.5])
    torch.testing.assert_close(weighting.weights(g, losses), torch.tensor([1 / 3, 2 / 3]))
    s = torch.tensor([-0.2, 0.05])  # -lr (exp(0) L - 1)
    torch.testing.assert_close(weighting.s, s)
    scaled = torch.outer(s.exp(), s.exp()) * g
    expected = run(IMTL(task_set(2)), scaled)[0].float() * s.exp()
    torch.testing.assert_close(weighting.weights(g, losses), expected)
    torch.testing.assert_close(weighting.s, s - 0.1 * (s.exp() * losses - 1))
    for _ in range(400):
        weighting.weights(g, losses)
    torch.testing.assert_close(weighting.s.exp(), 1 / losses)  # where exp(s) L - s is least
    assert int(weighting.degenerate) == 0


def test_hybrid_imtl_comes_to_a_large_loss_within_a_few_steps() -> None:
    weighting = IMTL(task_set(2), hybrid=True)
    losses = torch.tensor([2000.0, 1.0])
    for _ in range(60):
        found = weighting.weights(torch.eye(2), losses)
        assert found.min() > 1e-5
    scaled = weighting.s.exp() * losses
    assert (scaled < 2).all()
    for _ in range(300):
        weighting.weights(torch.eye(2), losses)
    torch.testing.assert_close(weighting.s.exp() * losses, torch.ones(2), rtol=1e-2, atol=0)


def test_hybrid_scales_stay_where_they_are_when_nothing_should_move() -> None:
    weighting = IMTL(task_set(3), hybrid=True)
    g = torch.eye(3)
    weighting.advances = False
    weighting.weights(g, torch.ones(3) * 5)
    weighting.advances = True
    weighting.weights(g * torch.inf, torch.ones(3))
    weighting.weights(g, torch.tensor([1.0, torch.nan, 1.0]))
    assert weighting.s.tolist() == [0, 0, 0]
    assert int(weighting.degenerate) == 2
    for size in [0.0, *[1e30] * 32]:
        assert weighting.weights(g, torch.full((3,), size)).isfinite().all()
    assert weighting.s.tolist() == [-30, -30, -30]
    other = IMTL(task_set(3), hybrid=True)
    other.load_state_dict(weighting.state_dict())
    assert other.s.tolist() == [-30, -30, -30]
    assert not [k for k in IMTL(task_set(3)).state_dict() if k != "degenerate"]


# What holds for all of them.


@every_method
@pytest.mark.parametrize("tasks", [2, 3, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_and_scales_as_defined_at_every_rank_and_size(method: str, tasks: int, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(tasks)
    degree = METHODS[method][2]
    for rank in range(1, tasks + 1):
        for i, special in enumerate(("none", "zero", "same", "opposed")):
            j = torch.randn(tasks, rank, generator=draw, dtype=torch.float64)
            if special != "none":
                j[-1] = {"zero": 0.0, "same": 2.0, "opposed": -0.5}[special] * j[0]
            g = (j @ j.T).to(dtype)
            w, degenerate = run(make(method, tasks), g)
            assert w.isfinite().all()
            size = 2.0 ** (40 if (rank + i) % 2 else -40)  # a power of two: no new rounding
            scaled, again = run(make(method, tasks), g * size**2)
            assert scaled.isfinite().all()
            assert again == degenerate
            floor = 1e-6 * float(w.abs().max())
            torch.testing.assert_close(scaled / size**degree, w, rtol=1e-5, atol=floor)


@every_method
@pytest.mark.parametrize("tasks", [2, 3, 4])
def test_permuting_tasks_permutes_weights(method: str, tasks: int) -> None:
    draw = torch.Generator().manual_seed(9)
    for j in jacobians(tasks, 12, seed=13):
        g = j @ j.T
        order = torch.randperm(tasks, generator=draw)
        w, degenerate = run(make(method, tasks), g)
        permuted, again = run(make(method, tasks), g[order][:, order])
        assert degenerate == again
        torch.testing.assert_close(permuted, w[order], rtol=1e-8, atol=1e-11 * float(w.abs().max()))


@every_method
def test_equal_gradients_and_orthogonal_ones_are_shared_evenly(method: str) -> None:
    for tasks in (2, 3, 4):
        for g in (torch.eye(tasks), torch.ones(tasks, tasks)):
            w, _ = run(make(method, tasks), g)
            torch.testing.assert_close(w, w[:1].expand(tasks), rtol=1e-6, atol=0)
            assert w[0] > 0


@every_method
@pytest.mark.parametrize("tasks", [2, 4])
def test_no_value_is_asked_for_on_the_host(method: str, tasks: int) -> None:
    """Tensors without values, said to be on a GPU: asking for one, or mixing in the CPU's, raises."""
    with FakeTensorMode():
        weighting = make(method, tasks).to("cuda")
        found = weighting.weights(torch.empty(tasks, tasks, device="cuda"), torch.empty(tasks, device="cuda"))
        assert found.device.type == "cuda"


def test_small_eigenvalues_are_found_to_relative_precision() -> None:
    draw = torch.Generator().manual_seed(0)
    for tasks in (2, 3, 4):
        for _ in range(30):
            j = torch.randn(tasks, tasks, generator=draw, dtype=torch.float64)
            j = j * 10 ** (8 * torch.rand(tasks, 1, generator=draw, dtype=torch.float64) - 4)
            values, vectors = symmetric_eigen(j @ j.T)
            with mpmath.workdps(60):
                m = mpmath.matrix(j.tolist())
                exact = sorted(float(v) for v in mpmath.eigsy(m * m.T, eigvals_only=True))
            _, u = unit(j)
            tolerance = 1e-14 * float(torch.linalg.cond(u @ u.T))
            np.testing.assert_allclose(sorted(values.tolist()), exact, rtol=max(tolerance, 1e-14))
            torch.testing.assert_close(vectors @ vectors.T, torch.eye(tasks).double(), rtol=0, atol=1e-14)
    # Equal diagonals and equal off-diagonals: every rotation a tie.
    values, vectors = symmetric_eigen(torch.ones(4, 4).double())
    torch.testing.assert_close(values.sort().values, torch.tensor([0.0, 0, 0, 4]).double(), rtol=0, atol=1e-14)


def test_elimination_solves_and_can_be_used_again() -> None:
    for tasks in (1, 2, 3, 4, 7):
        system = Elimination(torch.empty(tasks, tasks).double())
        for seed in range(3):
            j = torch.randn(tasks, tasks + 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            system.matrix.copy_(j @ j.T)
            system.right.copy_(j[:, 0])
            torch.testing.assert_close(system.solve(), torch.linalg.solve(j @ j.T, j[:, 0]), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (NashMTL, {"max_norm": 0.0}),
        *((NashMTL, {"max_norm": x}) for x in (float("nan"), "abc", True)),
        *((FairGrad, {"alpha": x}) for x in (0.0, "abc", None, True)),
        *((IMTL, {"lr": x}) for x in (-1.0, "abc", None, True)),
        *((IMTL, {"hybrid": x}) for x in ("off", 1, None)),
        (AlignedMTL, {"scale": "mean"}),
    ],
)
def test_wrong_options_name_themselves(cls: Callable[..., SolvedWeighting], options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"weighting\.{next(iter(options))} .*should be|weighting\.scale should be"):
        cls(task_set(2), **options)


def test_agrees_with_torchjd() -> None:
    """Its aligned-mtl and imtl-g are the same functions."""
    aggregation = pytest.importorskip("torchjd.aggregation")
    for tasks in (2, 3):
        for j in jacobians(tasks, 6, seed=2):
            _, u = unit(j)
            for scale in ("min", "median", "rmse"):
                peer = aggregation.AlignedMTL(scale_mode=scale)(u)
                w, _ = run(AlignedMTL(task_set(tasks), scale=scale), u @ u.T)
                torch.testing.assert_close(w @ u, peer, rtol=1e-4, atol=1e-6)
            w, degenerate = run(IMTL(task_set(tasks)), u @ u.T)
            if not degenerate:
                torch.testing.assert_close(w @ u, aggregation.IMTLG()(u), rtol=1e-4, atol=1e-6)
