"""The weightings that are functions of the losses do what their definitions say."""

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlcar.errors import UserError
from mtlcar.tasks import TaskSet
from tests.weighting_net import MAKE, MODEL, SETS, TASKS, WEIGHT, YEAR, Net, X, grads, make

NAMES = ("uncertainty", "dwa", "rlw", "gls", "imtl_l", "stch", "famo")
L2 = torch.tensor([0.7, 2.0])


def weights_of(weighting: Any, losses: Tensor) -> Tensor:
    leaf = losses.clone().requires_grad_()
    return torch.autograd.grad(weighting(leaf), leaf)[0]


def some_losses(tasks: int, seed: int = 0) -> Tensor:
    return torch.rand(tasks, generator=torch.Generator().manual_seed(seed)) * 3 + 0.05


def set_state(weighting: Any, **buffers: Any) -> None:
    for name, value in buffers.items():
        getattr(weighting, name).data.copy_(torch.as_tensor(value))


def moved(name: str, tasks: TaskSet) -> Any:
    """A weighting whose state is no longer the first step's."""
    w = make(name, tasks)
    x = torch.linspace(-1, 1, len(tasks))
    match name:
        case "uncertainty" | "imtl_l":
            set_state(w, s=x)
        case "dwa":
            set_state(w, last=x.exp(), before=(0.5 * x).exp().flip(0), epochs=2)
        case "stch":
            set_state(w, z=x, epochs=5)
        case "famo":
            set_state(w, xi=x)
    return w


def objective(name: str, weighting: Any, losses: Tensor) -> Tensor:
    """The definitions of METHODS.md, written down once more."""
    kinds = [t.kind for t in weighting.tasks]
    n = len(losses)
    match name:
        case "uncertainty":
            s = weighting.s.detach()
            factor = torch.tensor([1.0 if k == "classification" else 0.5 for k in kinds])
            return sum(factor[t] * torch.exp(-s[t]) * losses[t] + s[t] / 2 for t in range(n))  # type: ignore[return-value]
        case "dwa":
            r = weighting.last / weighting.before
            w = n * torch.exp(r / 2) / torch.exp(r / 2).sum()
            return (w * losses).sum()
        case "gls":
            return losses.prod() ** (1 / n)
        case "imtl_l":
            s = weighting.s.detach()
            return (torch.exp(s) * losses - s).sum()
        case "stch":
            return n * 1.0 * torch.log(torch.exp((torch.log(losses) - weighting.z) / 1.0).sum())
        case "famo":
            z = torch.softmax(weighting.xi, 0)
            c = (z / losses).sum().detach()
            return (z * torch.log(losses) / c).sum()  # the authors' form
    raise AssertionError(name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("uncertainty", (1.0, 0.5)),  # a classification and a regression at s = 0
        ("dwa", (1.0, 1.0)),  # the first two epochs
        ("gls", (math.sqrt(1.4) / 1.4, math.sqrt(1.4) / 4)),
        ("imtl_l", (1.0, 1.0)),
        ("stch", (1 / 0.7, 0.5)),  # warm-up: sum of log L
        ("famo", (2 / 2.7, 0.7 / 2.7)),  # (1 / .7, 1 / 2) over their sum
    ],
)
def test_first_weights(name: str, expected: tuple[float, float]) -> None:
    torch.testing.assert_close(weights_of(make(name), L2), torch.tensor(expected), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "rlw"])
@pytest.mark.parametrize("tasks", [2, 3, 4])
def test_weights_are_the_gradient_of_the_definition(name: str, tasks: int) -> None:
    for seed in range(5):
        weighting, losses = moved(name, SETS[tasks]), some_losses(tasks, seed)
        leaf = losses.double().requires_grad_()
        expected = torch.autograd.grad(objective(name, weighting, leaf), leaf)[0].float()
        torch.testing.assert_close(weights_of(weighting, losses), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("dwa", "famo", "rlw")])
def test_objective_has_the_value_of_the_definition(name: str) -> None:
    weighting = moved(name, SETS[4])
    torch.testing.assert_close(weighting(some_losses(4)), objective(name, weighting, some_losses(4)))


@pytest.mark.parametrize("name", [n for n in NAMES if n != "rlw"])
def test_permuted_tasks_have_permuted_weights(name: str) -> None:
    order = torch.tensor([2, 0, 3, 1])
    tasks = (MAKE, WEIGHT, YEAR, MODEL)
    weighting, losses = moved(name, TaskSet(tasks)), some_losses(4)
    other = make(name, TaskSet(tasks[i] for i in order.tolist()))
    state = {k: v[order] if v.ndim else v for k, v in weighting.state_dict().items()}
    other.load_state_dict(state)
    torch.testing.assert_close(weights_of(other, losses[order]), weights_of(weighting, losses)[order])


@pytest.mark.parametrize(("name", "degree"), [("gls", 0), ("famo", 0), ("stch", -1), ("dwa", 0), ("uncertainty", 0)])
@pytest.mark.parametrize("scale", [1e-6, 1e-2, 1e6, 1e12])
def test_losses_in_another_unit_scale_the_weights_as_the_definition_says(name: str, degree: int, scale: float) -> None:
    weighting, losses = moved(name, SETS[3]), some_losses(3)
    torch.testing.assert_close(
        weights_of(weighting, losses * scale) / scale**degree, weights_of(weighting, losses), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tasks", [2, 3, 4])
@pytest.mark.parametrize("value", [0.0, -1.0, 1e-30, 1e-12, 1e12, 1e30])
def test_weights_are_finite_for_any_finite_loss(name: str, tasks: int, value: float) -> None:
    for new in (make, moved):
        for where in ([0], list(range(tasks))):
            losses = some_losses(tasks)
            losses[where] = value
            weighting = new(name, SETS[tasks])
            assert weights_of(weighting, losses).isfinite().all()


@pytest.mark.parametrize("name", ["gls", "stch", "famo"])
@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_loss_without_logarithm_is_left_out_and_counted(name: str, value: float) -> None:
    weighting = make(name, SETS[3])
    weights_of(weighting, some_losses(3))
    assert int(weighting.degenerate) == 0
    found = weights_of(weighting, torch.tensor([value, 0.7, 2.0]))
    assert int(weighting.degenerate) == 1
    torch.testing.assert_close(found, torch.cat([torch.zeros(1), weights_of(make(name), L2)]))


@pytest.mark.parametrize(("name", "total"), [("dwa", 3.0), ("rlw", 1.0), ("famo", 1.0)])
def test_weights_have_the_sum_of_the_docstring(name: str, total: float) -> None:
    for seed in range(3):
        assert float(weights_of(moved(name, SETS[3]), some_losses(3, seed)).sum()) == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_backward_enters_the_weighted_sum_and_the_gradient_of_trained_parameters(name: str) -> None:
    net, weighting = Net(), moved(name, SETS[2])
    same = copy.deepcopy(weighting)
    applied = weighting.backward(net.step(X, factor=0.25))
    reference = Net()
    losses, _ = reference(X)
    (same(losses) * 0.25).backward()
    torch.testing.assert_close(grads(net), grads(reference))
    torch.testing.assert_close(applied.weights, weights_of(moved(name, SETS[2]), losses.detach()))
    for own, expected in zip(weighting.parameters(), same.parameters(), strict=True):
        torch.testing.assert_close(own.grad, expected.grad)


def test_trained_scales_have_the_hand_made_gradient() -> None:
    for name, expected in (("uncertainty", (-0.7 + 0.5, -1.0 + 0.5)), ("imtl_l", (0.7 - 1, 2.0 - 1))):
        weighting = make(name)
        weighting(L2).backward()  # type: ignore[operator]
        (s,) = weighting.parameters()
        torch.testing.assert_close(s.grad, torch.tensor(expected))


@pytest.mark.parametrize("name", ["uncertainty", "imtl_l"])
def test_trained_scales_end_where_the_scaled_loss_is_a_constant(name: str) -> None:
    weighting: Any = make(name)
    for _ in range(300):
        weighting.zero_grad()
        weighting(L2).backward()
        with torch.no_grad():
            weighting.s -= 0.3 * weighting.s.grad
    constant = 0.5 if name == "uncertainty" else 1.0
    torch.testing.assert_close(weights_of(weighting, L2) * L2, torch.full((2,), constant))


@pytest.mark.parametrize("name", NAMES)
def test_one_task_has_weight_one_and_nothing_to_train(name: str) -> None:
    tasks = TaskSet((MAKE,))
    weighting = make(name, tasks)
    assert not [p for p in weighting.parameters() if p.requires_grad]
    net = nn.Linear(5, 1)
    step = Net().of(net(X).square().mean().reshape(1), X)
    assert weighting.backward(step).weights.tolist() == [1.0]  # type: ignore[union-attr]
    trainer = SimpleNamespace(global_step=0)
    weighting.on_train_batch_start(trainer, None, None, 0)  # type: ignore[arg-type]
    trainer.global_step = 1
    weighting.on_train_batch_end(trainer, None, None, None, 0)  # type: ignore[arg-type]
    weighting.on_train_epoch_end(trainer, None)  # type: ignore[arg-type]
    assert all(v.isfinite().all() for v in weighting.state_dict().values() if isinstance(v, Tensor))


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("dwa", "tau", 0),
        ("dwa", "tau", "hot"),
        ("stch", "mu", -1),
        ("stch", "warmup_epochs", 1.5),
        ("stch", "warmup_epochs", -1),
        ("famo", "lr", 0),
        ("famo", "decay", -0.1),
        ("famo", "decay", float("nan")),
    ],
)
def test_impossible_options_are_named(name: str, key: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"weighting\.{key} \({name}\) should be .* Found"):
        type(make(name))(TASKS, name=name, **{key: value})  # Hydra would wrap the error


# --- random loss weighting ---


def test_rlw_draws_a_softmax_of_normals() -> None:
    torch.manual_seed(5)
    weighting: Any = make("rlw", SETS[3])
    drawn = torch.stack([weights_of(weighting, some_losses(3)) for _ in range(4000)]).double()
    torch.testing.assert_close(drawn.mean(0), torch.full((3,), 1 / 3, dtype=torch.float64), rtol=0, atol=0.015)
    gap = drawn[:, 0].log() - drawn[:, 1].log()  # x_0 - x_1, N(0, 2)
    assert float(gap.var()) == pytest.approx(2, abs=0.2)
    assert float((gap.abs() < math.sqrt(2)).double().mean()) == pytest.approx(0.6827, abs=0.03)


def test_rlw_depends_on_the_seed_and_disturbs_no_other_random_number() -> None:
    torch.manual_seed(5)
    weighting, state = make("rlw"), torch.get_rng_state()
    first = weights_of(weighting, L2)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, weights_of(weighting, L2))
    torch.manual_seed(5)
    assert torch.equal(first, weights_of(make("rlw"), L2))
    torch.manual_seed(6)
    assert not torch.equal(first, weights_of(make("rlw"), L2))


def test_rlw_shares_a_draw_among_micro_batches() -> None:
    weighting: Any = make("rlw")
    found = [weighting.backward(Net().step(X, last=last)).weights for last in (False, True, False, True)]
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[2], found[3])
    assert not torch.equal(found[0], found[2])


# --- epoch means ---


def epoch(weighting: Any, *batches: tuple[float, ...]) -> list[Tensor]:
    found = [weights_of(weighting, torch.tensor(losses)) for losses in batches]
    weighting.on_train_epoch_end(None, None)
    return found


def test_dwa_weights_by_the_ratio_of_the_last_two_epochs() -> None:
    weighting = make("dwa", tau=0.5)
    ones = torch.ones(2)
    assert all(torch.equal(w, ones) for w in epoch(weighting, (1.0, 4.0), (3.0, 4.0)))  # means 2, 4
    assert all(torch.equal(w, ones) for w in epoch(weighting, (1.0, 1.0), (1.0, 5.0)))  # means 1, 3
    for r, means in (((0.5, 0.75), (0.3, 6.0)), ((0.3, 2.0), (0.3, 3.0)), ((1.0, 0.5), (0.6, 3.0))):
        expected = 2 * torch.softmax(torch.tensor(r) / 0.5, 0)
        for found in epoch(weighting, means, means):
            torch.testing.assert_close(found, expected)
    assert int(weighting.degenerate) == 0


def test_dwa_gives_a_task_without_a_ratio_that_of_no_change_and_counts() -> None:
    weighting = make("dwa", SETS[3])
    epoch(weighting, (1.0, 0.0, 0.0))
    epoch(weighting, (0.5, 0.0, 3.0))
    (found,) = epoch(weighting, (1.0, 1.0, 1.0))
    torch.testing.assert_close(found, 3 * torch.softmax(torch.tensor([0.5, 1.0, 1.0]) / 2, 0))
    assert int(weighting.degenerate) == 1


def test_dwa_survives_any_ratio() -> None:
    weighting = make("dwa")
    epoch(weighting, (1e-38, 1.0))
    epoch(weighting, (1e38, 1.0))
    torch.testing.assert_close(epoch(weighting, (1.0, 1.0))[0], torch.tensor([2.0, 0.0]))


def test_stch_takes_its_reference_from_the_epoch_after_the_warm_up() -> None:
    weighting: Any = make("stch", warmup_epochs=2, mu=0.5)
    for losses in ((9.0, 1.0), (5.0, 1.0)):
        assert torch.equal(epoch(weighting, losses)[0], 1 / torch.tensor(losses))
    first, second = epoch(weighting, (1.0, 2.0), (3.0, 6.0))  # means 2, 4; still sum log L
    torch.testing.assert_close((first, second), (torch.tensor([1.0, 0.5]), torch.tensor([1 / 3, 1 / 6])))
    torch.testing.assert_close(weighting.z, torch.tensor([2.0, 4.0]).log())
    for losses in ((1.0, 1.0), (0.5, 2.0), (8.0, 0.1)):  # z stays
        L = torch.tensor(losses)
        share = (L / torch.tensor([2.0, 4.0])) ** (1 / 0.5)  # exp((log L - z) / mu)
        torch.testing.assert_close(epoch(weighting, losses)[0], 2 * share / share.sum() / L)


def test_stch_without_warm_up_measures_in_the_first_epoch() -> None:
    weighting: Any = make("stch", warmup_epochs=0)
    epoch(weighting, (2.0, 4.0))
    torch.testing.assert_close(weighting.z, torch.tensor([2.0, 4.0]).log())
    assert int(weighting.epochs) == 1


@pytest.mark.parametrize("name", ["dwa", "stch"])
def test_an_epoch_without_a_step_is_no_epoch(name: str) -> None:
    overrides: dict[str, Any] = {"warmup_epochs": 1} if name == "stch" else {}
    plain, gaps = make(name, **overrides), make(name, **overrides)
    for k in range(4):
        losses = tuple(some_losses(2, k).tolist())
        gaps.on_train_epoch_end(None, None)  # type: ignore[arg-type]
        torch.testing.assert_close(epoch(gaps, losses), epoch(plain, losses))
    gaps.on_train_epoch_end(None, None)  # type: ignore[arg-type]
    torch.testing.assert_close(gaps.state_dict(), plain.state_dict())


@pytest.mark.parametrize("name", ["dwa", "stch"])
def test_epoch_means_count_finite_losses_of_training_only(name: str) -> None:
    weighting: Any = make(name)
    weighting(torch.tensor([1.0, 2.0]))
    weighting(torch.tensor([math.nan, 2.0]))
    weighting(torch.tensor([1.0, math.inf]))
    with torch.no_grad():
        weighting(torch.tensor([50.0, 50.0]))
    weighting.eval()
    weighting(torch.tensor([50.0, 50.0]))
    weighting.train()
    weighting(torch.tensor([3.0, 5.0]))
    assert weighting.mean.tolist() == [2.0, 3.5]
    assert weighting.batches.tolist() == [2, 2]


@pytest.mark.parametrize("name", ["dwa", "stch"])
def test_a_batch_without_a_label_of_a_task_is_not_in_its_mean(name: str) -> None:
    weighting: Any = make(name)
    for losses in ((2.0, 0.0), (4.0, 3.0), (0.0, 0.0), (6.0, 0.0)):
        weighting(torch.tensor(losses))
    assert weighting.mean.tolist() == [4.0, 3.0]
    assert weighting.batches.tolist() == [3, 1]


def test_dwa_compares_a_tasks_last_two_epochs_with_labels() -> None:
    weighting: Any = make("dwa", tau=1.0)
    epoch(weighting, (1.0, 8.0), (1.0, 0.0))  # means 1, 8
    epoch(weighting, (1.0, 0.0), (3.0, 4.0))  # means 2, 4
    (found,) = epoch(weighting, (1.0, 0.0))  # means 1, none
    torch.testing.assert_close(found, 2 * torch.softmax(torch.tensor([2.0, 0.5]), 0))
    (found,) = epoch(weighting, (1.0, 1.0))
    torch.testing.assert_close(found, 2 * torch.softmax(torch.tensor([0.5, 0.5]), 0))
    assert int(weighting.degenerate) == 0


def test_stch_measures_the_batches_with_labels_alone() -> None:
    weighting: Any = make("stch", warmup_epochs=0)
    epoch(weighting, (2.0, 0.0), (2.0, 8.0), (2.0, 0.0))
    torch.testing.assert_close(weighting.z, torch.tensor([2.0, 8.0]).log())
    weighting = make("stch", SETS[3], warmup_epochs=0)
    epoch(weighting, (2.0, 4.0, 0.0))
    torch.testing.assert_close(weighting.z, torch.tensor([2.0, 4.0, 1.0]).log())


def test_a_long_epoch_loses_no_digits() -> None:
    weighting: Any = make("dwa")
    for k in range(20_000):
        weighting.observe(torch.tensor([1000.1, 0.1 if k % 2 else 0.3]))
    torch.testing.assert_close(weighting.mean, torch.tensor([1000.1, 0.2]), rtol=1e-5, atol=0)


# --- state ---


class Noisy(nn.Module):
    """Two tasks on a trunk with BatchNorm and dropout, with the two things that FAMO asks of a Lightning module."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(8 * 36, 6)
        )
        self.frozen = nn.BatchNorm1d(6)
        self.first, self.second = nn.Linear(6, 3), nn.Linear(6, 1)
        self.forwards = 0
        self.train()

    def train(self, mode: bool = True) -> "Noisy":
        super().train(mode)
        self.frozen.eval()
        return self

    def losses_of(self, batch: dict[str, Tensor]) -> Tensor:
        self.forwards += 1
        z = self.frozen(self.trunk(batch["image"]))
        return torch.stack(
            [F.cross_entropy(self.first(z), batch["make"]), F.mse_loss(self.second(z)[:, 0], batch["weight"])]
        )


def batches(n: int) -> list[dict[str, Tensor]]:
    g = torch.Generator().manual_seed(3)
    return [
        {
            "image": torch.randn(8, 3, 8, 8, generator=g),
            "make": torch.randint(3, (8,), generator=g),
            "weight": torch.randn(8, generator=g),
        }
        for _ in range(n)
    ]


class Loop:
    """Lightning's order of events, with the hooks that a weighting may have."""

    world_size = 1
    precision_plugin = SimpleNamespace(train_step_context=nullcontext)

    def __init__(self, weighting: Any, lr: float = 0.1, accumulate: int = 1) -> None:
        self.net = Net()  # seeds: only to make steps
        torch.manual_seed(0)
        self.module, self.weighting = Noisy(), weighting
        self.optimizer = torch.optim.SGD([*self.module.parameters(), *weighting.parameters()], lr=lr)
        self.global_step, self.accumulate = 0, accumulate

    def run(self, data: list[dict[str, Tensor]], spy: Callable[[], None] = lambda: None) -> list[Tensor]:
        found = []
        for i, batch in enumerate(data):
            self.weighting.on_train_batch_start(self, self.module, batch, i)
            losses = self.module.losses_of(batch)
            self.weighting.backward(self.net.of(losses, X, factor=1 / self.accumulate))
            found.append(losses.detach())
            if (i + 1) % self.accumulate == 0:
                self.optimizer.step()
                self.optimizer.zero_grad()
                self.global_step += 1
            spy()
            self.weighting.on_train_batch_end(self, self.module, None, batch, i)
        return found

    def state(self) -> dict[str, Any]:
        return copy.deepcopy(
            {"module": self.module.state_dict(), "weighting": self.weighting.state_dict(), "rng": torch.get_rng_state()}
        )

    def load(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        self.weighting.load_state_dict(state["weighting"])
        torch.set_rng_state(state["rng"])


def fresh(name: str, seed: int = 11) -> Any:
    torch.manual_seed(seed)
    overrides: dict[str, Any] = {"warmup_epochs": 0} if name == "stch" else {}
    return make(name, **overrides)


@pytest.mark.parametrize("name", NAMES)
def test_three_and_three_steps_are_six(name: str) -> None:
    """Stopped in the middle of an epoch of two steps, taken up by fresh objects."""
    data = batches(6)

    def train(loop: Loop, steps: range) -> None:
        for i in steps:
            loop.run(data[i : i + 1])
            if i % 2:
                loop.weighting.on_train_epoch_end(loop, loop.module)

    whole = Loop(fresh(name))
    train(whole, range(6))
    half = Loop(fresh(name))
    train(half, range(3))
    saved = half.state()
    rest = Loop(fresh(name, seed=99))
    rest.load(saved)
    train(rest, range(3, 6))
    torch.testing.assert_close(rest.state(), whole.state(), rtol=0, atol=0)
    start = Loop(fresh(name)).state()["weighting"]
    if name != "gls":
        assert any(not torch.equal(torch.as_tensor(start[k]), torch.as_tensor(v)) for k, v in _flat(whole, start))


def _flat(loop: Loop, start: dict[str, Any]) -> list[tuple[str, Any]]:
    found = []
    for key, value in loop.state()["weighting"].items():
        if isinstance(value, dict):
            start.update({f"{key}.{k}": v for k, v in start[key].items()})
            found += [(f"{key}.{k}", v) for k, v in value.items()]
        else:
            found.append((key, value))
    return found


# --- FAMO ---


class Literal:
    """The authors' algorithm with autograd and torch's Adam."""

    def __init__(self, lr: float = 0.025, decay: float = 1e-3) -> None:
        self.w = torch.zeros(2, requires_grad=True)
        self.adam = torch.optim.Adam([self.w], lr=lr, weight_decay=decay)

    def objective(self, losses: Tensor) -> Tensor:
        self.before = losses.detach()
        z = torch.softmax(self.w, -1)
        c = (z / losses).sum().detach()
        return (losses.log() * z / c).sum()

    def update(self, after: Tensor) -> None:
        delta = self.before.log() - after.log()
        self.w.grad = torch.autograd.grad(torch.softmax(self.w, -1), self.w, grad_outputs=delta)[0]
        self.adam.step()


@pytest.mark.parametrize("decay", [1e-3, 0.5])
def test_famo_moves_as_the_authors_algorithm(decay: float) -> None:
    g = torch.Generator().manual_seed(0)
    ours: Any = make("famo", decay=decay)
    theirs = Literal(decay=decay)
    for _ in range(200):
        before = torch.rand(2, generator=g) * 2 + 0.1
        after = before * (1 - 0.2 * torch.rand(2, generator=g) * torch.tensor([1.0, 0.5]))
        leaf = before.clone().requires_grad_()
        expected = torch.autograd.grad(theirs.objective(leaf), leaf)[0]
        torch.testing.assert_close(weights_of(ours, before), expected, rtol=1e-5, atol=0)
        ours.update(after)
        theirs.update(after)
        torch.testing.assert_close(ours.xi, theirs.w.detach(), rtol=1e-5, atol=1e-6)
    assert float(ours.xi.abs().max()) > 0.02


def test_famo_gives_weight_to_the_task_that_fell_less() -> None:
    weighting: Any = make("famo")
    weights_of(weighting, torch.tensor([1.0, 1.0]))
    weighting.update(torch.tensor([0.5, 0.9]))
    assert weighting.xi.tolist() == pytest.approx([-0.025, 0.025], rel=1e-4)  # Adam's first step is lr sign(gradient)


def test_famo_in_a_training_loop_follows_the_authors_algorithm() -> None:
    """The whole of it: which batch, which masks, before and after which step."""
    data = batches(8)
    loop = Loop(make("famo"))
    loop.run(data)

    torch.manual_seed(0)
    module, theirs = Noisy(), Literal()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for batch in data:
        start = torch.get_rng_state()
        optimizer.zero_grad()
        theirs.objective(module.losses_of(batch)).backward()
        optimizer.step()
        later, twin = torch.get_rng_state(), copy.deepcopy(module)  # what the second forward does to the twin is gone
        torch.set_rng_state(start)
        with torch.no_grad():
            after = twin.losses_of(batch)
        theirs.update(after)
        torch.set_rng_state(later)
    torch.testing.assert_close(loop.weighting.xi, theirs.w.detach(), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(
        [p.detach() for p in loop.module.parameters()], [p.detach() for p in module.parameters()], rtol=1e-3, atol=1e-5
    )
    assert float(loop.weighting.xi.abs().max()) > 0.02


def test_famo_sees_no_change_where_the_step_changed_nothing() -> None:
    """Learning rate 0: the same losses to the last bit, so the same dropout masks and batch statistics."""
    weighting: Any = make("famo", decay=0)
    Loop(weighting, lr=0.0).run(batches(3))
    assert weighting.xi.tolist() == [0.0, 0.0]
    assert weighting.m.tolist() == [0.0, 0.0]
    assert int(weighting.updates) == 3


def test_famo_leaves_no_trace_in_batchnorm_and_random_numbers() -> None:
    loop = Loop(make("famo"))
    seen: list[dict[str, Any]] = []
    loop.run(batches(1), spy=lambda: seen.append(loop.state()))
    after = loop.state()
    torch.testing.assert_close(after["module"], seen[0]["module"], rtol=0, atol=0)
    assert torch.equal(after["rng"], seen[0]["rng"])
    assert int(loop.module.trunk[1].num_batches_tracked) == 1  # type: ignore[arg-type]
    assert loop.module.forwards == 2
    assert loop.module.trunk[1].track_running_stats
    assert loop.module.frozen.track_running_stats
    assert not torch.equal(after["weighting"]["xi"], seen[0]["weighting"]["xi"])


def test_famo_puts_batchnorm_and_random_numbers_back_when_the_forward_fails() -> None:
    loop = Loop(make("famo"))
    seen: list[dict[str, Any]] = []

    def breaks(batch: Any) -> Tensor:
        torch.rand(3)
        raise RuntimeError("no memory")

    def spy() -> None:
        seen.append(loop.state())
        loop.module.losses_of = breaks  # type: ignore[method-assign]

    with pytest.raises(RuntimeError, match="no memory"):
        loop.run(batches(1), spy=spy)
    assert torch.equal(torch.get_rng_state(), seen[0]["rng"])
    assert loop.module.trunk[1].track_running_stats


def test_famo_updates_once_an_optimiser_step() -> None:
    weighting: Any = make("famo")
    loop = Loop(weighting, accumulate=3)
    loop.run(batches(6))
    assert int(weighting.updates) == 2
    assert loop.module.forwards == 8


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_famo_keeps_its_state_where_a_loss_is_not_finite(bad: float) -> None:
    weighting: Any = make("famo")
    weights_of(weighting, L2)
    weighting.update(L2 / 2 - 0.1)
    state = copy.deepcopy(weighting.state_dict())
    weights_of(weighting, L2)
    weighting.update(torch.tensor([bad, 1.0]))
    weights_of(weighting, torch.tensor([1.0, bad]))
    weighting.update(L2)
    state["degenerate"] = weighting.degenerate
    torch.testing.assert_close(weighting.state_dict(), state, rtol=0, atol=0)


def test_famo_takes_no_change_from_a_batch_without_labels() -> None:
    weighting: Any = make("famo", decay=0)
    weights_of(weighting, torch.tensor([0.0, 1.0]))
    weighting.update(torch.tensor([0.0, 0.5]))
    assert weighting.xi.isfinite().all()
    assert float(weighting.xi[0]) > float(weighting.xi[1])


def test_famo_averages_the_new_losses_over_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes whose shares add up to twice the whole batch's losses."""
    whole: Any = make("famo")
    weights_of(whole, L2)
    whole.update(torch.tensor([0.5, 1.9]))

    other = torch.tensor([0.9, 1.4])  # this process has 2 (0.5, 1.9) - other
    monkeypatch.setattr("torch.distributed.all_reduce", lambda x: x.add_(other))
    shared: Any = make("famo")
    weights_of(shared, L2)
    trainer = SimpleNamespace(global_step=0, world_size=2, precision_plugin=Loop.precision_plugin)
    module: Any = Noisy()
    module.losses_of = lambda batch: 2 * torch.tensor([0.5, 1.9]) - other
    shared.on_train_batch_start(trainer, module, None, 0)
    trainer.global_step = 1
    shared.on_train_batch_end(trainer, module, None, None, 0)
    torch.testing.assert_close(shared.state_dict(), whole.state_dict())
    assert float(shared.xi[0]) < 0
