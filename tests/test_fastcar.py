"""FastCAR's axis: exact both ways for any labels, and refused where float32 could not tell classes apart."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import Tensor

from mtlcar.data.advanced_steel import read
from mtlcar.errors import UserError
from mtlcar.label_transforms.fastcar import GAP, INSIDE, NOT_FINITE, OUTSIDE, FastCAR
from mtlcar.tasks import Task, TaskSet
from tests.layout_samples import real_data

NAN = float("nan")


def tasks(classes: int) -> TaskSet:
    return TaskSet(
        [Task("steel", "classification", tuple(f"k{i}" for i in range(classes))), Task("hv", "regression", unit="HV")]
    )


def fitted(classes: list[int], values: list[float], **options: Any) -> FastCAR:
    made = FastCAR(tasks(max(classes) + 1), **options)
    return made.fit({"steel": torch.tensor(classes), "hv": torch.tensor(values)})


THREE = ([0, 0, 1, 1, 2, 2], [100.0, 140.0, 130.0, 230.0, 400.0, 460.0])
"""Ranges 100-140, 130-230, 400-460: the first two overlap."""


def test_minimal_offsets_by_hand() -> None:
    f = fitted(*THREE)  # gap: a tenth of 100
    assert f.gap == 10
    assert f.offset.tolist() == [0, 20, 0]  # 130 must start at 150; 400 is beyond 260 already
    assert (f.low.tolist(), f.high.tolist()) == ([100, 150, 400], [140, 250, 460])
    assert (f.centre.item(), f.scale.item()) == (280, 180)
    assert f.thresholds.tolist() == [145, 325]
    z = f.encode({"steel": torch.tensor([1]), "hv": torch.tensor([130.0])})["axis"]
    torch.testing.assert_close(z, torch.tensor([(150 - 280) / 180]))


def test_stacked_offsets_pad_and_the_papers_scale_by_hand() -> None:
    f = fitted(*THREE, layout="stacked", gap=5.0, pad=1.0, scale=1)
    # 99-141, then 102 wide from 146, then 62 wide from 253
    assert (f.low.tolist(), f.high.tolist()) == ([99, 146, 253], [141, 248, 315])
    assert f.offset.tolist() == [0, 17, -146]
    assert f.encode({"steel": torch.tensor([2]), "hv": torch.tensor([400.0])})["axis"].item() == 254 - 207


def test_a_given_order_is_the_axis_order() -> None:
    f = fitted(*THREE, order=["k2", "k0", "k1"], layout="stacked", gap=10.0)
    assert f.rank.tolist() == [2, 0, 1]
    assert (f.low.tolist(), f.high.tolist()) == ([470, 520, 400], [510, 620, 460])


def test_classes_are_ordered_by_mean_and_not_by_range() -> None:
    f = fitted([0, 0, 0, 1, 1, 1], [0.0, 100.0, 100.0, 10.0, 10.0, 200.0])  # means 66.7 and 73.3
    assert f.rank.tolist() == [0, 1]
    f = fitted([0, 0, 0, 1, 1, 1], [0.0, 100.0, 100.0, 10.0, 10.0, 60.0])
    assert f.rank.tolist() == [1, 0]


def test_decoding_between_intervals_by_hand() -> None:
    f = fitted(*THREE, scale=1)  # z = t - 280; thresholds 145 and 325
    t = torch.tensor([90.0, 140.0, 144.9, 145.0, 145.1, 325.0, 325.1, 500.0, NAN, float("inf")])
    found = f.decode({"axis": t - 280})
    assert found["steel"].tolist() == [0, 0, 0, 0, 1, 1, 2, 2, -1, -1]  # a tie goes to the lower one
    expected = torch.tensor([90, 140, 144.9, 145, 125.1, 305, 325.1, 500, NAN, NAN])
    torch.testing.assert_close(found["hv"], expected, equal_nan=True)
    flags = f.flags(t - 280).tolist()
    assert flags == [OUTSIDE, INSIDE, GAP, GAP, GAP, GAP, GAP, OUTSIDE, NOT_FINITE, NOT_FINITE]
    clipped = fitted(*THREE, scale=1, clip=True).decode({"axis": t - 280})["hv"]
    torch.testing.assert_close(
        clipped, torch.tensor([100, 140, 140, 140, 130, 230, 400, 460, NAN, NAN]), equal_nan=True
    )


def test_scores_rank_classes_by_distance() -> None:
    f = fitted(*THREE, scale=1)
    z = torch.tensor([160.0, 350.0, NAN]) - 280
    scores = f.decode_scores({}, {"axis": z})["steel"]
    torch.testing.assert_close(scores[0], -torch.tensor([20.0, 0.0, 240.0]) / 360)
    assert scores[1].argsort(descending=True).tolist() == [2, 1, 0]
    assert scores[2].isnan().all()


def test_missing_labels_are_missing_on_the_axis() -> None:
    f = fitted(*THREE)
    z = f.encode({"steel": torch.tensor([-1, 1, 1]), "hv": torch.tensor([130.0, NAN, 130.0])})["axis"]
    assert z.isnan().tolist() == [True, True, False]
    same = fitted([*THREE[0], -1, 1], [*THREE[1], 900.0, NAN])
    assert same.constants() == f.constants()


@st.composite
def labels(draw: st.DrawFn) -> tuple[list[int], list[float]]:
    """One to five values in each of 2 to 6 classes, around centres and with widths from nothing to the huge."""
    found: tuple[list[int], list[float]] = ([], [])
    size = draw(st.sampled_from([1e-30, 1e-3, 1.0, 1e4, 1e30]))
    for c in range(draw(st.integers(2, 6))):
        centre = draw(st.floats(-3, 3, width=32))
        width = draw(st.sampled_from([0.0, 1e-4, 0.1, 2.0]))
        for _ in range(draw(st.integers(1, 5))):
            y = np.float32(size * (centre + width * draw(st.floats(-1, 1, width=32))))
            found[0].append(c)
            found[1].append(float(y))
    return found


@settings(max_examples=300, deadline=None)
@given(
    labels(), st.sampled_from(["minimal", "stacked"]), st.sampled_from([0.0, 0.5]), st.sampled_from(["half_range", 1])
)
def test_every_label_comes_back(made: tuple[list[int], list[float]], layout: Any, pad: float, scale: Any) -> None:
    classes, values = made
    spread = max(map(abs, values)) or 1.0
    # a fixed scale only where float32 can hold the result (that it is refused elsewhere is tested below)
    scale = "half_range" if scale == 1 and not 1e-20 < spread < 1e20 else scale
    f = fitted(classes, values, layout=layout, pad=pad * spread, scale=scale)
    target = {"steel": torch.tensor(classes), "hv": torch.tensor(values)}
    found = f.decode(f.encode(target))
    assert torch.equal(found["steel"], target["steel"])
    width = (f.high.max() - f.low.min()).item()
    assert (found["hv"].double() - target["hv"].double()).abs().max().item() <= 1e-6 * width
    assert (f.flags(f.encode(target)["axis"]) == INSIDE).all() or pad == 0  # rounding may leave a range by one step
    gaps = f.low[f.rank[1:]] - f.high[f.rank[:-1]]
    assert (gaps >= f.gap * (1 - 1e-3)).all()  # in the order, disjoint
    if layout == "minimal":
        assert (f.offset >= 0).all()


@settings(max_examples=50, deadline=None)
@given(labels())
def test_ranges_that_are_apart_do_not_move(made: tuple[list[int], list[float]]) -> None:
    classes, values = made
    f = fitted(classes, values)
    again = fitted(
        classes,
        (torch.tensor(values).double() + f.offset[torch.tensor(classes)]).float().tolist(),
        gap=f.gap.item() / 2,
    )
    # the moved labels are float32 again, so a range may have come closer by their rounding
    assert (again.offset.abs() <= 1e-6 * f.high.abs().max()).all()


@pytest.mark.parametrize("layout", ["minimal", "stacked"])
@pytest.mark.parametrize("scale", ["half_range", 1])
def test_all_real_labels_come_back(layout: Any, scale: Any) -> None:
    annotations, steel = read(real_data("advanced_steel"))
    everything = {name: torch.from_numpy(y) for name, y in annotations.targets.items()}
    train = torch.from_numpy(annotations.split == "train")
    f = FastCAR(steel, layout=layout, scale=scale).fit({name: y[train] for name, y in everything.items()})
    found = f.decode(f.encode(everything))
    assert len(found["class"]) == 4536
    assert torch.equal(found["class"], everything["class"])
    width = (f.high.max() - f.low.min()).item()
    assert (found["property"] - everything["property"]).abs().max().item() <= 1e-6 * width
    if layout == "minimal":  # the last class overlaps the one before, which begins 24 HV after its own: the gap is 25.9
        torch.testing.assert_close(f.offset, torch.tensor([0, 0, 0, 0, 1.9, 101.8], dtype=torch.float64))


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"gap": 1e-5}, "gap=1e-05 is too small"),
        ({"gap": 0.0}, "gap should be a number above 0"),
        ({"gap": -1.0}, "above 0"),
        ({"pad": -1.0}, "pad"),
        ({"layout": "tight"}, "layout should be one of"),
        ({"scale": 0}, "scale"),
        ({"scale": "half"}, "scale"),
        ({"scale": 1e-30}, "out of proportion"),
        ({"scale": 1e34}, "out of proportion"),
        ({"order": ["k0", "k1"]}, "order should be mean, or all 3 classes"),
        ({"order": "by_mean"}, "order should be mean"),
        ({"clip": "yes"}, "clip should be true or false"),
        ({"gradient_limit": 0}, "gradient_limit"),
        ({"tries": 0}, "tries"),
        ({"adjust": "lr"}, "adjust"),
        ({"factor": 1.0}, "factor"),
        ({"candidates": {"scale": [1]}}, "candidates"),
        ({"candidates": {"gap": 3}}, "candidates"),
        ({"candidates": {"gap": [-3]}}, "candidates.gap"),
        ({"candidates": {"order": [["k0"]]}}, "candidates.order"),
        ({"constants": {"low": [1]}}, "constants should be what an earlier run wrote"),
        (
            {
                "constants": {
                    "classes": ["k0", "k1", "k2"],
                    "low": [1],
                    "high": [2],
                    "offset": [0],
                    "gap": 1,
                    "scale": 1,
                }
            },
            r"constants\.low should have 3 numbers",
        ),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        fitted(*THREE, **options)


def test_other_sets_of_tasks_are_refused_with_the_reason() -> None:
    make, model = Task("make", "classification", ("a", "b")), Task("model", "classification", ("c", "d"))
    weight, speed = Task("weight", "regression"), Task("speed", "regression")
    for chosen, reason in (
        ([make, model, weight], r"room for the classes of one task.*make, model.*data.levels=\[model,weight\]"),
        ([make, weight, speed], "several properties would need an axis of its own.*weight, speed"),
        ([make, model], "needs both.*no regression"),
        ([weight], "needs both.*no classification"),
    ):
        with pytest.raises(UserError, match=reason):
            FastCAR(TaskSet(chosen))


def test_a_class_without_labels_is_refused() -> None:
    f = FastCAR(tasks(3))
    with pytest.raises(UserError, match="Class k1 of task 'steel' has no training image with a hv"):
        f.fit({"steel": torch.tensor([0, 2, 1]), "hv": torch.tensor([1.0, 2.0, NAN])})


def test_constants_make_the_same_axis_again_and_survive_json_and_checkpoints() -> None:
    f = fitted(*THREE, order=["k2", "k0", "k1"], layout="stacked")
    given_back = OmegaConf.to_container(OmegaConf.create(OmegaConf.to_yaml(OmegaConf.create(f.constants()))))
    again = fitted(THREE[0], [0.0] * 6, constants=given_back)  # the labels are not looked at
    assert again.constants() == f.constants()
    loaded = FastCAR(tasks(3))
    loaded.load_state_dict(f.state_dict())
    y = {"steel": torch.tensor([0, 1, 2]), "hv": torch.tensor([111.0, 150.0, 444.0])}
    assert loaded.constants() == f.constants()
    for other in (again, loaded):
        assert torch.equal(other.encode(y)["axis"], f.encode(y)["axis"])
        assert all(torch.equal(a, b) for a, b in zip(f.decode(f.encode(y)).values(), y.values(), strict=True))


GIVEN = fitted(*THREE).constants()


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"low": [100, 130, 400]}, "intervals should ascend"),  # overlaps the one before
        ({"high": [140, 260, 390]}, "intervals should ascend"),  # ends before it begins
        ({"classes": ["k1", "k0", "k2"], "low": [150, 100, 400], "high": [250, 140, 460]}, "intervals should ascend"),
        ({"offset": [0, float("nan"), 0]}, "offset should be a finite number"),
        ({"scale": 0}, "scale should be a number above 0"),
        ({"gap": "wide"}, "gap should be"),
        ({"classes": ["k0", "k1"]}, "classes should be"),
    ],
)
def test_constants_that_make_no_axis_are_refused(changes: dict[str, Any], hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        FastCAR(tasks(3), constants={**GIVEN, **changes})


@pytest.mark.parametrize("given", ["foo", [1, 2], 3])
def test_constants_and_candidates_of_another_kind_are_refused(given: Any) -> None:
    with pytest.raises(UserError, match="constants should be what an earlier run wrote"):
        FastCAR(tasks(3), constants=given)
    with pytest.raises(UserError, match="candidates maps some of"):
        FastCAR(tasks(3), candidates=given)


def test_a_position_beyond_float32_has_no_class() -> None:
    f = fitted(*THREE, scale=1000)
    z = torch.tensor([3e38, -3e38, 0.0])
    found = f.decode({"axis": z})
    assert found["steel"].tolist() == [-1, -1, 1]
    assert found["hv"].isnan().tolist() == [True, True, False]
    assert f.flags(z).tolist() == [NOT_FINITE, NOT_FINITE, GAP]


def test_it_is_made_and_decodes_on_the_meta_device() -> None:
    """Where every cell of a sweep is tried before any starts."""
    with torch.device("meta"):
        for options in ({}, {"constants": GIVEN}):
            found = FastCAR(tasks(3), **options).decode({"axis": torch.zeros(2)})
    assert found["steel"].is_meta


def test_without_constants_it_does_not_guess() -> None:
    with pytest.raises(RuntimeError, match="fit"):
        FastCAR(tasks(3)).encode({"steel": torch.tensor([0]), "hv": torch.tensor([1.0])})


def test_the_contract_of_the_yaml() -> None:
    from mtlcar.config import conf_dir

    task_set = TaskSet((Task("make", "classification", classes=("a", "b")), Task("weight", "regression")))
    f = instantiate(OmegaConf.load(Path(conf_dir()) / "label_transform/fastcar.yaml"), tasks=task_set)
    y = {"make": torch.tensor([0, 1, 0, 1]), "weight": torch.tensor([900.0, 1000.0, 1100.0, 1500.0])}
    assert f.fit(y) is f
    encoded: dict[str, Tensor] = f.encode(y)
    assert list(encoded) == ["axis"]
    assert encoded["axis"].shape == (4,)
    assert encoded["axis"].abs().max() == 1
    decoded = f.decode(encoded)
    assert torch.equal(decoded["make"], y["make"])
    torch.testing.assert_close(decoded["weight"], y["weight"], rtol=0, atol=1e-6 * 700)
