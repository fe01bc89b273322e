"""Lookup, residual and interval softmax by hand, and what all label transforms have in common."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import Tensor

from mtlcar.config import compose_config, conf_dir
from mtlcar.errors import UserError
from mtlcar.label_transforms.base import LabelTransform
from mtlcar.label_transforms.class_mean import ClassMean
from mtlcar.label_transforms.class_residual import ClassResidual
from mtlcar.label_transforms.fastcar import FastCAR
from mtlcar.label_transforms.interval_softmax import IntervalSoftmax
from mtlcar.losses import TaskLosses
from mtlcar.tasks import Task, TaskSet
from tests.weighting_net import NoHostRoundTrip

NAN = float("nan")
STEEL = TaskSet([Task("steel", "classification", ("a", "b", "c")), Task("hv", "regression", unit="HV")])
LABELS = {
    "steel": torch.tensor([0, 0, 1, 1, 1, 2, -1, 1]),
    "hv": torch.tensor([100.0, 120.0, 200.0, 210.0, 240.0, 300.0, 999.0, NAN]),
}
CARS = TaskSet(
    [
        Task("make", "classification", ("p", "q")),
        Task("model", "classification", ("r", "s", "t"), parent="make"),
        Task("weight", "regression", unit="kg"),
        Task("speed", "regression", unit="km/h"),
    ],
    {"model": (0, 0, 1)},
)
ALL = ("class_mean", "class_residual", "fastcar", "identity", "interval_softmax")


def test_every_yaml_is_one_of_these() -> None:
    assert {p.stem for p in (Path(conf_dir()) / "label_transform").glob("*.yaml")} == set(ALL)


def made(name: str, **options: Any) -> LabelTransform:
    from mtlcar.build import make

    node = compose_config([f"label_transform={name}"]).label_transform
    found: LabelTransform = make(OmegaConf.merge(node, options), tasks=STEEL)
    return found


def perfect(transform: LabelTransform, targets: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What a network that says exactly the targets predicts: (predictions, scores)."""
    encoded = transform.encode(targets)
    predictions, scores = {}, {}
    for task in transform.encoded_tasks(STEEL):
        target = encoded[task.name]
        predictions[task.name] = target
        if task.kind == "classification":
            one_hot = (
                torch.nn.functional.one_hot(target.clamp(min=0), len(task.classes)) if target.ndim == 1 else target
            )
            scores[task.name] = one_hot.float()
            predictions[task.name] = scores[task.name].argmax(1)
    return predictions, scores


@pytest.mark.parametrize("name", ALL)
def test_what_a_perfect_network_says_decodes_to_the_labels(name: str) -> None:
    transform = made(name).fit(LABELS)
    known = {k: v[:6] for k, v in LABELS.items()}
    predictions, scores = perfect(transform, known)
    found = transform.decode(predictions, scores)
    assert list(found) == ["steel", "hv"]
    assert found["steel"].dtype == torch.int64
    assert found["hv"].dtype == torch.float32
    assert torch.equal(found["steel"], known["steel"])
    if name != "class_mean":
        torch.testing.assert_close(found["hv"], known["hv"], rtol=0, atol=1e-6 * 200)
    assert transform.decode_scores(scores, predictions)["steel"].argmax(1).tolist() == known["steel"].tolist()


@pytest.mark.parametrize("name", [n for n in ALL if n != "identity"])
def test_constants_come_back_from_json_and_from_a_checkpoint(name: str) -> None:
    first = made(name).fit(LABELS)
    text = json.dumps(first.constants())
    assert text != "{}"
    second = made(name, constants=json.loads(text)).fit({k: v[:0] for k, v in LABELS.items()})
    assert second.constants() == first.constants()
    third = made(name)
    third.load_state_dict(first.state_dict())
    known = {k: v[:6] for k, v in LABELS.items()}
    predictions, scores = perfect(first, known)
    for other in (second, third):
        for a, b in zip(
            other.decode(predictions, scores).values(), first.decode(predictions, scores).values(), strict=True
        ):
            assert torch.equal(a, b)


@pytest.mark.parametrize("name", [n for n in ALL if n != "identity"])
def test_a_class_without_labels_and_broken_constants_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="Class b of task 'steel' has no training image with a hv"):
        made(name).fit({"steel": torch.tensor([0, 2, 1]), "hv": torch.tensor([1.0, 2.0, NAN])})
    for wrong in ({"hv": {"mean": [1, 2]}}, {"hv": 3}, {"hv": dict.fromkeys(("mean", "std", "low", "high"), 3)}):
        with pytest.raises(UserError, match=r"label_transform\.constants should"):
            made(name, constants=wrong)
    numbers = {k: [1.0, 2.0, 3.0] for k in ("mean", "low")} | {"std": [1, 0, 1], "high": [1.0, 2.0, 1.0]}
    bad = numbers | ({"mean": [1.0, NAN, 3.0]} if name == "class_mean" else {})
    with pytest.raises(UserError, match=r"label_transform\.constants"):
        made(name, constants={"hv": bad})


@pytest.mark.parametrize("name", [n for n in ALL if n != "identity"])
def test_tasks_that_do_not_fit_are_refused(name: str) -> None:
    from mtlcar.build import make

    node = compose_config([f"label_transform={name}"]).label_transform
    for kind in ("classification", "regression"):
        alone = TaskSet([t for t in STEEL if t.kind == kind])
        with pytest.raises(UserError, match=f"label_transform={name}"):
            make(node, tasks=alone)


@pytest.mark.parametrize("name", [n for n in ALL if n not in ("identity", "fastcar")])
def test_given_constants_are_read_on_the_meta_device(name: str) -> None:
    given = made(name).fit(LABELS).constants()
    with torch.device("meta"):
        assert made(name, constants=given).given is not None


@pytest.mark.parametrize("name", ALL)
def test_encoding_and_decoding_never_wait_for_the_device(name: str) -> None:
    transform = made(name).fit(LABELS)
    known = {k: v[:6] for k, v in LABELS.items()}
    predictions, scores = perfect(transform, known)
    with NoHostRoundTrip():
        transform.encode(known)
        transform.decode(predictions, scores)
        transform.decode_scores(scores, predictions)
        transform.columns(predictions)


def test_lookup_by_hand() -> None:
    found = ClassMean(STEEL).fit(LABELS)
    said = found.decode({"steel": torch.tensor([2, 0, 1, -1])})
    expected = torch.tensor([300, 110, 650 / 3, NAN])
    torch.testing.assert_close(said["hv"], expected, equal_nan=True)
    median = ClassMean(STEEL, statistic="median").fit(LABELS)
    assert median.decode({"steel": torch.tensor([1, 0])})["hv"].tolist() == [210, 110]
    assert found.encoded_tasks(STEEL).names == ("steel",)
    with pytest.raises(UserError, match="statistic should be mean or median"):
        ClassMean(STEEL, statistic="mode")  # type: ignore[arg-type]


def test_lookup_reads_every_value_off_the_finest_class() -> None:
    labels = {
        "make": torch.tensor([0, 0, 1]),
        "model": torch.tensor([0, 1, 2]),
        "weight": torch.tensor([1.0, 2.0, 3.0]),
        "speed": torch.tensor([10.0, 20.0, 30.0]),
    }
    said = ClassMean(CARS).fit(labels).decode({"make": torch.tensor([1]), "model": torch.tensor([1])})
    assert list(said) == list(CARS.names)
    assert (said["make"].item(), said["weight"].item(), said["speed"].item()) == (1, 2, 20)


def test_residual_by_hand() -> None:
    found = ClassResidual(STEEL).fit(LABELS)
    z = found.encode(LABELS)["hv"]
    std = (((200 - 650 / 3) ** 2 + (210 - 650 / 3) ** 2 + (240 - 650 / 3) ** 2) / 3) ** 0.5
    expected = torch.tensor([-1, 1, (200 - 650 / 3) / std, (210 - 650 / 3) / std, (240 - 650 / 3) / std, 0, NAN, NAN])
    torch.testing.assert_close(z, expected, equal_nan=True)  # class c: all labels equal, so nothing is divided
    said = found.decode({"steel": torch.tensor([0, 2, -1]), "hv": torch.tensor([2.0, 2.0, 0.0])})
    torch.testing.assert_close(said["hv"], torch.tensor([130, 302, NAN]), equal_nan=True)  # the predicted class's
    lookup = ClassMean(STEEL).fit(LABELS).decode({"steel": torch.tensor([0, 1, 2])})
    zero = found.decode({"steel": torch.tensor([0, 1, 2]), "hv": torch.zeros(3)})
    torch.testing.assert_close(zero["hv"], lookup["hv"])
    with pytest.raises(UserError, match="relative to the predicted steel, which this architecture does not predict"):
        found.decode({"hv": torch.zeros(1)})
    assert list(found.decode({"steel": torch.tensor([0])})) == ["steel"]  # a network of the class alone has no value


def test_interval_softmax_by_hand() -> None:
    found = IntervalSoftmax(STEEL, bins=3, pad=10.0).fit(LABELS)
    assert found.points.tolist() == [[90, 110, 130], [190, 220, 250], [290, 300, 310]]
    mass = found.encode({"steel": torch.tensor([0, 1, 2, 1]), "hv": torch.tensor([95.0, 250.0, 305.0, 1e4])})["axis"]
    expected = torch.zeros(4, 9)
    expected[0, :2] = torch.tensor([0.75, 0.25])
    expected[1, 5] = expected[3, 5] = 1  # the end of the range, and beyond it
    expected[2, 7:] = 0.5
    torch.testing.assert_close(mass, expected)
    missing = found.encode({"steel": torch.tensor([-1, 0]), "hv": torch.tensor([100.0, NAN])})["axis"]
    assert missing.isnan().all()
    p = torch.tensor([[0.1, 0.2, 0.1, 0.0, 0.0, 0.25, 0.2, 0.1, 0.05]])
    said = found.decode({"axis": p.argmax(1)}, {"axis": p})  # class a has .4, b .25 at the likeliest point, c .35
    assert said["steel"].item() == 0
    assert said["hv"].item() == pytest.approx((0.1 * 90 + 0.2 * 110 + 0.1 * 130) / 0.4)
    torch.testing.assert_close(found.decode_scores({"axis": p}, {})["steel"], torch.tensor([[0.4, 0.25, 0.35]]))
    bare = found.decode({"axis": torch.tensor([5, 7])})  # a point alone is its class and its place
    assert (bare["steel"].tolist(), bare["hv"].tolist()) == ([1, 2], [250, 300])
    broken = found.decode({"axis": torch.tensor([0])}, {"axis": torch.full((1, 9), NAN)})
    assert broken["steel"].item() == -1
    assert broken["hv"].isnan().all()


def test_doubt_between_the_outer_classes() -> None:
    """The flaw that the interval softmax is there for: half a chance of a and of c is no b."""
    axis, softmax = FastCAR(STEEL, layout="stacked").fit(LABELS), IntervalSoftmax(STEEL).fit(LABELS)
    outer = {"steel": torch.tensor([0, 2]), "hv": torch.tensor([110.0, 300.0])}
    z = axis.encode(outer)["axis"].mean(0, keepdim=True)  # what squared error settles on
    assert axis.decode({"axis": z})["steel"].item() == 1
    p = softmax.encode(outer)["axis"].mean(0, keepdim=True)  # what cross-entropy settles on
    assert softmax.decode({"axis": p.argmax(1)}, {"axis": p})["steel"].item() != 1


@given(
    st.lists(st.tuples(st.integers(0, 2), st.floats(-1e3, 1e3, width=32)), min_size=3, max_size=12), st.integers(2, 12)
)
def test_interval_softmax_gives_every_label_back(rows: list[tuple[int, float]], bins: int) -> None:
    rows = [*rows, (0, 1.0), (1, 2.0), (2, 3.0)]
    labels = {"steel": torch.tensor([c for c, _ in rows]), "hv": torch.tensor([y for _, y in rows])}
    found = IntervalSoftmax(STEEL, bins=bins).fit(labels)
    p = found.encode(labels)["axis"]
    torch.testing.assert_close(p.sum(1), torch.ones(len(rows)))
    said = found.decode({"axis": p.argmax(1)}, {"axis": p})
    assert torch.equal(said["steel"], labels["steel"])
    width = (labels["hv"].max() - labels["hv"].min()).item()
    assert (said["hv"] - labels["hv"]).abs().max().item() <= 1e-6 * max(width, 1.0)


def test_losses_take_distributions() -> None:
    tasks = TaskSet([Task("axis", "classification", ("a", "b", "c"))])
    output = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 1.0], [5.0, 0.0, 0.0]], requires_grad=True)
    target = torch.tensor([[0.2, 0.3, 0.5], [0.0, 1.0, 0.0], [NAN, NAN, NAN]])
    for smoothing in (0.0, 0.1):
        losses = TaskLosses(tasks, label_smoothing=smoothing)
        soft = (1 - smoothing) * target + smoothing / 3
        by_hand = -(soft * output.log_softmax(1)).sum(1)[:2].mean()
        value = losses({"axis": output}, {"axis": target})
        torch.testing.assert_close(value, by_hand[None])
        (gradient,) = torch.autograd.grad(value.sum(), output)
        assert gradient[2].eq(0).all()
        assert gradient.isfinite().all()
        hard = losses({"axis": output}, {"axis": torch.tensor([2, 1, -1])})
        one_hot = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [NAN, NAN, NAN]])
        torch.testing.assert_close(hard, losses({"axis": output}, {"axis": one_hot}))
    assert losses.counts({"axis": target}).tolist() == [2]


def test_labels_that_differ_by_rounding_alone_are_one_value() -> None:
    labels = {"steel": torch.tensor([0, 0, 1, 2]), "hv": torch.tensor([100.0, 100.00001, 5.0, 6.0])}
    assert ClassResidual(STEEL).fit(labels).std[0, 0] == 1


def test_what_is_decoded_is_what_is_said_to_be() -> None:
    full = {"make": torch.tensor([0, 0, 1]), "model": torch.tensor([0, 1, 2])}
    full |= {"weight": torch.ones(3), "speed": torch.ones(3)}
    found = ClassMean(CARS).fit(full)
    for names in (("make", "model"), ("model",), ("make",)):
        said = found.decode({n: torch.tensor([0]) for n in names})
        assert set(said) == set(found.decoded(names))


def test_impossible_options_are_refused() -> None:
    cases: list[tuple[dict[str, Any], str]] = [({"bins": 1}, "bins"), ({"bins": 2.5}, "bins"), ({"pad": -1}, "pad")]
    for options, hint in cases:
        with pytest.raises(UserError, match=hint):
            IntervalSoftmax(STEEL, **options)
