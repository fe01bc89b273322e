"""Metrics against settings that are numbers."""

import math
from itertools import product

import numpy as np
import pandas as pd
import pytest

from mtlcar.report import curve_axes as curves
from mtlcar.report.collect import Run
from mtlcar.report.curve_axes import curve_axes, number
from mtlcar.report.setting_curves import section
from tests.report_cells import comparison_of, made

DROPOUTS, SHARES = (0.0, 0.25, 0.5, 0.75), (0.1, 0.5, 0.9)


def grid(
    architectures: tuple[str, ...] = ("parallel", "cascade"), shares: tuple[float, ...] = SHARES, seeds: int = 2
) -> list[Run]:
    rng = np.random.default_rng(0)
    return [
        made(
            a, seed, test={"model/accuracy": rng.random(), "weight/mae": 100 * rng.random()}, head__dropout=d,
            weighting__weights={"make": 2 * (1 - w), "model": 2 * w},
        )
        for a, d, w, seed in product(architectures, DROPOUTS, shares, range(seeds))
    ]  # fmt: skip


def test_dropout_is_crossed_with_loss_weights_and_architectures_get_panels() -> None:
    dropout, share = curve_axes(comparison_of(grid()))
    assert (dropout.key, dropout.title, dropout.line_title) == ("head.dropout", "dropout", "weights")
    assert (share.title, share.line_title, share.panel_title) == (
        "share of model in weights",
        "dropout",
        "architecture",
    )
    assert share.panels == ["parallel", "cascade"]
    assert share.lines == ["0", "0.25", "0.5", "0.75"]
    assert sorted({x for x, *_ in share.points}) == pytest.approx(SHARES)
    assert len(share.points) == 2 * 4 * 3


def test_points_are_the_means_of_their_seeds() -> None:
    runs = grid()
    found = section(comparison_of(runs))
    assert found is not None
    plain = pd.DataFrame(
        [
            {
                "architecture": r.config["architecture"]["name"],
                "dropout": r.config["head"]["dropout"],
                "share": round(r.config["weighting"]["weights"]["model"] / 2, 3),
                **r.test,
            }
            for r in runs
        ]
    )
    expected = plain.groupby(["architecture", "dropout", "share"]).mean()
    (sheet,) = (s for s in found.sheets if s.name == "curve_weighting_weights")
    assert len(sheet.data) == 2 * 24
    for _, row in sheet.data.iterrows():
        place = (row["architecture"], float(row["dropout"]), round(row["share of model in weights"], 3))
        assert row["mean"] == pytest.approx(expected.loc[place, row["metric"]])
    (figure,) = (d.figure for d in found.drawings if d.name == "curve_weighting_weights")
    ax = figure.axes[0]
    curve = next(line for line in ax.lines if len(line.get_xdata()) == 3)
    xy = [[s, 100 * expected.loc[("parallel", 0.0, s), "model/accuracy"]] for s in SHARES]
    assert curve.get_xydata() == pytest.approx(np.array(xy))
    bars = [line for line in ax.lines if len(line.get_xdata()) == 2]
    assert len(bars) == 4 * 3, "an interval at each point"


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("head__dropout", 0.25, 0.25),
        ("head__dropout", 3, 3.0),
        ("head__dropout", True, None),
        ("head__dropout", "much", None),
        ("head__dropout", None, None),
        ("head__dropout", math.inf, None),
        ("weighting__weights", {"make": 1, "model": 3}, 0.75),
        ("weighting__weights", {"make": 1, "model": 3, "weight": 4}, 0.375),
        ("weighting__weights", {"model": 1.0}, None),
        ("weighting__weights", {"make": 0.0, "model": 0.0}, None),
        ("weighting__weights", {"make": "x", "model": 1.0}, None),
        ("weighting__weights", {"other": 1.0, "model": 1.0}, None),
        ("weighting__weights", None, None),
        ("data__fractions", [0.1, 0.2], None),
    ],
)
def test_what_is_a_number(key: str, value: object, expected: float | None) -> None:
    comparison = comparison_of([made(**{key: value})])
    assert number(comparison.cells[0], key.replace("__", ".")) == expected


def test_two_values_or_none_twice_on_a_line_make_no_curve() -> None:
    def runs(*places: tuple[str, float]) -> list[Run]:
        return [made(a, test={"model/accuracy": 0.5}, head__dropout=d) for a, d in places]

    assert section(comparison_of(runs(("a", 0.0), ("a", 0.5)))) is None
    assert section(comparison_of(runs(("a", 0.0), ("b", 0.2), ("c", 0.5)))) is None
    assert section(comparison_of(runs(("a", 0.0), ("a", 0.2), ("a", 0.5)))) is not None
    assert section(comparison_of([made()])) is None


def test_learning_rates_over_magnitudes_are_on_a_log_axis_and_dropout_is_not() -> None:
    for key, values, scale in (
        ("optimizer__lr", (1e-4, 1e-3, 1e-2), "log"),
        ("head__dropout", (0.1, 0.2, 0.4), "linear"),
    ):
        runs = [made(test={"model/accuracy": 0.5 + v}, **{key: v}) for v in values]
        found = section(comparison_of(runs))
        assert found is not None
        (drawing,) = found.drawings
        assert drawing.figure.axes[0].get_xscale() == scale
        assert ("log axis" in drawing.figure.get_supxlabel()) is (scale == "log")


def test_cells_without_the_number_and_second_cells_of_a_share_are_left_out_and_counted() -> None:
    runs = [
        made(test={"model/accuracy": 0.5}, weighting__weights={"make": a, "model": b})
        for a, b in ((1, 1), (1, 2), (1, 3), (2, 2))
    ]
    runs.append(made(test={"model/accuracy": 0.5}, weighting__name="equal", weighting__weights=None))
    (axes,) = curve_axes(comparison_of(runs))
    assert [x for x, *_ in axes.points] == pytest.approx([1 / 2, 2 / 3, 3 / 4])
    assert "1 cells without a number" in axes.note
    assert "1 cells are left out that have the share of another one" in axes.note
    assert axes.lines == [""], "the weighting no longer varies among these"


def test_of_too_many_lines_and_panels_the_best_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "LINES", 2)
    monkeypatch.setattr(curves, "PANELS", 1)
    runs = grid(("parallel", "cascade", "mtan"), seeds=1)
    best = max(runs, key=lambda r: r.test["model/accuracy"])
    for axes in curve_axes(comparison_of(runs)):
        assert axes.panels == [best.config["architecture"]["name"]]
        assert len(axes.lines) == 2
        assert any(cell.runs[0] is best for *_, cell in axes.points), (
            "the best cell of all is in the panel and on a line that are kept"
        )
        assert "best 1 of 3 panels" in axes.note


def test_a_metric_that_is_nan_or_missing_at_a_point_leaves_it_out() -> None:
    runs = [made(test={"model/accuracy": 0.5, "weight/mae": 3.0}, head__dropout=d) for d in DROPOUTS]
    runs[1].metrics["test"]["model/accuracy"] = math.nan
    del runs[2].metrics["test"]["weight/mae"]
    found = section(comparison_of(runs))
    assert found is not None
    curve = found.drawings[0].figure.axes[0].lines[0]
    assert curve.get_xdata().tolist() == [0.0, 0.5, 0.75]
    assert [row[2][0] for row in found.sheets[0].rows] == ["50.0", "-", "50.0", "50.0"]
    found.drawings[0].figure.draw_without_rendering()
