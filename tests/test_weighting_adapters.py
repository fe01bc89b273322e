"""Weightings from elsewhere: a callable of the user's, and TorchJD's aggregators."""

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from mtlcar import build
from mtlcar.config import conf_dir
from mtlcar.errors import UserError
from mtlcar.tasks import Task, TaskSet
from mtlcar.weightings.from_callable import FromCallable

TASKS = TaskSet((Task("make", "classification", classes=("a", "b")), Task("weight", "regression")))
G = torch.tensor([[4.0, -1.0], [-1.0, 1.0]])
L = torch.tensor([0.7, 2.0])
HERE = __name__


def make(name: str, tasks: TaskSet = TASKS, **overrides: Any) -> Any:
    cfg = OmegaConf.load(conf_dir() / "weighting" / f"{name}.yaml")
    return build.make(OmegaConf.merge(cfg, overrides), tasks=tasks)  # type: ignore[arg-type]


# What users might give.
def inverse_norms(gramian: Tensor) -> Tensor:
    return gramian.diagonal().rsqrt()


def of_both(gramian: Tensor, losses: Tensor) -> Tensor:
    return gramian.diagonal() * losses


def with_default(gramian: Tensor, power: float = 1.0) -> Tensor:
    return gramian.diagonal() ** power


def wrong_shape(gramian: Tensor) -> Tensor:
    return gramian


def a_number(gramian: Tensor) -> float:
    return 1.0


def fails(gramian: Tensor) -> Tensor:
    raise ZeroDivisionError("oh")


def three(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return a


NUMBER = 3


class Counts(nn.Module):
    seen: Tensor

    def __init__(self, start: int = 0) -> None:
        super().__init__()
        self.register_buffer("seen", torch.tensor(float(start)))

    def forward(self, gramian: Tensor) -> Tensor:
        self.seen += 1
        return self.seen.expand(len(gramian))


@pytest.mark.parametrize(
    ("function", "arguments", "expected"),
    [
        ("inverse_norms", {}, (0.5, 1.0)),
        ("of_both", {}, (2.8, 2.0)),
        ("with_default", {}, (4.0, 1.0)),
        ("with_default", {"power": 0.5}, (2.0, 1.0)),
    ],
)
def test_a_callable_gives_the_weights(function: str, arguments: dict[str, Any], expected: tuple[float, float]) -> None:
    weighting = make("callable", function=f"{HERE}.{function}", arguments=arguments)
    assert torch.allclose(weighting.weights(G, L), torch.tensor(expected))
    assert int(weighting.degenerate) == 0


def test_an_instance_begins_fresh_and_has_its_state_in_the_checkpoint() -> None:
    weighting = make("callable", function=f"{HERE}.Counts", arguments={"start": 4})
    assert weighting.weights(G, L).tolist() == [5.0, 5.0]  # the trial run was another one's
    again = make("callable", function=f"{HERE}.Counts")
    again.load_state_dict(weighting.state_dict())
    assert again.weights(G, L).tolist() == [6.0, 6.0]


def test_weights_that_are_not_finite_are_replaced_and_counted() -> None:
    weighting = make("callable", function=f"{HERE}.inverse_norms")
    assert weighting.weights(torch.zeros(2, 2), L).tolist() == [1.0, 1.0]
    assert int(weighting.degenerate) == 1


def test_a_callable_can_be_built_where_nothing_has_values() -> None:
    with torch.device("meta"):
        make("callable", function=f"{HERE}.of_both")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({}, "needs weighting.function"),
        ({"function": "no_such_module.f"}, "no_such_module"),
        ({"function": f"{HERE}.nothing"}, "cannot be imported"),
        ({"function": "plainword"}, "cannot be imported"),
        ({"function": f"{HERE}.NUMBER"}, "cannot be called"),
        ({"function": f"{HERE}.wrong_shape"}, r"Found \[2, 2\]"),
        ({"function": f"{HERE}.a_number"}, "Found a float"),
        ({"function": f"{HERE}.fails"}, "ZeroDivisionError: oh"),
        ({"function": f"{HERE}.three"}, "two at most"),
        ({"function": f"{HERE}.of_both", "arguments": {"nonsense": 1}}, "nonsense"),
        ({"function": f"{HERE}.Counts", "arguments": {"nonsense": 1}}, "nonsense"),
        ({"function": f"{HERE}.of_both", "weights": {"make": 1.0}}, "choose weighting=fixed"),
    ],
)
def test_what_is_wrong_with_a_callable_is_said(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make("callable", **overrides)


# TorchJD's interface, as far as the adapter uses it.
class Aggregator(nn.Module):
    pass


class WeightedAggregator(Aggregator):
    def __init__(self, weighting: nn.Module) -> None:
        super().__init__()
        self.weighting = weighting

    def forward(self, matrix: Tensor) -> Tensor:
        found: Tensor = self.weighting(matrix) @ matrix
        return found


class _Weights(nn.Module):
    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, matrix: Tensor) -> Tensor:
        return self.weights


class Constant(WeightedAggregator):
    def __init__(self, weights: Tensor) -> None:
        super().__init__(_Weights(weights))


class Noise(Aggregator):
    def forward(self, matrix: Tensor) -> Tensor:
        return torch.randn(matrix.shape[1])


class NotANumber(Aggregator):
    def forward(self, matrix: Tensor) -> Tensor:
        return matrix.sum(0) / (0.0 if matrix.sum() > 10 else 1.0)


class NeedsSolver(Aggregator):
    def __init__(self) -> None:
        raise ImportError('pip install "torchjd[solver]"')


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> None:
    library = ModuleType("torchjd.aggregation")
    for cls in (Aggregator, WeightedAggregator, Constant, Noise, NotANumber, NeedsSolver):
        setattr(library, cls.__name__, cls)
    monkeypatch.setitem(sys.modules, "torchjd", ModuleType("torchjd"))
    monkeypatch.setitem(sys.modules, "torchjd.aggregation", library)


J = torch.tensor([[2.0, 0.0, 0.0], [-0.5, 0.75**0.5, 0.0]])


@pytest.mark.usefixtures("stub")
def test_an_aggregator_combines_and_its_weights_are_logged() -> None:
    weighting = make("torchjd", aggregator="Constant", arguments={"weights": [0.25, 3]})
    expected = 0.25 * J[0] + 3 * J[1]
    assert torch.allclose(weighting.combine(J.clone(), L, None), expected)
    assert weighting.applied.tolist() == [0.25, 3.0]
    normal = make("torchjd", aggregator="Constant", arguments={"weights": [0.25, 3]}, normalize=True)
    assert torch.allclose(normal.combine(J.clone(), L, None), expected * 2 / 3.25)
    assert float(normal.applied.sum()) == pytest.approx(2)


@pytest.mark.usefixtures("stub")
def test_an_aggregators_tensors_follow_the_weighting() -> None:
    weighting = make("torchjd", aggregator="Constant", arguments={"weights": [0.25, 3]})
    assert weighting.to(torch.float64).aggregator.weighting.weights.dtype == torch.float64


@pytest.mark.usefixtures("stub")
def test_random_aggregators_draw_their_own_numbers_and_go_on_after_a_resume() -> None:
    torch.manual_seed(3)
    weighting = make("torchjd", aggregator="Noise")
    before = torch.get_rng_state()
    first, second = (weighting.combine(J.clone(), L, None) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first, second)
    assert weighting.applied is None
    torch.manual_seed(8)
    again = make("torchjd", aggregator="Noise")
    state = weighting.state_dict()
    third = weighting.combine(J.clone(), L, None)
    again.load_state_dict(state)
    assert torch.equal(again.combine(J.clone(), L, None), third)


@pytest.mark.usefixtures("stub")
def test_an_aggregate_that_is_not_finite_becomes_the_sum_and_is_counted() -> None:
    weighting = make("torchjd", aggregator="NotANumber")
    assert torch.equal(weighting.combine(10 * J, L, None), 10 * J.sum(0))
    assert int(weighting.degenerate) == 1


@pytest.mark.usefixtures("stub")
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"aggregator": "Constnat"}, "Did you mean 'Constant'"),
        ({"aggregator": "WeightedAggregator"}, "There are: Constant"),
        ({"aggregator": "Constant"}, "weights"),
        ({"aggregator": "Constant", "arguments": {"weights": [1, 2, 3]}}, "failed on 2 tasks"),
        ({"aggregator": "NeedsSolver"}, "pip install"),
    ],
)
def test_what_is_wrong_with_an_aggregator_is_said(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make("torchjd", **overrides)


def test_a_missing_torchjd_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchjd.aggregation", None)
    with pytest.raises(UserError, match=r"pip install mtlcar\[torchjd\]"):
        make("torchjd")


@pytest.mark.parametrize(("aggregator", "expected"), [("Mean", (0.5, 0.5)), ("Sum", (1.0, 1.0)), ("MGDA", None)])
def test_torchjd_itself(aggregator: str, expected: tuple[float, float] | None) -> None:
    library = pytest.importorskip("torchjd.aggregation")
    weighting = make("torchjd", aggregator=aggregator)
    found = weighting.combine(J.clone(), L, None)
    assert torch.allclose(found, getattr(library, aggregator)()(J))
    assert torch.allclose(weighting.applied @ J, found, atol=1e-6)
    if expected:
        assert weighting.applied.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("function", ["plainword", "torch.nothing", "torch.diagonal.nothing", "no_such.module", ""])
def test_a_wrong_path_is_said_once(function: str, capfd: pytest.CaptureFixture[str]) -> None:
    """By our own message: hydra's way of finding an object prints one of its own."""
    with pytest.raises(UserError, match=r"weighting\.function=.* cannot be imported: \w+: .+"):
        FromCallable(TASKS, function=function)
    assert capfd.readouterr() == ("", "")
