"""pcgrad, gradvac and gradnorm against the papers' algorithms on the gradients themselves."""

import copy
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from mtlcar.errors import UserError
from mtlcar.tasks import Task, TaskSet
from mtlcar.weightings.base import SolvedWeighting
from mtlcar.weightings.gradnorm import GradNorm
from mtlcar.weightings.gradvac import GradVac
from mtlcar.weightings.pcgrad import PCGrad, random_orders, rounds

SETS = {t: TaskSet(tuple(Task(f"task{i}", "regression") for i in range(t))) for t in range(1, 7)}
Orders = list[list[int]]


def jacobians(tasks: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Random [T, P], rank 1 to T, of one scale from 1e-12 to 1e12 and with lengths up to 1e6 apart."""
    rng = np.random.default_rng(seed)
    for rank in range(1, tasks + 1):
        for spread in (0.0, 6.0):
            for scale in (1e-12, 1.0, 1e12):
                for shift in (-0.7, 0.0, 0.7):  # conflicts, by chance, seldom
                    J = rng.normal(size=(tasks, rank)) @ np.linalg.qr(rng.normal(size=(9, rank)))[0].T
                    J[1:] += shift * np.abs(rng.normal()) * J[0]
                    yield J * 10 ** (spread * (rng.random((tasks, 1)) - 0.5)) * scale


def weights(weighting: SolvedWeighting, J: np.ndarray, losses: Tensor | None = None) -> np.ndarray:
    losses = torch.ones(len(J), dtype=torch.float64) if losses is None else losses
    found = weighting.weights(torch.from_numpy(J @ J.T), losses)
    assert found.dtype == torch.float64
    return found.numpy()


def next_orders(weighting: PCGrad | GradVac, tasks: int) -> Orders:
    """The orders that the next call will draw."""
    if tasks == 2:
        return [[1], [0]]
    return random_orders(tasks, copy.deepcopy(weighting).draw())


def pcgrad_on_vectors(J: np.ndarray, orders: Orders) -> np.ndarray:
    """Algorithm 1 of arXiv 2001.06782 on the vectors; the weights are kept along."""
    total = np.zeros(len(J))
    for i, order in enumerate(orders):
        g, c = J[i].copy(), np.eye(len(J))[i]
        for j in order:
            if g @ J[j] < 0:
                step = (g @ J[j]) / (J[j] @ J[j])
                g, c = g - step * J[j], c - step * np.eye(len(J))[j]
        total += c
        assert np.allclose(c @ J, g, rtol=1e-9, atol=1e-9 * np.abs(J[i]).max())
    return total


def gradvac_on_vectors(J: np.ndarray, orders: Orders, phi: np.ndarray, beta: float) -> np.ndarray:
    """Algorithm 1 of arXiv 2010.05874 on the vectors; `phi` is moved in place."""
    total = np.zeros(len(J))
    for i, order in enumerate(orders):
        g, c = J[i].copy(), np.eye(len(J))[i]
        for j in order:
            n, m = np.linalg.norm(g), np.linalg.norm(J[j])
            cos = np.clip(g @ J[j] / (n * m), -1, 1)
            target = phi[i, j]
            if cos < target:
                own, to = np.sqrt(1 - cos**2), np.sqrt(1 - target**2)
                step = n * (target * own - cos * to) / (m * to)
                g, c = g + step * J[j], c + step * np.eye(len(J))[j]
                if own > 1e-3:  # the promise of the paper's formula: now they are as far apart as the target says
                    assert np.isclose(g @ J[j] / (np.linalg.norm(g) * m), target, atol=1e-6)
            phi[i, j] = (1 - beta) * target + beta * cos
        total += c
    return total


def close(found: np.ndarray, expected: np.ndarray, J: np.ndarray, rtol: float) -> None:
    """In the lengths that the weighted gradients have, next to which rounding is small."""
    n = np.linalg.norm(J, axis=1)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=0)
    np.testing.assert_allclose(found * n, expected * n, rtol=rtol, atol=rtol * n.max())


# --- orders -----------------------------------------------------------------------------------------------------------


def test_every_order_of_the_others_is_drawn_equally_often() -> None:
    generator = torch.Generator().manual_seed(0)
    counts: dict[tuple[int, ...], int] = {}
    for _ in range(600):
        for i, order in enumerate(random_orders(4, generator)):
            assert sorted([i, *order]) == [0, 1, 2, 3]
            counts[i, *order] = counts.get((i, *order), 0) + 1
    assert len(counts) == 24
    assert all(60 < c < 145 for c in counts.values()), counts  # 100 expected


def test_rounds_are_the_orders_one_meeting_at_a_time() -> None:
    orders = [[2, 1], [0, 2], [1, 0]]
    masks = rounds(orders, torch.eye(3, dtype=torch.float64))
    assert [m.argmax(1).tolist() for m in masks] == [[2, 0, 1], [1, 2, 0]]
    assert all(m.sum() == 3 and m.dtype == torch.float64 for m in masks)


@pytest.mark.parametrize("kind", [PCGrad, GradVac])
def test_two_tasks_draw_nothing_and_more_draw_once_a_call(kind: type[PCGrad] | type[GradVac]) -> None:
    for tasks, drawn in ((2, 0), (3, 4)):
        weighting = kind(SETS[tasks])
        state = torch.get_rng_state()
        for J in list(jacobians(tasks))[:4]:
            weights(weighting, J)
        assert weighting.calls == drawn
        assert torch.equal(state, torch.get_rng_state()), "the global generator belongs to the rest of the run"


# --- pcgrad -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tasks", [2, 3, 4, 6])
def test_pcgrad_is_the_papers_algorithm(tasks: int) -> None:
    weighting = PCGrad(SETS[tasks])
    conflicts = 0
    for J in jacobians(tasks):
        expected = pcgrad_on_vectors(J, next_orders(weighting, tasks))
        conflicts += bool((expected > 1.01).any())
        close(weights(weighting, J), expected, J, 1e-9)
    assert conflicts > 10
    assert weighting.degenerate == 0


@pytest.mark.parametrize("tasks", [2, 3, 4])
def test_pcgrad_of_a_float32_gramian_agrees_to_its_rounding(tasks: int) -> None:
    weighting = PCGrad(SETS[tasks])
    for J in jacobians(tasks):
        orders = next_orders(weighting, tasks)
        found = weighting.weights(torch.from_numpy(J @ J.T).float(), torch.ones(tasks))
        assert found.dtype == torch.float32
        n = np.linalg.norm(J, axis=1)
        gap = np.abs(found.numpy() - pcgrad_on_vectors(J, orders)) * n
        assert gap.max() < 2e-6 * n.max()


@pytest.mark.parametrize("cosine", [-1.0, -0.999, -0.5, 0.0, 0.3, 1.0])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_pcgrad_of_two_tasks_is_the_closed_form(cosine: float, scale: float) -> None:
    n = np.array([3.0, 0.001]) * scale
    G = torch.tensor([[n[0] ** 2, cosine * n[0] * n[1]], [cosine * n[0] * n[1], n[1] ** 2]])
    push = max(0.0, -cosine)
    found = PCGrad(SETS[2]).weights(G.float(), torch.ones(2))
    torch.testing.assert_close(found, torch.tensor([1 + push / 3000, 1 + push * 3000]), rtol=1e-5, atol=0)


def test_pcgrad_without_conflicts_is_the_sum() -> None:
    rng = np.random.default_rng(1)
    for tasks in (2, 3, 4):
        for _ in range(20):
            assert (weights(PCGrad(SETS[tasks]), np.abs(rng.normal(size=(tasks, 5)))) == 1).all()


@pytest.mark.parametrize("kind", [PCGrad, GradVac])
@pytest.mark.parametrize("tasks", [2, 3, 4])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_opposed_gradients_cancel_with_finite_weights(
    kind: Callable[[TaskSet], SolvedWeighting], tasks: int, scale: float
) -> None:
    J = np.random.default_rng(2).normal(size=(1, 7)) * np.array([1.0, -3.0, 2.0, -0.5])[:tasks, None] * scale
    w = weights(kind(SETS[tasks]), J)
    assert np.isfinite(w).all()
    assert (w >= 1 - 1e-12).all()
    # every copy meets its opposite, and nothing is left of it
    assert np.linalg.norm(w @ J) < 1e-6 * np.linalg.norm(J)


@pytest.mark.parametrize("kind", [PCGrad, GradVac])
@pytest.mark.parametrize("tasks", [2, 3, 4])
def test_a_gradient_of_zero_keeps_weight_one_and_changes_no_other(
    kind: Callable[[TaskSet], SolvedWeighting], tasks: int
) -> None:
    J = np.random.default_rng(3).normal(size=(tasks, 2))
    for gone in range(tasks):
        cut = J.copy()
        cut[gone] = 0
        weighting = kind(SETS[tasks])
        w = weights(weighting, cut)
        assert np.isfinite(w).all()
        assert w[gone] == 1
        rest = np.delete(cut, gone, 0)
        if len(rest) == 2:
            np.testing.assert_allclose(np.delete(w, gone), weights(kind(SETS[2]), rest), rtol=1e-12)
        assert weighting.degenerate == (kind is GradVac)
    assert (weights(kind(SETS[tasks]), 0 * J) == 1).all()


# --- gradvac ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tasks", [2, 3, 4])
def test_gradvacs_first_call_is_pcgrads_for_the_same_orders(tasks: int) -> None:
    for J in jacobians(tasks):
        first, second = PCGrad(SETS[tasks], name="same"), GradVac(SETS[tasks], name="same")
        second.seed = first.seed
        close(weights(second, J), weights(first, J), J, 1e-6)


@pytest.mark.parametrize("beta", [0.01, 0.5, 1.0])
@pytest.mark.parametrize("tasks", [2, 3, 4])
def test_gradvac_is_the_papers_algorithm_call_after_call(tasks: int, beta: float) -> None:
    rng = np.random.default_rng(4)
    weighting, phi = GradVac(SETS[tasks], beta=beta), np.zeros((tasks, tasks))
    above = below = 0
    for call in range(60):
        shared = 1.5 if call < 30 else -0.5
        J = rng.normal(size=(tasks, 9)) + shared * rng.normal(size=9) * rng.choice([1, 0.1], size=(tasks, 1))
        J *= 10 ** rng.uniform(-3, 3, size=(tasks, 1)) * 10.0 ** rng.integers(-9, 9)
        expected = gradvac_on_vectors(J, next_orders(weighting, tasks), phi, beta)
        close(weights(weighting, J), expected, J, 1e-9)
        np.testing.assert_allclose(weighting.phi.numpy(), phi, rtol=1e-9, atol=1e-12)
        above, below = above + (phi > 0.02).sum(), below + (phi < 0).sum()
    assert above, "targets have risen"
    if beta > 0.1:
        assert below, "targets have fallen below 0"
    assert (weighting.phi.diagonal() == 0).all()
    assert weighting.degenerate == 0


def test_gradvac_reaches_its_target() -> None:
    weighting = GradVac(SETS[2], beta=1.0)
    weights(weighting, np.array([[1.0, 0.0], [0.8, 0.6]]))  # sets phi to 0.8
    J = np.array([[2.0, 0.0], [0.0, 5.0]])
    # From 90 degrees to cosine 0.8: tan = 3/4, so 4/3 of the own length is added along the other.
    np.testing.assert_allclose(weights(weighting, J), [1 + 4 / 3 * 5 / 2, 1 + 4 / 3 * 2 / 5], rtol=1e-12)


def test_gradvacs_phi_of_an_undefined_cosine_stays_and_the_step_is_counted() -> None:
    J = np.random.default_rng(5).normal(size=(3, 4))
    weighting = GradVac(SETS[3], beta=0.5)
    weights(weighting, J)
    before = weighting.phi.clone()
    assert weighting.degenerate == 0
    J[1] = 0
    assert weights(weighting, J)[1] == 1
    assert weighting.degenerate == 1
    moved = weighting.phi != before
    assert moved.nonzero().tolist() == [[0, 2], [2, 0]]


def test_gradvac_of_two_tasks_does_nothing_about_a_gradient_of_zero() -> None:
    weighting = GradVac(SETS[2], beta=0.5)
    weights(weighting, np.array([[1.0, 0.0], [0.8, 0.6]]))
    before = weighting.phi.clone()
    assert before[0, 1] > 0.3, "a target above the cosine 0 that the arithmetic would see"
    assert (weights(weighting, np.array([[1.0, 0.0], [0.0, 0.0]])) == 1).all()
    assert torch.equal(weighting.phi, before)
    assert weighting.degenerate == 1


@pytest.mark.parametrize(("gap", "push"), [(1e-6, 1e3), (1e-12, 1e4)])
def test_gradvac_follows_its_definition_until_corrections_are_1e4_long(gap: float, push: float) -> None:
    weighting = GradVac(SETS[2])
    weighting.phi.fill_(float(np.sqrt(1 - gap))).fill_diagonal_(0)
    np.testing.assert_allclose(weights(weighting, np.eye(2)), 1 + push, rtol=1e-5)


def test_gradvac_counts_a_copy_that_was_cancelled_and_corrects_it_no_further() -> None:
    a, b = np.array([1.0, 0.3, 0.0]), np.array([0.5, 0.5, 0.7])
    J = np.stack([a, -2 * a, b])
    seen = set()
    for seed in range(20):
        weighting = GradVac(SETS[3], beta=0.5)
        weighting.seed = seed
        orders = next_orders(weighting, 3)
        seen.add(cancelled := orders[0] == [1, 2] or orders[1] == [0, 2])
        w = weights(weighting, J)
        assert np.isfinite(w).all()
        assert np.abs(w).max() < 10
        assert weighting.degenerate == cancelled
        assert (weighting.phi[0, 2] == 0) == (orders[0] == [1, 2])
    assert seen == {True, False}


@pytest.mark.parametrize("tasks", [2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradvac_stays_finite_with_targets_at_the_ends(tasks: int, dtype: torch.dtype) -> None:
    for target in (1.0, 1 - 1e-12, -1.0):
        for J in jacobians(tasks):
            weighting = GradVac(SETS[tasks])
            weighting.phi.fill_(target).fill_diagonal_(0)
            w = weighting.weights(torch.from_numpy(J @ J.T).to(dtype), torch.ones(tasks, dtype=dtype))
            assert w.isfinite().all()
            assert (w > 1 - 1e-6).all()
            assert weighting.phi.isfinite().all()


def test_gradvac_with_beta_zero_is_pcgrad() -> None:
    first, second = PCGrad(SETS[3], name="same"), GradVac(SETS[3], name="same", beta=0)
    second.seed = first.seed
    rng = np.random.default_rng(6)
    for _ in range(20):
        J = rng.normal(size=(3, 5))
        close(weights(second, J), weights(first, J), J, 1e-9)


# --- gradnorm ---------------------------------------------------------------------------------------------------------


class GradNormByAutograd:
    """Algorithm 1 of arXiv 1711.02257: the L1 loss of the weighted gradients' norms, differentiated by autograd."""

    def __init__(self, tasks: int, alpha: float, lr: float) -> None:
        self.w, self.alpha, self.lr = torch.ones(tasks, dtype=torch.float64), alpha, lr
        self.first: Tensor | None = None

    def __call__(self, J: Tensor, losses: Tensor) -> Tensor:
        self.first = losses if self.first is None else self.first
        applied = self.w
        w = self.w.clone().requires_grad_()
        J = J / J.norm(dim=1).mean()
        lengths = (w[:, None] * J).norm(dim=1)
        rate = losses / self.first
        rate = rate / rate.mean()
        target = (lengths.mean() * rate**self.alpha).detach()
        (slope,) = torch.autograd.grad((lengths - target).abs().sum(), w)
        moved = (self.w - self.lr * slope).clamp(min=1e-8)
        self.w = moved * (len(moved) / moved.sum())
        return applied


@pytest.mark.parametrize(("alpha", "lr"), [(1.5, 0.025), (0.0, 0.1), (0.12, 0.9), (3.0, 0.01)])
@pytest.mark.parametrize("tasks", [2, 3, 4])
def test_gradnorm_is_the_papers_algorithm_call_after_call(tasks: int, alpha: float, lr: float) -> None:
    rng, moved = torch.Generator().manual_seed(tasks), 0.0
    for spread in (0.0, 3.0):
        weighting, oracle = GradNorm(SETS[tasks], alpha=alpha, lr=lr), GradNormByAutograd(tasks, alpha, lr)
        for call in range(60):
            lengths = 10 ** (spread * (torch.rand(tasks, 1, generator=rng, dtype=torch.float64) - 0.5))
            J = torch.randn(tasks, 9, generator=rng, dtype=torch.float64) * lengths * 10.0 ** (call % 25 - 12)
            losses = torch.rand(tasks, generator=rng, dtype=torch.float64) + 0.01
            expected = oracle(J, losses)
            found = weighting.weights(J @ J.T, losses)
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(found.sum(), torch.tensor(float(tasks), dtype=torch.float64))
            assert (found > 0).all()
            moved = max(moved, float((found - 1).abs().max()))
        assert weighting.degenerate == 0
    assert moved > 0.1


def test_gradnorm_applies_the_weights_of_before_this_step() -> None:
    weighting = GradNorm(SETS[2])
    G, losses = torch.tensor([[4.0, -1.0], [-1.0, 1.0]]), torch.tensor([0.7, 2.0])
    assert (weighting.weights(G, losses) == 1).all()
    # Norms 4/3 and 2/3, both targets 1: w = 1 - 0.025 * 4/3 and 1 + 0.025 * 2/3, times 2 / their sum.
    w = torch.tensor([1 - 1 / 30, 1 + 1 / 60])
    torch.testing.assert_close(weighting.weights(G, losses), w * 2 / w.sum())


def test_gradnorm_settles_where_the_weighted_norms_are_equal_and_follows_the_slower_task() -> None:
    G = torch.diag(torch.tensor([1.0, 4.0, 16.0]))
    weighting = GradNorm(SETS[3], alpha=1, lr=0.005)
    for _ in range(600):
        weighting.weights(G, torch.ones(3))
    torch.testing.assert_close(weighting.w.float(), torch.tensor([12.0, 6.0, 3.0]) / 7, rtol=0.03, atol=0.0)
    for _ in range(600):  # the second task has not learnt while the others have
        weighting.weights(G, torch.tensor([0.5, 1.0, 0.5]))
    # r = (3/4, 3/2, 3/4), which are targets that can all be met
    weighted = weighting.w * torch.tensor([1.0, 2.0, 4.0])
    torch.testing.assert_close((weighted[1] / weighted[0]).float(), torch.tensor(2.0), rtol=0.03, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradnorm_leaves_a_task_on_its_target_at_any_scale(dtype: torch.dtype) -> None:
    for scale in (1e-12, 0.1, 0.7, 1.0, 1e12):
        weighting = GradNorm(SETS[3])
        n = torch.tensor([1.0, 2.0, 3.0], dtype=dtype) * scale
        weighting.weights(torch.diag(n * n), torch.ones(3, dtype=dtype))
        expected = torch.tensor([1.0125, 1.0, 0.9625], dtype=torch.float64)  # 1 + .025 n / 2, 1, 1 - .025 n / 2
        torch.testing.assert_close(weighting.w, expected * 3 / expected.sum(), rtol=1e-6, atol=0.0)


def test_gradnorm_keeps_a_task_that_a_step_would_turn_uphill() -> None:
    weighting = GradNorm(SETS[2], lr=5.0)
    G, losses = torch.diag(torch.tensor([9.0, 1.0])), torch.ones(2)
    weighting.weights(G, losses)
    assert (weighting.w > 0).all()
    assert weighting.w[0] < 1e-6
    weighting.weights(G, losses)
    assert weighting.w[0] > 0.1, "it comes back"


def test_gradnorm_without_an_answer_keeps_its_weights_and_counts() -> None:
    G, losses = torch.diag(torch.tensor([9.0, 1.0])), torch.tensor([1.0, 2.0])
    weighting = GradNorm(SETS[2])
    # No loss above 0 yet: there is no rate, but the first task's L(0) is known from here on.
    assert (weighting.weights(G, torch.tensor([1.0, 0.0])) == 1).all()
    assert weighting.degenerate == 1
    assert (weighting.w == 1).all()
    assert weighting.initial.isnan().tolist() == [False, True]
    weighting.weights(G, losses)
    assert weighting.degenerate == 1
    assert weighting.initial.tolist() == [1.0, 2.0]
    w = weighting.w.clone()
    assert (w != 1).all()
    cases: list[tuple[Tensor, Tensor]] = [
        (torch.zeros(2, 2), losses),
        (G, torch.zeros(2)),
        (G, torch.tensor([1.0, torch.nan])),
        (G * torch.inf, losses),
    ]
    for count, (gramian, given) in enumerate(cases, start=2):
        assert weighting.weights(gramian, given).isfinite().all()
        assert weighting.degenerate == count
        assert torch.equal(weighting.w, w)
        assert weighting.initial.tolist() == [1.0, 2.0]
    # One zero gradient is an answer: its weight moves by the rescaling alone.
    weighting.weights(torch.diag(torch.tensor([9.0, 0.0])), losses)
    assert weighting.degenerate == count
    assert weighting.w.isfinite().all()


def test_gradnorms_initial_losses_are_not_those_of_a_step_that_overflowed() -> None:
    weighting = GradNorm(SETS[2])
    weighting.weights(torch.full((2, 2), torch.nan), torch.tensor([5.0, 5.0]))
    assert weighting.initial.isnan().all()
    weighting.weights(torch.eye(2), torch.tensor([3.0, 4.0]))
    weighting.weights(torch.eye(2), torch.tensor([1.0, 1.0]))
    assert weighting.initial.tolist() == [3.0, 4.0]


# --- state ------------------------------------------------------------------------------------------------------------

KINDS: list[Callable[[TaskSet], SolvedWeighting]] = [PCGrad, GradVac, GradNorm]


def steps() -> list[tuple[Tensor, Tensor]]:
    rng = torch.Generator().manual_seed(7)
    J = [torch.randn(3, 4, generator=rng) for _ in range(6)]
    return [(j @ j.T, torch.rand(3, generator=rng) + 0.1) for j in J]


@pytest.mark.parametrize("kind", KINDS)
def test_three_steps_and_three_resumed_are_six_uninterrupted(kind: Callable[[TaskSet], SolvedWeighting]) -> None:
    torch.manual_seed(0)
    whole = kind(SETS[3])
    expected = [whole.weights(*s) for s in steps()]
    torch.manual_seed(0)
    before = kind(SETS[3])
    found = [before.weights(*s) for s in steps()[:3]]
    torch.manual_seed(1)  # the seed comes with the state
    after = kind(SETS[3])
    after.load_state_dict(before.state_dict())
    found += [after.weights(*s) for s in steps()[3:]]
    assert torch.equal(torch.stack(found), torch.stack(expected))
    for key, value in whole.state_dict().items():
        if isinstance(value, Tensor):
            assert torch.equal(value, after.state_dict()[key])
    torch.manual_seed(1)
    fresh = kind(SETS[3])
    other = torch.stack([fresh.weights(*s) for s in steps()[3:]])
    assert not torch.equal(other, torch.stack(expected[3:])), "the state matters"


@pytest.mark.parametrize("kind", KINDS)
def test_a_micro_batch_that_is_not_the_last_moves_nothing(kind: Callable[[TaskSet], SolvedWeighting]) -> None:
    weighting = kind(SETS[3])
    for s in steps()[:2]:
        weighting.weights(*s)
    before = copy.deepcopy(weighting.state_dict())
    weighting.advances = False
    found = [weighting.weights(*steps()[2]) for _ in range(4)]
    for key, value in before.items():
        assert (
            torch.equal(torch.as_tensor(weighting.state_dict()[key]), value)
            if isinstance(value, Tensor)
            else (weighting.state_dict()[key] == value)
        )
    weighting.advances = True
    last = weighting.weights(*steps()[2])
    assert all(torch.equal(f, last) for f in found), "micro-batches of one step are weighted alike"


def test_orders_depend_on_the_runs_seed() -> None:
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        weighting = PCGrad(SETS[4])
        found.append([random_orders(4, weighting.draw()) for _ in range(3)])
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("option", [{"beta": -0.1}, {"beta": 1.1}, {"beta": "high"}, {"beta": None}, {"beta": True}])
def test_gradvac_refuses_a_beta_that_is_no_share(option: dict) -> None:
    with pytest.raises(UserError, match=r"weighting\.beta .*should be a number of at least 0 and at most 1\. Found"):
        GradVac(SETS[2], **option)


@pytest.mark.parametrize(
    "option",
    [
        *({"alpha": x} for x in (-1, float("inf"), "x", True)),
        *({"lr": x} for x in (0, None, float("nan"), True)),
    ],
)
def test_gradnorm_refuses_options_without_a_meaning(option: dict) -> None:
    with pytest.raises(UserError, match=rf"weighting\.{next(iter(option))} .*should be a number"):
        GradNorm(SETS[2], **option)


# --- another library --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tasks", [2, 3, 4])
def test_pcgrad_and_gradvac_agree_with_torchjd(tasks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the same orders. TorchJD adds 1e-8 to its denominators, which is little at norms of 1."""
    torchjd = pytest.importorskip("torchjd.aggregation")
    orders: list[Tensor] = []
    monkeypatch.setattr(torch, "randperm", lambda n: orders.pop(0))
    pcgrad, their_pcgrad = PCGrad(SETS[tasks]), torchjd.PCGrad().gramian_weighting
    gradvac, their_gradvac = GradVac(SETS[tasks], beta=0.1), torchjd.GradVac(beta=0.1).gramian_weighting
    for call in range(40):
        rng = np.random.default_rng(call)
        J = rng.normal(size=(tasks, 6)) + (1.0 if call < 20 else -0.3) * rng.normal(size=6)
        G = torch.from_numpy(J @ J.T)
        drawn = next_orders(pcgrad, tasks)
        orders[:] = [torch.tensor([i, *drawn[i]]) for i in range(tasks)]
        torch.testing.assert_close(pcgrad.weights(G, G[0]), their_pcgrad(G), rtol=1e-9, atol=0.0)
        drawn = next_orders(gradvac, tasks)
        orders[:] = [torch.tensor([k - (k > i) for k in drawn[i]]) for i in range(tasks)]
        torch.testing.assert_close(gradvac.weights(G, G[0]), their_gradvac(G), rtol=1e-4, atol=0.0)
