"""The three kinds of weighting enter exactly the gradients that their definitions give."""

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from mtlcar.config import conf_dir, groups
from mtlcar.errors import UserError
from mtlcar.tasks import Task, TaskSet
from mtlcar.weightings.base import GradientCombiner, GramianWeighting, LossWeighting, Weighting
from mtlcar.weightings.gradients import Step

TASKS = TaskSet((Task("make", "classification", classes=("a", "b")), Task("weight", "regression")))
LOSSES = (0.7, 2.0)
# yaml name -> (overrides, weights [T] it gives for LOSSES)
KNOWN = {
    "equal": ({}, (1.0, 1.0)),
    "fixed": ({"weights": {"make": 0.25, "weight": 3.0}}, (0.25, 3.0)),
}


def make(name: str, **overrides: object) -> Weighting:
    cfg = OmegaConf.load(conf_dir() / "weighting" / f"{name}.yaml")
    weighting = instantiate(OmegaConf.merge(cfg, overrides), tasks=TASKS)
    assert isinstance(weighting, Weighting)
    return weighting


class Sum(GramianWeighting):
    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        return torch.ones_like(losses)


class SeesWhatItIsGiven(GramianWeighting):
    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        self.gramian, self.losses = gramian, losses
        return gramian.diagonal().rsqrt()


class SumOfRows(GradientCombiner):
    def combine(self, jacobian: Tensor, losses: Tensor, features: Tensor | None) -> Tensor:
        self.features = features
        return jacobian.sum(0)


class Net(nn.Module):
    """A trunk, a bottleneck, a head a task; the first head's output also feeds the second, as in a cascade."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4))
        self.first = nn.Linear(4, 2)
        self.second = nn.Linear(6, 1)

    def losses(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.trunk(x)
        a = self.first(z)
        b = self.second(torch.cat([z, a], 1))
        return torch.stack([a.square().mean(), (b - 3).square().mean()]), z

    def step(self, x: Tensor, factor: float = 1.0, scale: float = 1.0) -> Step:
        losses, z = self.losses(x)
        shared = [*self.trunk.parameters(), *self.first.parameters()]
        return Step(
            losses=losses,
            factor=torch.tensor(factor),
            scale=torch.tensor(scale),
            shared=shared,
            private=list(self.second.parameters()),
            above=[*self.first.parameters(), *self.second.parameters()],
            bottleneck=z,
        )


X = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))


def grads(net: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in net.parameters() if p.grad is not None]


def autograd_of_sum(weights: tuple[float, ...] = (1.0, 1.0), factor: float = 1.0) -> list[Tensor]:
    net = Net()
    losses, _ = net.losses(X)
    ((torch.tensor(weights) * losses).sum() * factor).backward()
    return grads(net)


def test_every_yaml_has_its_row_and_every_row_its_yaml() -> None:
    assert sorted(KNOWN) == groups()["weighting"]


@pytest.mark.parametrize("name", KNOWN)
def test_yaml_gives_one_of_the_three_kinds_with_the_common_keys(name: str) -> None:
    cfg = OmegaConf.load(conf_dir() / "weighting" / f"{name}.yaml")
    assert cfg.name == name
    assert {"level", "weights", "normalize"} <= set(cfg)
    assert isinstance(make(name, **KNOWN[name][0]), LossWeighting | GramianWeighting | GradientCombiner)


@pytest.mark.parametrize("name", KNOWN)
def test_known_weights(name: str) -> None:
    overrides, expected = KNOWN[name]
    weighting = make(name, **overrides)
    losses = torch.tensor(LOSSES, requires_grad=True)
    weighting(losses).backward()
    torch.testing.assert_close(losses.grad, torch.tensor(expected))


@pytest.mark.parametrize("name", KNOWN)
def test_normalized_weights_sum_to_the_number_of_tasks(name: str) -> None:
    overrides, expected = KNOWN[name]
    applied = make(name, **overrides, normalize=True).backward(Net().step(X))
    torch.testing.assert_close(applied, torch.tensor(expected) * (2 / sum(expected)))


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("factor", [1.0, 0.25, 1024.0])
def test_loss_level_gradients_are_those_of_the_weighted_sum(name: str, factor: float) -> None:
    overrides, expected = KNOWN[name]
    net = Net()
    applied = make(name, **overrides).backward(net.step(X, factor=factor))
    torch.testing.assert_close(applied, torch.tensor(expected))
    torch.testing.assert_close(grads(net), autograd_of_sum(expected, factor))


@pytest.mark.parametrize("kind", [Sum, SumOfRows])
@pytest.mark.parametrize("level", ["parameters", "representation"])
@pytest.mark.parametrize("scale", [1.0, 65536.0])
@pytest.mark.parametrize("accumulate", [1, 4])
def test_summing_task_gradients_equals_one_backward(kind: type, level: str, scale: float, accumulate: int) -> None:
    net = Net()
    kind(TASKS, name="x", level=level).backward(net.step(X, factor=scale / accumulate, scale=scale))
    torch.testing.assert_close(grads(net), autograd_of_sum(factor=scale / accumulate))


@pytest.mark.parametrize("level", ["parameters", "representation"])
def test_what_a_weighting_sees_does_not_depend_on_the_loss_scale(level: str) -> None:
    seen = []
    for scale in (1.0, 65536.0):
        net, weighting = Net(), SeesWhatItIsGiven(TASKS, name="x", level=level)
        weighting.backward(net.step(X, factor=scale, scale=scale))
        seen.append((weighting.gramian, weighting.losses, [g / scale for g in grads(net)]))
    torch.testing.assert_close(seen[0], seen[1])


def test_parameters_level_sees_the_gramian_of_the_shared_parameters_only() -> None:
    net, weighting = Net(), SeesWhatItIsGiven(TASKS, name="x")
    step = net.step(X)
    rows = []
    for t in range(2):
        losses, _ = net.losses(X)
        g = torch.autograd.grad(losses[t], step.shared, allow_unused=True)
        rows.append(
            torch.cat(
                [(torch.zeros_like(p) if v is None else v).flatten() for p, v in zip(step.shared, g, strict=True)]
            )
        )
    J = torch.stack(rows)
    weighting.backward(step)
    torch.testing.assert_close(weighting.gramian, J @ J.T)
    d = torch.cat([p.grad.flatten() for p in step.shared])
    torch.testing.assert_close(d, (J @ J.T).diagonal().rsqrt() @ J)


def test_private_parameters_keep_their_own_gradient_whatever_the_weights() -> None:
    net = Net()
    SeesWhatItIsGiven(TASKS, name="x").backward(net.step(X))
    for mine, plain in zip([p.grad for p in net.second.parameters()], autograd_of_sum()[-2:], strict=True):
        torch.testing.assert_close(mine, plain)


@pytest.mark.parametrize(("level", "passes"), [("representation", 1), ("parameters", 2)])
@pytest.mark.parametrize("kind", [Sum, SumOfRows])
def test_the_trunk_is_walked_once_or_once_a_task(kind: type, level: str, passes: int) -> None:
    net, calls = Net(), []
    net.trunk[0].register_forward_hook(lambda _, __, y: y.register_hook(lambda g: calls.append(1)) and None)
    kind(TASKS, name="x", level=level).backward(net.step(X))
    assert len(calls) == passes


def test_combiner_gets_features_at_representation_level_only() -> None:
    for level, shape in (("representation", (7, 4)), ("parameters", None)):
        combiner = SumOfRows(TASKS, name="x", level=level)
        combiner.backward(Net().step(X))
        assert (None if combiner.features is None else tuple(combiner.features.shape)) == shape


def test_one_task_has_nothing_to_balance() -> None:
    tasks = TASKS.subset(["make"])
    cfg = OmegaConf.load(conf_dir() / "weighting" / "fixed.yaml")
    weighting = instantiate(OmegaConf.merge(cfg, {"weights": {"make": 0.1, "weight": 0.9}}), tasks=tasks)
    assert weighting(torch.tensor([2.0])).item() == 2.0


@pytest.mark.parametrize(
    ("name", "overrides", "says"),
    [
        ("fixed", {"weights": {"make": 1.0}}, "weight"),
        ("fixed", {"weights": {"make": 1.0, "wieght": 1.0}}, "Did you mean 'weight'"),
        ("fixed", {"weights": {"make": -1.0, "weight": 1.0}}, "at least 0"),
        ("fixed", {"weights": {"make": float("nan"), "weight": 1.0}}, "finite"),
        ("fixed", {"weights": {"make": 0.0, "weight": 0.0}}, "not all 0"),
        ("equal", {"weights": {"make": 1.0, "weight": 1.0}}, "weighting=fixed"),
        ("equal", {"level": "representations"}, "Did you mean 'representation'"),
    ],
)
def test_impossible_settings_are_refused_with_the_remedy(name: str, overrides: dict, says: str) -> None:
    with pytest.raises(Exception, match=says) as caught:
        make(name, **overrides)
    assert isinstance(caught.value, UserError) or isinstance(caught.value.__cause__, UserError)


def test_state_goes_round_through_the_checkpoint() -> None:
    first, second = make("fixed", weights={"make": 0.1, "weight": 0.9}), make("fixed")
    second.load_state_dict(first.state_dict())
    assert second(torch.tensor([1.0, 0.0])).item() == pytest.approx(0.1)
