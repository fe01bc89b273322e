"""Weights, losses and gradients by epoch."""

import math

import numpy as np
import pandas as pd
import pytest

from mtlcar.report.collect import Run
from mtlcar.report.section import Section
from mtlcar.report.trajectories import LINES, section
from tests.report_cells import comparison_of, made


def history(epochs: int = 4, **columns: object) -> pd.DataFrame:
    """Columns are `train__make__weight=...`."""
    named = {name.replace("__", "/"): values for name, values in columns.items()}
    return pd.DataFrame({"epoch": np.arange(epochs), "step": 10, **named})


def run(architecture: str, seed: int = 0, accuracy: float = 0.5, *, table: pd.DataFrame) -> Run:
    return made(architecture, seed, test={"model/accuracy": accuracy}, history=table)


def names(found: Section | None) -> list[str]:
    return [] if found is None else [d.name for d in found.drawings]


def test_lines_are_means_over_seeds_by_epochs_from_one() -> None:
    rng = np.random.default_rng(0)
    values = rng.random((3, 4))
    runs = [run("a", s, table=history(train__make__loss=values[s])) for s in range(3)]
    found = section(comparison_of(runs))
    assert found is not None
    (sheet,) = found.sheets
    data = sheet.data
    assert data["epoch"].tolist() == [1, 2, 3, 4]
    for column, of in (("mean", np.mean), ("min", np.min), ("max", np.max)):
        assert data[column].to_numpy() == pytest.approx(of(values, axis=0))
    (drawing,) = found.drawings
    (line,) = drawing.figure.axes[0].lines
    assert line.get_xydata() == pytest.approx(np.stack([np.arange(1, 5), values.mean(axis=0)], axis=1))
    (band,) = drawing.figure.axes[0].collections
    extent = band.get_paths()[0].get_extents()
    assert (extent.y0, extent.y1) == pytest.approx((values.min(), values.max()))
    assert sheet.rows[0][2][0] == f"{values[:, -1].mean():.3g}"


@pytest.mark.parametrize(
    ("first", "second", "shown"),
    [((1, 1, 1, 1), (1, 1, 1, 1), False), ((1, 1, 1, 1), (2, 2, 2, 2), True), ((1, 1, 1, 1), (1, 1, 1, 1.2), True)],
    ids=["all-one", "other-in-a-cell", "moving"],
)
def test_weights_are_drawn_where_they_move_or_differ(first: tuple, second: tuple, shown: bool) -> None:
    runs = [run(a, table=history(train__make__weight=w)) for a, w in (("a", first), ("b", second))]
    found = section(comparison_of(runs))
    assert ("trajectories_weight" in names(found)) is shown
    if found is not None:
        assert len(found.drawings[0].figure.axes[0].lines) == 2, "the cell of constant weight is there to compare with"


def test_each_kind_of_column_has_its_figure_and_each_task_or_pair_its_panel() -> None:
    up = np.linspace(0.1, 0.4, 4)
    table = history(
        train__model__loss=up, train__make__loss=up, val__make__loss=up, val__loss=up, train__loss=up,
        train__make__gradient_norm=up, train__model__weight=up, val__make__accuracy=up,
        **{"train__make-model__cosine": -up, "train__make-model__conflict": up},
    )  # fmt: skip
    found = section(comparison_of([run("a", table=table)]))
    assert found is not None
    titles = {d.name.removeprefix("trajectories_"): [ax.get_title() for ax in d.figure.axes] for d in found.drawings}
    assert titles == {
        "weight": ["model"],
        "loss": ["make, train", "model, train", "make, val"],
        "gradient_norm": ["make"],
        "cosine": ["make and model"],
        "conflict": ["make and model"],
    }
    (conflict,) = (d.figure.axes[0].lines[0] for d in found.drawings if d.name.endswith("conflict"))
    assert conflict.get_ydata() == pytest.approx(100 * up), "a share is drawn in %"


def test_of_many_cells_the_best_twelve_are_drawn_and_all_are_in_the_table() -> None:
    rng = np.random.default_rng(1)
    accuracy = rng.permutation(LINES + 3) / 100
    runs = [run(f"n{i}", accuracy=a, table=history(train__make__loss=np.full(4, a))) for i, a in enumerate(accuracy)]
    found = section(comparison_of(runs))
    assert found is not None
    (drawing,) = found.drawings
    heights = {round(float(line.get_ydata()[0]), 4) for line in drawing.figure.axes[0].lines}
    assert heights == set(np.sort(accuracy)[-LINES:].round(4))
    assert f"best {LINES} of {LINES + 3} cells" in drawing.caption
    assert len(found.sheets[0].rows) == LINES + 3


def test_runs_of_other_lengths_with_holes_and_without_the_column_are_no_trouble() -> None:
    runs = [
        run("a", 0, table=history(2, train__make__loss=[1.0, math.nan])),
        run("a", 1, table=history(3, train__make__loss=[3.0, 4.0, math.inf])),
        run("b", 0, table=history(3, train__model__loss=[1.0, 2.0, 3.0])),
        run("c", 0, table=pd.DataFrame()),
    ]
    found = section(comparison_of(runs))
    assert found is not None
    data = found.sheets[0].data
    a = data[(data["cell"] == "a") & (data["column"] == "train/make/loss")]
    assert a[["epoch", "mean", "n"]].to_numpy().tolist() == [[1, 2.0, 2], [2, 4.0, 1]]
    rows = {row[0][0]: [text for text, _ in row[1:]] for row in found.sheets[0].rows}
    assert rows == {"a": ["2", "4", "-"], "b": ["3", "-", "3"], "c": ["-", "-", "-"]}
    found.drawings[0].figure.draw_without_rendering()


def test_without_a_history_there_is_nothing() -> None:
    assert section(comparison_of([run("a", table=pd.DataFrame()), run("b", table=history())])) is None


def test_norms_over_orders_of_magnitude_are_on_a_log_axis_and_cosines_never() -> None:
    steep = [100.0, 1.0, 0.1, 0.01]
    table = history(train__make__gradient_norm=steep, **{"train__make-model__cosine": [0.9, 0.1, 0.01, 0.001]})
    found = section(comparison_of([run("a", table=table)]))
    assert found is not None
    assert {d.name: d.figure.axes[0].get_yscale() for d in found.drawings} == {
        "trajectories_gradient_norm": "log",
        "trajectories_cosine": "linear",
    }
