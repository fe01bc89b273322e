"""Heat maps of two crossed settings."""

import math
from itertools import pairwise, product

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mtlcar.report import crossing
from mtlcar.report.collect import Run
from mtlcar.report.crossing import crossed
from mtlcar.report.heatmap import section
from mtlcar.report.section import Section
from tests.report_cells import comparison_of, made

METRICS = ("model/accuracy", "make/accuracy", "hierarchy/full_path_accuracy", "weight/mae")


def numbers(rng: np.random.Generator) -> dict[str, float]:
    return {m: float(rng.random() * (100 if m.endswith("mae") else 1)) for m in METRICS}


def cells(
    architectures: tuple[str, ...] = ("parallel", "cascade", "mtan"),
    weightings: tuple[str, ...] = ("equal", "pcgrad"),
    seeds: tuple[int, ...] = (0, 1),
    **lists: tuple,
) -> list[Run]:
    rng = np.random.default_rng(0)
    return [
        made(a, s, test=numbers(rng), weighting__name=w, weighting__weights=None, **dict(zip(lists, rest, strict=True)))
        for a, w, s, *rest in product(architectures, weightings, seeds, *lists.values())
    ]


def drawn(found: Section, metric: str) -> Figure:
    (figure,) = (d.figure for d in found.drawings if d.name == f"heatmap_{metric.replace('/', '_')}")
    return figure


def shades(figure: Figure) -> dict[tuple[int, int], tuple[float, ...]]:
    """Column, row -> colour, of the first panel."""
    fills = [p for p in figure.axes[0].patches if isinstance(p, Rectangle) and p.get_fill()]
    return {(round(p.get_x() + 0.5), round(p.get_y() + 0.5)): p.get_facecolor() for p in fills}


def test_architecture_and_weighting_are_chosen_before_settings_with_more_values() -> None:
    runs = cells(head__dropout=(0.0, 0.1, 0.2, 0.3, 0.4))
    grid = crossed(comparison_of(runs))
    assert grid is not None
    assert grid.titles == ("architecture", "weighting", "dropout")
    assert grid.rows == ["parallel", "cascade", "mtan"]
    assert grid.columns == ["equal", "pcgrad"]
    assert grid.panels == ["0", "0.1", "0.2", "0.3", "0.4"], "numbers by size"


def test_without_weightings_the_two_settings_with_the_most_combinations_are_crossed() -> None:
    runs = cells(weightings=("equal",), head__dropout=(0.0, 0.5), optimizer__lr=(1e-2, 1e-3, 1e-4))
    grid = crossed(comparison_of(runs))
    assert grid is not None
    assert set(grid.titles[:2]) == {"architecture", "lr"}


@pytest.mark.parametrize(
    "runs",
    [
        [made(a, weighting__name=w, test={"model/accuracy": 0.5}) for a, w in zip("abc", "xyz", strict=True)],
        [made(a, test={"model/accuracy": 0.5}) for a in "abc"],
        [made(test={"model/accuracy": 0.5})],
        [made(a, weighting__name=w, test={"model/accuracy": 0.5}) for a, w in product("ab", "xy")]
        + [made(f"more{i}", weighting__name=f"other{i}", test={"model/accuracy": 0.5}) for i in range(4)],
    ],
    ids=["one-each", "one-setting", "one-cell", "hardly-crossed"],
)
def test_settings_that_were_not_crossed_have_no_map(runs: list[Run]) -> None:
    assert section(comparison_of(runs)) is None


def test_each_place_holds_the_mean_over_its_seeds() -> None:
    runs = cells(seeds=(0, 1, 2))
    found = section(comparison_of(runs))
    assert found is not None
    (sheet,) = found.sheets
    plain = pd.DataFrame(
        [
            {
                "architecture": run.config["architecture"]["name"],
                "weighting": run.config["weighting"]["name"],
                **run.test,
            }
            for run in runs
        ]
    )
    expected = plain.groupby(["architecture", "weighting"])[list(METRICS)].mean()
    for _, row in sheet.data.iterrows():
        assert row["mean"] == pytest.approx(expected.loc[(row["architecture"], row["weighting"]), row["metric"]])
        assert row["n"] == 3
    assert len(sheet.data) == 6 * len(METRICS)


@pytest.mark.parametrize("metric", ["model/accuracy", "weight/mae"])
def test_the_best_is_framed_bold_and_the_darkest(metric: str) -> None:
    runs = cells(seeds=(0,))
    found = section(comparison_of(runs))
    assert found is not None
    figure = drawn(found, metric)
    values = {(r.config["weighting"]["name"], r.config["architecture"]["name"]): r.test[metric] for r in runs}
    pick = min if metric.endswith("mae") else max
    weighting, architecture = pick(values, key=lambda key: values[key])
    place = (["equal", "pcgrad"].index(weighting), ["parallel", "cascade", "mtan"].index(architecture))
    colours = shades(figure)
    assert min(colours, key=lambda at: sum(colours[at][:3])) == place
    bold = [t for t in figure.axes[0].texts if t.get_fontweight() == "bold"]
    assert [t.get_position() for t in bold] == [place]
    factor = 1 if metric.endswith("mae") else 100
    assert float(bold[0].get_text()) == pytest.approx(factor * values[weighting, architecture], rel=0.01)
    frames = [p for p in figure.axes[0].patches if not p.get_fill()]
    assert len(frames) == 1
    assert frames[0].get_bbox().contains(*place)


def test_what_is_missing_is_hatched_and_nan_is_neither_best_nor_a_shade() -> None:
    *runs, last = cells(seeds=(0,))
    assert (last.config["architecture"]["name"], last.config["weighting"]["name"]) == ("mtan", "pcgrad")
    runs[0].metrics["test"]["model/accuracy"] = math.nan
    found = section(comparison_of(runs))
    assert found is not None
    ax = drawn(found, "model/accuracy").axes[0]
    hatched = {(p.get_x() + 0.5, p.get_y() + 0.5) for p in ax.patches if p.get_hatch()}
    assert hatched == {(1, 2), (0, 0)}
    assert [t.get_position() for t in ax.texts if t.get_text() == "nan"] == [(0, 0)]
    assert sum(t.get_fontweight() == "bold" for t in ax.texts) == 1


def test_a_failed_cell_leaves_the_others_their_shades() -> None:
    runs = cells(seeds=(0,), weightings=("a", "b", "c"))
    for i, run in enumerate(runs):
        run.metrics["test"]["model/accuracy"] = 0.80 + 0.01 * i
    runs[0].metrics["test"]["model/accuracy"] = 0.01
    found = section(comparison_of(runs))
    assert found is not None
    colours = [sum(c[:3]) / 3 for c in shades(drawn(found, "model/accuracy")).values()]
    assert np.ptp(sorted(colours)[:-1]) > 0.2, "of a range of 0.45"


def test_of_too_many_other_settings_the_best_of_validation_is_shown_not_the_best_of_test() -> None:
    runs = [
        made(a, test={"model/accuracy": 0.9 - d}, val=0.1 + d, weighting__name=w, head__dropout=d)
        for a, w, d in product("ab", "xy", np.arange(0, 0.71, 0.1).round(1).tolist())
    ]
    found = section(comparison_of(runs))
    assert found is not None
    assert found.sheets[0].data["mean"].to_numpy() == pytest.approx([0.2] * 4)
    assert "best validation model/accuracy" in found.drawings[0].caption
    for run in runs[:3]:
        run.metrics["best"]["monitor"] = "val/loss"
    found = section(comparison_of(runs))
    assert found is not None
    assert found.sheets[0].data["mean"].to_numpy() == pytest.approx([0.9 - 0.35] * 4)
    assert "mean over the values of dropout" in found.drawings[0].caption


def test_heads_get_a_panel_each_where_all_other_settings_are_too_many() -> None:
    heads = ("linear", "mlp")
    lrs = (1e-4, 1e-3, 1e-2, 1e-1)
    runs = cells(("a", "b"), ("x", "y"), (0,), head__name=heads, optimizer__lr=lrs)
    grid = crossed(comparison_of(runs))
    assert grid is not None
    assert grid.panels == list(heads)
    assert grid.titles[2] == "head"


def test_an_implied_class_is_marked_and_no_best() -> None:
    runs = [
        made(a, test={"make/accuracy": 0.9 if a == "single" else 0.5 + 0.1 * (w == "x"), "model/accuracy": 0.5},
             weighting__name=w)
        for a, w in product(("parallel", "single"), "xy")
    ]  # fmt: skip
    found = section(comparison_of(runs))
    assert found is not None
    texts = {t.get_text(): t.get_fontweight() for t in drawn(found, "make/accuracy").axes[0].texts}
    assert texts == {"60.0": "bold", "50.0": "normal", "90.0†": "normal"}


def test_numbers_of_thirty_times_fourteen_fit_their_squares() -> None:
    runs = cells(tuple(f"architecture_{i}" for i in range(30)), tuple(f"weighting_{i}" for i in range(14)), (0,))
    found = section(comparison_of(runs))
    assert found is not None
    figure = drawn(found, "weight/mae")
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    ax = figure.axes[0]
    assert len(ax.texts) == 420
    for text in ax.texts:
        box = text.get_window_extent(renderer).transformed(ax.transData.inverted())
        x, y = text.get_position()
        assert abs(box.x1 - box.x0) < 1, text.get_text()
        assert abs(box.y1 - box.y0) < 1
        assert x - 0.5 < box.x0
        assert y - 0.5 < min(box.y0, box.y1)
    ticks = [t.get_window_extent(renderer) for t in ax.get_yticklabels()]
    assert all(a.y0 > b.y1 - 1 for a, b in pairwise(ticks)), "row names do not overlap"
    assert min(t.x0 for t in ticks) >= 0


def test_more_rows_than_can_be_read_are_cut_to_those_of_the_best_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crossing, "ROWS", 2)
    runs = cells(("a", "b", "c", "d"), ("x", "y"), (0,))
    best = {}
    for run in runs:
        name = run.config["architecture"]["name"]
        best[name] = max(best.get(name, 0.0), run.test["model/accuracy"])
    grid = crossed(comparison_of(runs))
    assert grid is not None
    assert set(grid.rows) == set(sorted(best, key=lambda name: best[name])[-2:])
    assert "best 2 of 4 rows" in grid.note
    assert {place[0] for place in grid.places} == set(grid.rows)
