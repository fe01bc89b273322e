"""FastCAR's picture: what is drawn is where the labels, intervals, thresholds and predictions are."""

import io

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from mtlcar.label_transforms.axis_figure import _lanes, axis_figure
from mtlcar.label_transforms.fastcar import FastCAR
from mtlcar.tasks import Task, TaskSet


def fitted(classes: list[int], values: list[float], names: tuple[str, ...]) -> FastCAR:
    tasks = TaskSet([Task("steel", "classification", names), Task("hv", "regression", unit="HV")])
    return FastCAR(tasks).fit({"steel": torch.tensor(classes), "hv": torch.tensor(values)})


# the order on the axis is c, a, b: a and b overlap, so b moves by 20 + a gap of 10
SMALL = ([0, 0, 1, 1, 2, 2], [200.0, 300.0, 280.0, 380.0, 100.0, 140.0], ("a", "b", "c"))


def frame(f: FastCAR, targets: list[int], positions: list[float]) -> pd.DataFrame:
    z = (torch.tensor(positions) - f.centre) / f.scale
    found = f.decode({"axis": z.float()})
    columns = {"steel/target": targets, "steel/prediction": found["steel"].numpy()}
    columns |= {"hv/target": np.zeros(len(targets)), "hv/prediction": found["hv"].numpy()}
    return pd.DataFrame(columns | {k: v.numpy() for k, v in f.columns({"axis": z.float()}).items()})


def draw(f: FastCAR, predictions: pd.DataFrame) -> Figure:
    assert f.labels is not None
    figure = axis_figure(f.task, f.value, f.constants(), f.labels, predictions)
    with io.BytesIO() as file:
        figure.savefig(file, format="png")
        assert file.tell() > 5000
    return figure


def points(figure: Figure, label: str) -> list[tuple[float, int]]:
    """(position, row) of the dots with this label, left to right."""
    drawn = [c for c in figure.axes[1].collections if isinstance(c, PathCollection) and c.get_label() == label]
    return sorted((round(float(x)), round(float(y))) for c in drawn for x, y in np.asarray(c.get_offsets()))


def test_dots_are_right_crosses_wrong_and_triangles_beyond() -> None:
    f = fitted(*SMALL)
    # rows are the order of the axis: c 0, a 1, b 2
    figure = draw(f, frame(f, [2, 0, 1, 0, 1, 2], [120.0, 250.0, 360.0, 130.0, 9000.0, -9000.0]))
    assert points(figure, "right class") == [(120, 0), (250, 1), (360, 2)]
    assert points(figure, "wrong class") == [(130, 1)]
    left, right = figure.axes[1].get_xlim()
    assert points(figure, "further right") == [(round(right), 2)]
    assert points(figure, "further left") == [(round(left), 0)]


def test_ranges_intervals_and_thresholds_are_where_fastcar_has_them() -> None:
    f = fitted(*SMALL)
    figure = draw(f, frame(f, [0], [250.0]))
    above, below = figure.axes
    spans = [
        sorted((round(p.vertices[:, 0].min()), round(p.vertices[:, 0].max())) for p in c.get_paths())
        for c in above.collections[1:3]
    ]
    assert spans[0] == [(100, 140), (200, 300), (280, 380)]  # labels
    assert spans[1] == [(100, 140), (200, 300), (310, 410)]  # intervals
    for ax in (above, below):
        dashed = [line.get_xdata()[0] for line in ax.lines]  # type: ignore[index]
        assert dashed == pytest.approx([170.0, 305.0])
    assert [t.get_text() for t in below.get_yticklabels()] == ["c", "a", "b"]
    texts = [t.get_text() for t in above.texts]
    assert "+30" in texts
    assert sorted(t for t in texts if t in "abc" and t) == ["a", "a", "b", "b", "c", "c"]
    assert "1 of 3 move" in above.get_title(loc="left")
    assert "HV" in below.get_xlabel()


def test_the_title_counts_what_is_drawn_and_what_is_not() -> None:
    f = fitted(*SMALL)
    df = frame(f, [0, 0, 0, -1, 2], [250.0, 304.0, 350.0, 250.0, float("nan")])
    title = draw(f, df).axes[1].get_title(loc="left")
    assert title.startswith("3 predictions: 66.7 % of classes right")
    assert "25.0 % in a gap" in title  # of the four with a label
    assert "1 not finite" in title


@pytest.mark.parametrize("positions", [[], [float("nan")] * 2], ids=["none", "nan"])
def test_without_a_position_it_says_so(positions: list[float]) -> None:
    f = fitted(*SMALL)
    below = draw(f, frame(f, [0] * len(positions), positions)).axes[1]
    assert "no predictions" in below.texts[0].get_text()


def test_classes_of_one_value_stay_visible() -> None:
    f = fitted([0, 1, 2], [5.0, 5.0, 5.0], ("a", "b", "c"))
    above = draw(f, frame(f, [0, 1, 2], [5.0, 6.0, 7.0])).axes[0]
    assert all(c.get_linewidth()[0] > 1 for c in above.collections[1:3])


def test_196_classes_have_thin_lines_and_no_names() -> None:
    rng = np.random.default_rng(0)
    c = np.repeat(np.arange(196), 4)
    values = (rng.uniform(800, 2000, 196)[c] + rng.uniform(-30, 30, len(c))).tolist()
    f = fitted(c.tolist(), values, tuple(f"Maker and model {i}" for i in range(196)))
    figure = draw(f, frame(f, [0, 1], [1000.0, 1500.0]))
    assert not list(figure.axes[0].texts)
    assert not any("Maker" in t.get_text() for t in figure.axes[1].get_yticklabels())
    assert max(line.get_linewidth() for line in figure.axes[1].lines) < 0.5
    assert figure.get_size_inches()[1] < 12


def test_ranges_that_meet_are_in_different_lanes_and_lanes_are_few() -> None:
    assert _lanes(np.array([5.0, 0.0, 2.0, 6.0]), np.array([7.0, 2.0, 4.0, 9.0])).tolist() == [0, 0, 1, 1]
