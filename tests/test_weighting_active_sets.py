"""mgda, cagrad and upgrad give the optimum of their programs, also where it is not unique."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy.optimize import minimize, nnls
from torch import Tensor

from mtlcar.errors import UserError
from mtlcar.tasks import Task, TaskSet
from mtlcar.weightings import active_sets
from mtlcar.weightings.algebra import geometry
from mtlcar.weightings.base import SolvedWeighting
from tests import weighting_net

MANY = active_sets.ENUMERATED + 1
NAMES = ("mgda", "cagrad", "upgrad")


def make(name: str, tasks: int, **overrides: object) -> SolvedWeighting:
    weighting = weighting_net.make(name, TaskSet(tuple(Task(f"t{i}", "regression") for i in range(tasks))), **overrides)
    assert isinstance(weighting, SolvedWeighting)
    return weighting


def weigh(weighting: SolvedWeighting, jacobian: Tensor, losses: Tensor | None = None) -> Tensor:
    losses = torch.ones(len(jacobian)) if losses is None else losses
    return weighting.weights(jacobian @ jacobian.T, losses)


def jacobians(tasks: int, seed: int = 0) -> Iterator[Tensor]:
    """Float64, of rank 1 to T (of many tasks the ends and the middle), at all scales, alike and apart."""
    rng = torch.Generator().manual_seed(seed)
    ranks = range(1, tasks + 1) if tasks < MANY else (1, 2, tasks // 2, tasks - 1, tasks)
    for _ in range(3):
        for rank in ranks:
            j = torch.randn(tasks, rank, generator=rng, dtype=torch.float64)
            j += 0.7 * torch.randn(rank, generator=rng, dtype=torch.float64)  # else almost everything conflicts
            for scale in (1e-12, 1.0, 1e12):
                yield j * scale
            yield j * 10 ** (6 * torch.rand(tasks, 1, generator=rng, dtype=torch.float64) - 3)


def mgda_oracle(j: np.ndarray) -> np.ndarray:
    """The nearest point of the hull as non-negative least squares with an extra row of ones."""
    extended = np.vstack([j.T / np.linalg.norm(j, axis=1).min(), np.ones(len(j))])
    w = nnls(extended, np.append(np.zeros(j.shape[1]), 1.0), maxiter=1000)[0]
    return np.asarray(w / w.sum())


def upgrad_oracle(j: np.ndarray) -> np.ndarray:
    """The mean of the projections as a direction, which is unique where the weights are not."""
    norms = np.linalg.norm(j, axis=1)
    unit = j / norms[:, None]
    found = np.zeros(j.shape[1])
    for i in range(len(j)):
        others = np.delete(unit, i, axis=0)
        found += (unit[i] + others.T @ nnls(others.T, -unit[i], maxiter=1000)[0]) * norms[i]
    return found / len(j)


def cagrad_dual(j: np.ndarray, c: float) -> float:
    """min of F over the simplex, by SLSQP from every corner and the middle."""
    mean = j.mean(0)
    k = c * np.linalg.norm(mean)

    def objective(w: np.ndarray) -> float:
        return float((j.T @ w) @ mean + k * np.linalg.norm(j.T @ w))

    starts = [np.full(len(j), 1 / len(j)), *(0.9 * np.eye(len(j)) + 0.1 / len(j))]
    total = {"type": "eq", "fun": lambda w: w.sum() - 1}
    found = [
        minimize(objective, w, method="SLSQP", bounds=[(0, 1)] * len(j), constraints=[total], options={"ftol": 1e-14})
        for w in starts
    ]
    return min(objective(np.clip(f.x, 0, 1) / np.clip(f.x, 0, 1).sum()) for f in found)


@pytest.mark.parametrize("tasks", [2, 3, 4, MANY])
def test_mgda_is_the_nearest_point_of_the_hull(tasks: int) -> None:
    weighting = make("mgda", tasks)
    for jacobian in jacobians(tasks):
        j, w = jacobian.numpy(), weigh(weighting, jacobian).numpy()
        assert (w >= 0).all()
        assert w.sum() == pytest.approx(1, abs=1e-12)
        oracle = mgda_oracle(j)
        share = np.linalg.norm(j, axis=1) * oracle  # what each task adds to the direction
        assert np.linalg.norm(j.T @ w) <= np.linalg.norm(j.T @ oracle) + 1e-9 * share.max()
        if j.shape[1] == tasks:
            np.testing.assert_allclose(np.linalg.norm(j, axis=1) * w, share, rtol=0, atol=1e-9 * share.max())
    assert weighting.degenerate == 0


@pytest.mark.parametrize("tasks", [2, 3, 4, MANY])
def test_upgrad_is_the_mean_of_the_projections(tasks: int) -> None:
    weighting = make("upgrad", tasks)
    for jacobian in jacobians(tasks):
        j, w = jacobian.numpy(), weigh(weighting, jacobian).numpy()
        assert (w >= 1 / tasks - 1e-15).all()
        scale = np.linalg.norm(j, axis=1).max()
        np.testing.assert_allclose(j.T @ w, upgrad_oracle(j), rtol=0, atol=1e-9 * scale)
    assert weighting.degenerate == 0


@pytest.mark.parametrize("c", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("tasks", [2, 3, 4, MANY])
def test_cagrad_reaches_the_bound_that_its_dual_sets(tasks: int, c: float) -> None:
    weighting = make("cagrad", tasks, c=c)
    for jacobian in jacobians(tasks):
        j, w = jacobian.numpy(), weigh(weighting, jacobian).numpy()
        norms, mean = np.linalg.norm(j, axis=1), np.linalg.norm(j.mean(0))
        d = j.T @ w
        assert np.linalg.norm(d - j.mean(0)) == pytest.approx(c * mean, rel=1e-9)
        # Weak duality: no w has F(w) below the worst-off task's gain of any d, and equality proves both optimal.
        added = w - 1 / tasks
        at = added / added.sum()
        dual = (j.T @ at) @ j.mean(0) + c * mean * np.linalg.norm(j.T @ at)
        assert (at >= -1e-12).all()
        assert (j @ d).min() == pytest.approx(dual, rel=0, abs=1e-6 * mean * norms.min())
    assert weighting.degenerate == 0


@pytest.mark.parametrize("tasks", [2, 3, 4])
def test_cagrad_agrees_with_a_general_solver(tasks: int) -> None:
    weighting = make("cagrad", tasks, c=0.4)
    rng = torch.Generator().manual_seed(5)
    for _ in range(6):
        jacobian = torch.randn(tasks, 5, generator=rng, dtype=torch.float64)
        j, w = jacobian.numpy(), weigh(weighting, jacobian).numpy()
        assert (j @ j.T @ w).min() == pytest.approx(cagrad_dual(j, 0.4), rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("overrides", [{}, {"normalization": "l2"}])
def test_mgda_of_two_tasks_is_the_closed_form(overrides: dict[str, str]) -> None:
    rng = torch.Generator().manual_seed(2)
    for _ in range(20):
        j = torch.randn(2, 3, generator=rng, dtype=torch.float64)
        g = (j / j.norm(dim=1, keepdim=True) if overrides else j).numpy()
        a, b, ab = g[0] @ g[0], g[1] @ g[1], g[0] @ g[1]
        first = np.clip((b - ab) / (a + b - 2 * ab), 0, 1)
        np.testing.assert_allclose(weigh(make("mgda", 2, **overrides), j), [first, 1 - first], atol=1e-12)


@pytest.mark.parametrize("tasks", [2, 3, MANY])
def test_mgda_normalisations_are_those_of_the_divided_gradients(tasks: int) -> None:
    rng = torch.Generator().manual_seed(3)
    j = torch.randn(tasks, tasks, generator=rng, dtype=torch.float64)
    losses = torch.rand(tasks, generator=rng, dtype=torch.float64) + 0.1
    norms = j.norm(dim=1)
    for name, divisor in {"loss": losses, "l2": norms, "loss_plus": losses * norms}.items():
        expected = weigh(make("mgda", tasks), j / divisor[:, None])
        torch.testing.assert_close(weigh(make("mgda", tasks, normalization=name), j, losses), expected)


@pytest.mark.parametrize("normalization", ["loss", "loss_plus", "l2"])
def test_mgda_counts_a_normalisation_that_has_no_answer(normalization: str) -> None:
    weighting = make("mgda", 2, normalization=normalization)
    w = weigh(weighting, torch.tensor([[3.0, 0.0], [0.0, 0.0 if normalization == "l2" else 1.0]]), torch.zeros(2))
    torch.testing.assert_close(w, torch.tensor([0.0, 1.0] if normalization == "l2" else [0.1, 0.9]))
    assert weighting.degenerate == 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tasks", [2, 3, 4, MANY])
def test_tasks_with_one_gradient_get_one_weight(name: str, tasks: int) -> None:
    for dtype in (torch.float64, torch.float32):
        j = torch.tensor([[0.3, -1.1]], dtype=dtype).expand(tasks, 2)
        w = weigh(make(name, tasks), j)
        torch.testing.assert_close(w, w.mean().expand(tasks), rtol=1e-5, atol=0)
    if tasks > 2:  # and so where another task conflicts with them
        w = weigh(make(name, tasks), torch.cat([j[1:], torch.tensor([[-1.0, 2.0]])]).double())
        torch.testing.assert_close(w[:-1], w[:-1].mean().expand(tasks - 1), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tasks", [2, 3, 4, MANY])
def test_weights_follow_a_permutation_and_ignore_the_common_scale(name: str, tasks: int) -> None:
    weighting = make(name, tasks)
    order = torch.randperm(tasks, generator=torch.Generator().manual_seed(4))
    for j in jacobians(tasks, seed=1):
        gramian = j @ j.T
        w = weighting.weights(gramian, torch.ones(tasks))
        again = weighting.weights(gramian[order][:, order], torch.ones(tasks))
        contributes = (w - again[order.argsort()]).abs() * j.norm(dim=1)
        assert (contributes <= 1e-5 * (w * j.norm(dim=1)).max()).all()
        torch.testing.assert_close(weighting.weights(gramian * 2.0**40, torch.ones(tasks)), w)


def orders(tasks: int) -> list[Tensor]:
    """Those that swap two tasks, one for each tie between two, and those that turn all of them on."""
    found = [torch.arange(tasks).roll(k) for k in range(1, tasks)]
    for i, j in itertools.combinations(range(tasks), 2):
        found.append(torch.arange(tasks))
        found[-1][[i, j]] = torch.tensor([j, i])
    return found


def every_order(weighting: SolvedWeighting, gramian: Tensor) -> None:
    """Not to a tolerance: up to the last bit, and counted alike."""
    tasks = len(gramian)
    before = int(weighting.degenerate)
    w = weighting.weights(gramian, torch.ones(tasks))
    counted = int(weighting.degenerate) - before
    for p in orders(tasks):
        before = int(weighting.degenerate)
        again = weighting.weights(gramian[p][:, p], torch.ones(tasks))
        torch.testing.assert_close(again, w[p], rtol=4 * torch.finfo(w.dtype).eps, atol=0)
        assert int(weighting.degenerate) - before == counted


def from_cosines(tasks: int, *above: float) -> Tensor:
    c = torch.eye(tasks)
    rows, columns = torch.triu_indices(tasks, tasks, 1)
    c[rows, columns] = c[columns, rows] = torch.tensor(above)
    return c


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_order_decides_between_near_ties(name: str, dtype: torch.dtype) -> None:
    lengths = torch.tensor([1.0, 1.0 + 1e-6, 0.9, 3.0])
    cases = [
        from_cosines(3, 0.9999968, 0.9999984, 0.9999978),
        from_cosines(4, -0.999998, 0.3, -0.1, -0.3, 0.1, -0.4),
        from_cosines(4, 0.999999, 0.9999985, -0.9999992, 0.9999991, -0.999999, -0.9999987),
    ]
    rng = torch.Generator().manual_seed(9)
    for size in (1e-7, 3e-7, 1e-6, 3e-6, 1e-5):
        for signs in ([1, 1, 1, 1], [1, -1, 1, 1], [1, -1, 1, -1]):
            j = torch.tensor(signs)[:, None] * (
                torch.tensor([1.0, 2.0, -1.0]) + size * torch.randn(4, 3, generator=rng)
            )
            cases += [(j @ j.T), (j[:3] @ j[:3].T)]
    for c in cases:
        c = ((c + c.T) / 2).to(dtype)
        n = lengths[: len(c)].to(dtype)
        every_order(make(name, len(c)), c)
        every_order(make(name, len(c)), torch.outer(n, n) * c)


@pytest.mark.parametrize("c", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_order_decides_what_cagrad_does_about_opposed_gradients(c: int, dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(10)
    counted = 0
    for trial in range(12):
        j = torch.randn(2 + trial % 3, 5, generator=rng, dtype=dtype)
        j[1] = -j[0] * (1.0, 0.7, 3.3, 1e-3)[trial // 3]
        weighting = make("cagrad", len(j), c=c)
        gramian = j @ j.T
        every_order(weighting, (gramian + gramian.T) / 2)
        counted += int(weighting.degenerate) > 0
    assert counted >= 6 or c == 1


def test_cosines_with_a_gradient_that_vanishes_are_zero() -> None:
    """Also where the product of two lengths is there and the square of the shorter has underflowed."""
    g = geometry(torch.tensor([[1.0, 1e-30], [1e-30, 0.0]]), torch.ones(2))
    assert g.cosines.tolist() == [[1, 0], [0, 1]]
    for name in NAMES:
        assert make(name, 2).weights(torch.tensor([[1.0, -1e-30], [-1e-30, 0.0]]), torch.ones(2)).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tasks", [2, 3, 4, MANY])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_are_finite_whatever_the_gradients(name: str, tasks: int, dtype: torch.dtype) -> None:
    weighting = make(name, tasks)
    cases = [j.to(dtype) for j in jacobians(tasks, seed=2)]
    base = torch.randn(tasks, 3, generator=torch.Generator().manual_seed(6), dtype=dtype)
    signs = torch.ones(tasks, 1, dtype=dtype)
    signs[1::2] = -1
    zero_row = base.clone()
    zero_row[0] = 0
    cases += [base * 0, zero_row, signs * base[:1], signs * base[:1] * torch.arange(1, tasks + 1)[:, None]]
    cases += [base - base.mean(0), base[:1] + 1e-7 * base, signs * base[:1] + 1e-4 * base]
    for j in cases:
        w = weigh(weighting, j)
        assert w.dtype == dtype
        assert torch.isfinite(w).all()
        assert (w >= 0).all()
    before = int(weighting.degenerate)
    torch.testing.assert_close(weigh(weighting, base * torch.nan), torch.full((tasks,), 1 / tasks, dtype=dtype))
    assert weighting.degenerate == before + 1


@pytest.mark.parametrize("tasks", [2, 3, 4, MANY])
def test_zero_gradients_have_the_documented_weights(tasks: int) -> None:
    j = torch.eye(tasks, dtype=torch.float64) + 0.1
    j[-1] = 0
    alone = torch.eye(tasks, dtype=torch.float64)[-1]
    mean = torch.full((tasks,), 1 / tasks, dtype=torch.float64)
    torch.testing.assert_close(weigh(make("mgda", tasks), j), alone)
    torch.testing.assert_close(weigh(make("upgrad", tasks), j), mean)
    cagrad = make("cagrad", tasks)
    torch.testing.assert_close(weigh(cagrad, j), mean)
    assert cagrad.degenerate == 1
    torch.testing.assert_close(weigh(cagrad, j * 0), mean)  # g_0 = 0 is an answer
    assert cagrad.degenerate == 1


@pytest.mark.parametrize("tasks", [3, 4, MANY])
def test_mgda_finds_zero_inside_the_hull(tasks: int) -> None:
    j = torch.zeros(tasks, 2, dtype=torch.float64)
    j[0], j[1], j[2:] = torch.tensor([1e-3, 0.0]), torch.tensor([-1.0, 0.0]), torch.tensor([0.5, 2.0])
    w = weigh(make("mgda", tasks), j)
    assert (w @ j).norm() < 1e-10
    torch.testing.assert_close(w[:2], torch.tensor([1.0, 1e-3], dtype=torch.float64) / 1.001, rtol=1e-6, atol=0)


@pytest.mark.parametrize("tasks", [2, 3, 4, MANY])
def test_cagrad_where_its_definition_divides_by_zero_stays_nearest_to_the_mean(tasks: int) -> None:
    # The first two are opposed and c > 1: no direction helps both, so the best one is orthogonal to them.
    j = torch.zeros(tasks, 3, dtype=torch.float64)
    j[0, 0], j[1, 0], j[2:, 1] = 2.0, -1.0, 1.0
    weighting = make("cagrad", tasks, c=1.5)
    d = weigh(weighting, j) @ j
    torch.testing.assert_close(d, j.mean(0) * torch.tensor([0.0, 1.0, 0.0]).double(), atol=1e-6, rtol=0)
    assert weighting.degenerate == 1


def test_cagrad_of_no_neighbourhood_is_the_mean_and_rescale_divides() -> None:
    j = torch.tensor([[2.0, 0.0, 1.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]).double()
    torch.testing.assert_close(weigh(make("cagrad", 3, c=0), j), torch.full((3,), 1 / 3).double())
    torch.testing.assert_close(weigh(make("cagrad", 3, rescale=True), j) * 1.25, weigh(make("cagrad", 3), j))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tasks", [2, 3, 4])
def test_float32_gramians_are_solved_as_exactly_as_float64_ones(name: str, tasks: int) -> None:
    weighting = make(name, tasks)
    for j in (j for j in jacobians(tasks, seed=8) if j.shape[1] == tasks):
        gramian = (j @ j.T).float()
        norms = gramian.double().diagonal().sqrt()
        found = weighting.weights(gramian, torch.ones(tasks)).double() * norms
        expected = weighting.weights(gramian.double(), torch.ones(tasks)) * norms
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * float(expected.max()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tasks", [3, 4, 5])
def test_both_solvers_agree(name: str, tasks: int) -> None:
    weighting, iterated = make(name, tasks), make(name, tasks)
    iterated.supports = torch.zeros(0, tasks, dtype=torch.bool)
    for j in jacobians(tasks, seed=3):
        difference = (weigh(weighting, j) - weigh(iterated, j)) @ j
        assert difference.norm() <= 1e-6 * j.norm(dim=1).max()


@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_torchjd(name: str) -> None:
    aggregation = pytest.importorskip("torchjd.aggregation")
    # Its UPGrad adds a ridge of 1e-4 unless told not to; its CAGrad and UPGrad bring solver libraries of their own.
    if name == "mgda":
        theirs = aggregation.MGDAWeighting(epsilon=1e-9, max_iters=10_000)
    elif name == "cagrad":
        pytest.importorskip("cvxpy")
        theirs = aggregation.CAGradWeighting(c=0.5)
    else:
        pytest.importorskip("quadprog")
        projector = pytest.importorskip("torchjd.linalg").QuadprogProjector(norm_eps=0.0, reg_eps=1e-10)
        theirs = aggregation.UPGradWeighting(projector=projector)
    rng = torch.Generator().manual_seed(7)
    for tasks in (2, 3, 4):
        j = torch.randn(tasks, 6, generator=rng, dtype=torch.float64)
        torch.testing.assert_close(weigh(make(name, tasks), j), theirs(j @ j.T), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "overrides", "said"),
    [
        ("mgda", {"normalization": "loss+"}, "loss_plus"),
        ("cagrad", {"c": -0.1}, "at least 0"),
        ("cagrad", {"c": float("nan")}, "at least 0"),
        ("cagrad", {"c": True}, r"weighting\.c "),
        ("cagrad", {"rescale": 2}, "true or false"),
        ("upgrad", {"weights": {"t0": 1.0}}, "finds its own weights"),
    ],
)
def test_wrong_options_are_refused(name: str, overrides: dict[str, object], said: str) -> None:
    with pytest.raises(Exception, match=said) as raised:
        make(name, 2, **overrides)
    assert isinstance(raised.value.__cause__ or raised.value, UserError)
