"""The report on one class and one value: its columns, FastCAR's Table 1, tables per class and specimen, figures."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from mtlcar.metrics.tasks import TaskMetrics
from mtlcar.report import build_report
from mtlcar.report.build import build
from mtlcar.report.collect import collect
from mtlcar.report.comparison import Comparison, compare
from mtlcar.report.figures import PANELS
from mtlcar.report.figures import test_figure as results_figure
from mtlcar.report.per_class import class_table
from mtlcar.report.per_image import per_image
from mtlcar.report.published import table_1
from mtlcar.report.section import Sheet
from mtlcar.report.specimen_figure import drawn, specimen_figure
from mtlcar.report.specimens import by_specimen, specimen_table, worst_table
from mtlcar.report.table import headings, rows
from mtlcar.tasks import Task, TaskSet
from tests.run_dirs import CARS, STEEL, predictions, steel, tiles, write_steel

pytestmark = pytest.mark.usefixtures("undrawn")

NAN = float("nan")


def only(folder: Path) -> Comparison:
    (comparison,) = compare(collect([folder]).runs)
    return comparison


def main_rows(folder: Path) -> dict[str, dict[str, tuple[str, bool]]]:
    comparison = only(folder)
    return {row[0][0]: dict(zip(headings(comparison), row, strict=True)) for row in rows(comparison)}


def texts(table: Sheet | None) -> list[dict[str, str]]:
    assert table is not None
    return [dict(zip(table.heads, (text for text, _ in row), strict=True)) for row in table.rows]


# Errors 7 and 10 % of 100 (the second of a wrong class), 8 % of 250, 5 % of a missing class, 0 % of 0, a missing value.
MIXED = tiles(
    ("a", "soft", 100.0, "soft", 107.0),
    ("a", "soft", 100.0, "mid", 110.0),
    ("b", "mid", 250.0, "mid", 270.0),
    ("b", "mid", 100.0, None, 105.0),
    ("c", "hard", 0.0, "hard", 0.0),
    ("c", "hard", NAN, "hard", 1.0),
)


def test_values_per_image_of_within_8_and_of_mape_where_the_class_is_right() -> None:
    within = per_image("property/within_8", MIXED, STEEL)
    assert within.to_dict() == {0: True, 1: False, 2: True, 3: True}
    assert within.dtype == bool, "a share: Wilson's interval"
    right = per_image("property/mape_if_right", MIXED, STEEL)
    assert right.to_dict() == pytest.approx({0: 7.0, 2: 8.0})
    assert per_image("property/mape_if_right", MIXED.drop(columns="class/prediction"), STEEL) is None
    assert per_image("property/mape_if_right", MIXED.drop(columns="property/prediction"), STEEL) is None
    assert per_image("property/mape_if_right", MIXED.assign(**{"class/prediction": -1}), STEEL) is None
    unlabelled = MIXED.assign(**{"class/target": -1, "class/prediction": -1})
    assert per_image("property/mape_if_right", unlabelled, STEEL) is None, "no class at all is not a right one"


def test_within_8_is_that_of_the_metrics() -> None:
    metrics = TaskMetrics(STEEL, "test/")
    columns = {kind: {t: torch.tensor(MIXED[f"{t}/{kind}"]) for t in STEEL.names} for kind in ("prediction", "target")}
    metrics.update(columns["prediction"], columns["target"])
    computed = metrics.compute()["test/property/within_8"]
    assert computed == per_image("property/within_8", MIXED, STEEL).mean() == 0.75


def test_the_finest_class_decides_whether_a_class_is_right() -> None:
    df = predictions(0.7)
    right = df["model/target"] == df["model/prediction"]
    assert list(per_image("weight/mape_if_right", df, CARS).index) == list(np.flatnonzero(right))


def test_columns_of_one_value_besides_a_class(tmp_path: Path) -> None:
    write_steel(tmp_path / "s", steel(10.0, wrong=4), "FastCAR")
    write_steel(tmp_path / "s", steel(60.0, wrong=0), "two heads")
    table = main_rows(tmp_path)
    heads = list(table["FastCAR"])
    value = ["property MAE, HV", "property MAPE %", "property MSE, HV²"]
    assert heads[3:8] == [*value, "within 8 %, % of images", "MAPE % if class right"]
    df = steel(10.0, wrong=4)
    relative = (df["property/prediction"].astype(float) - df["property/target"]).abs() / df["property/target"]
    shown, bold = table["FastCAR"]["within 8 %, % of images"]
    assert shown.startswith(f"{100 * (relative <= 0.08).mean():.1f} [")
    assert bold, "the higher share is the better one"
    shown, bold = table["FastCAR"]["MAPE % if class right"]
    assert shown.startswith(f"{100 * relative[4:].mean():.1f} [")
    assert not bold, "each cell's is of other images"
    assert not table["two heads"]["MAPE % if class right"][1]


def test_the_new_columns_are_means_and_intervals_over_seeds(tmp_path: Path) -> None:
    expected = []
    for seed in (0, 1):
        df = steel(10.0 + 5 * seed, seed, wrong=3)
        write_steel(tmp_path / "s", df, seed=seed)
        expected.append(per_image("property/mape_if_right", df, STEEL).mean())
    row = pd.read_csv(build_report([tmp_path], tmp_path / "out").parent / "table.csv").iloc[0]
    assert row["property/mape_if_right"] == pytest.approx(np.mean(expected))
    half = 12.706204736174698 * abs(expected[0] - expected[1]) / 2
    assert row["property/mape_if_right/high"] == pytest.approx(np.mean(expected) + half)
    assert 0 < row["property/within_8"] <= 1


def test_a_run_without_a_value_or_a_right_class_has_no_such_number(tmp_path: Path) -> None:
    write_steel(tmp_path / "s", method="FastCAR")
    write_steel(tmp_path / "s", steel().assign(**{"class/prediction": -1}), "no class")
    run = write_steel(
        tmp_path / "s", steel().drop(columns="property/prediction").assign(**{"property/prediction": 0.0})
    )
    steel().drop(columns=["property/prediction", "property/target"]).to_parquet(run / "predictions.parquet")
    stored = json.loads((run / "metrics.json").read_text())
    stored["test"] = {"class/accuracy": stored["test"]["class/accuracy"]}
    (run / "metrics.json").write_text(json.dumps(stored))
    table = main_rows(tmp_path)
    assert table["no class"]["MAPE % if class right"] == ("-", False)
    assert table["no class"]["within 8 %, % of images"][0] != "-"
    assert table["-"]["within 8 %, % of images"] == table["-"]["MAPE % if class right"] == ("-", False)


def test_a_stored_share_within_8_that_its_predictions_contradict_is_named(tmp_path: Path) -> None:
    run = write_steel(tmp_path / "s")
    stored = json.loads((run / "metrics.json").read_text())
    stored["test"]["property/within_8"] = 0.5
    (run / "metrics.json").write_text(json.dumps(stored))
    (sentence,) = only(tmp_path).disagree
    assert "property/within_8 is 0.5" in sentence


def test_tasks_of_two_values_get_no_such_columns(tmp_path: Path) -> None:
    run = write_steel(tmp_path / "s")
    two = TaskSet((*STEEL, Task("width", "regression", unit="mm")))
    (run / "tasks.json").write_text(json.dumps(two.to_dict()))
    comparison = only(tmp_path)
    assert not any("8 %" in head or "if class" in head for head in headings(comparison))
    assert class_table(comparison) is specimen_table(comparison) is table_1(comparison) is None


def test_the_table_per_class_is_the_plain_computation(tmp_path: Path) -> None:
    write_steel(tmp_path / "s", tiles(*[("a", "soft", 100.0, "soft", 110.0), ("a", "soft", 100.0, "mid", 86.0)]), "A")
    other = tiles(*[("a", "soft", 100.0, "soft", 101.0), ("a", "soft", 100.0, "mid", 99.0)])
    write_steel(tmp_path / "s", other, "A", seed=1)
    hard = ("c", "hard", 800.0, "hard", 800.0)
    write_steel(tmp_path / "s", tiles(("a", "soft", 100.0, "soft", 103.0), hard), "B")
    table = class_table(only(tmp_path))
    assert table is not None
    assert table.heads == [
        *("class", "cell", "test images", "class %"),
        *("property MAE, HV", "property MAPE %", "property bias, HV"),
    ]
    assert [[text for text, _ in row] for row in table.rows] == [
        ["soft", "A", "2", "50.0", "6.50", "6.5", "-1.00"],  # (|10| + |-14|) / 2 and (|1| + |-1|) / 2, then their mean
        ["soft", "B", "1", "100.0", "3.00", "3.0", "+3.00"],
        ["hard", "B", "1", "100.0", "0", "0.0", "+0"],
    ]
    assert [[bold for _, bold in row] for row in table.rows][1] == [False, False, False, True, True, True, False]
    assert not any(bold for _, bold in table.rows[0])


def test_a_prediction_that_is_no_number_is_not_left_out_of_its_class_or_specimen(tmp_path: Path) -> None:
    df = tiles(*[("a", "soft", 100.0, "soft", 100.0)] * 3, *[("b", "mid", 400.0, "mid", 400.0)] * 3)
    df.loc[1, "property/prediction"] = NAN
    write_steel(tmp_path / "s", df)
    comparison = only(tmp_path)
    assert [row["property MAE, HV"] for row in texts(class_table(comparison))] == ["-", "0"]
    specimens = by_specimen(df, "class", "property")
    assert math.isnan(specimens.loc["a", "mae"])
    assert specimens.loc["b", "mae"] == 0
    assert texts(worst_table(comparison))[0]["specimen"] == "a"
    assert "50.0" in texts(specimen_table(comparison))[0]["within 8 %, % of specimens"]
    build_report([tmp_path], tmp_path / "out")


# Specimen a has four tiles and is 5 % off on the mean tile; b has one and is 30 % off.
UNEVEN = tiles(
    ("a", "soft", 200.0, "soft", 190.0),
    ("a", "soft", 200.0, "soft", 210.0),
    ("a", "soft", 200.0, "soft", 200.0),
    ("a", "soft", 200.0, "mid", 220.0),
    ("b", "mid", 400.0, "mid", 520.0),
)


def test_each_specimen_counts_once(tmp_path: Path) -> None:
    specimens = by_specimen(UNEVEN, "class", "property")
    assert list(specimens["tiles"]) == [4, 1]
    assert list(specimens["predicted"]) == [205, 520]
    assert list(specimens["mae"]) == [10, 120]
    assert list(specimens["mape"]) == pytest.approx([5, 30])
    assert specimens.loc["a", ["low", "high"]].tolist() == pytest.approx([193, 217])
    write_steel(tmp_path / "s", UNEVEN)
    (row,) = texts(specimen_table(only(tmp_path)))
    assert row["specimens"] == "2"
    assert row["property MAE, HV"].startswith("65.0 [")  # over images it would be (4 * 10 + 120) / 5 = 32
    assert row["property MAPE %"].startswith("17.5 [")
    assert row["within 8 %, % of specimens"].startswith("50.0 [")


def test_specimens_over_seeds_are_a_mean_with_an_interval(tmp_path: Path) -> None:
    write_steel(tmp_path / "s", UNEVEN)
    write_steel(tmp_path / "s", UNEVEN.assign(**{"property/prediction": UNEVEN["property/target"]}), seed=1)
    (row,) = texts(specimen_table(only(tmp_path)))
    assert row["n"] == "2"
    assert row["property MAE, HV"].startswith("32.5 ± ")
    assert row["within 8 %, % of specimens"].startswith("75.0 ± ")


def test_the_worst_specimens_are_those_of_the_first_seed(tmp_path: Path) -> None:
    shift = np.repeat([1.0, 7.0, -3.0, 2.0, -60.0, 5.0], 4)
    df = steel(0.0)
    df["property/prediction"] = (df["property/target"] + shift).astype(np.float32)
    write_steel(tmp_path / "s", steel(0.0), seed=1)
    write_steel(tmp_path / "s", df, seed=0)
    found = texts(worst_table(only(tmp_path)))
    assert [row["specimen"] for row in found] == ["hard0", "soft1", "hard1", "mid0", "mid1"]
    columns = ["class", "true value, HV", "mean predicted, HV", "property MAE, HV", "property MAPE %", "tiles"]
    assert [found[0][column] for column in columns] == ["hard", "800", "740", "60.0", "7.5", "4"]


def test_predictions_without_groups_have_no_specimens(tmp_path: Path) -> None:
    write_steel(tmp_path / "s", steel().drop(columns="group"))
    write_steel(tmp_path / "s", steel().assign(group=[str(i) for i in range(24)]), head__dropout=0.5)
    comparison = only(tmp_path)
    assert specimen_table(comparison) is worst_table(comparison) is None
    assert drawn(comparison) == []
    assert specimen_figure(comparison, []) is None
    assert len(texts(class_table(comparison))) == 6


def test_an_image_without_a_group_is_a_specimen_of_its_own() -> None:
    df = UNEVEN.copy()
    df.loc[3, "group"] = None
    assert list(by_specimen(df, "class", "property")["tiles"]) == [3, 1, 1]


def test_the_figure_has_a_dot_a_specimen_at_its_true_and_mean_predicted_value(tmp_path: Path) -> None:
    write_steel(tmp_path / "s", UNEVEN)
    write_steel(tmp_path / "s", UNEVEN.assign(**{"property/prediction": 300.0}), seed=1)
    comparison = only(tmp_path)
    figure = specimen_figure(comparison, drawn(comparison))
    assert figure is not None
    (ax,) = figure.axes
    dots = ax.collections[-1]
    assert np.asarray(dots.get_offsets()).tolist() == [[200, (205 * 4 + 300 * 4) / 8], [400, 410]]
    assert dots.get_facecolor()[:, 0].tolist() == [1, 0], "hollow where it is more than 8 % off"
    bars = ax.collections[-2].get_segments()
    tiles_of_a = [190, 210, 200, 220, 300, 300, 300, 300]
    assert bars[0][:, 1].tolist() == pytest.approx(np.quantile(tiles_of_a, [0.1, 0.9]).tolist())
    (identity,) = ax.get_lines()
    assert list(identity.get_xdata()) == list(identity.get_ydata())


def test_the_figure_has_the_best_cells_in_the_order_of_the_table(tmp_path: Path) -> None:
    for i in range(PANELS + 2):
        write_steel(tmp_path / "s", steel(100.0 - 5 * i), f"m{i:02d}")
    comparison = only(tmp_path)
    panels = drawn(comparison)
    assert [cell.label for cell, _ in panels] == [f"m{i:02d}" for i in range(2, PANELS + 2)]
    figure = specimen_figure(comparison, panels)
    assert figure is not None
    assert [ax.get_title() for ax in figure.axes] == [cell.label for cell, _ in panels]
    page = build_report([tmp_path], tmp_path / "out").read_text()
    assert f"Only the {PANELS} of {PANELS + 2} cells with the least mean error" in page


def test_table_1_has_the_published_rows_first_then_ours(tmp_path: Path) -> None:
    write_steel(tmp_path / "s", steel(wrong=3), "FastCAR", data__image_size=96)
    comparison = only(tmp_path)
    table = table_1(comparison)
    assert table is not None
    published = [[text for text, _ in row] for row in table.rows]
    assert published[:3] == [
        ["best multi-task network of family 1 (paper)", "99.85", "53.7", "-", "-", "-", "-", "40.4 ± 23.7"],
        ["best multi-task network of family 2 (paper)", "99.69", "54.2", "-", "-", "-", "-", "43.1 ± 23.9"],
        ["FastCAR (paper)", "99.54", "2.4", "606", "12", "98.6", "-", "16.32"],
    ]
    (ours,) = published[3:]
    numbers = comparison.cells[0].numbers
    assert ours[0] == "FastCAR"
    assert ours[1] == f"{100 * numbers['class/accuracy'].mean:.1f}" == "87.5"
    metrics = ("mape", "mse", "mae")
    assert [float(text) for text in ours[2:5]] == pytest.approx(
        [numbers[f"property/{m}"].mean for m in metrics], rel=0.02
    )
    assert ours[5:7] == [
        f"{100 * numbers['property/within_8'].mean:.1f}",
        f"{numbers['property/mape_if_right'].mean:.1f}",
    ]
    assert ours[7] == "1.5"
    assert "96 px, 4 epochs, on other hardware" in table.note


def test_table_1_is_of_the_published_split_of_this_data_alone(tmp_path: Path) -> None:
    write_steel(tmp_path / "a", data__split="grouped")
    write_steel(tmp_path / "b", data__name="other_steel")
    assert [table_1(only(tmp_path / name)) for name in ("a", "b")] == [None, None]
    write_steel(tmp_path / "a")
    official, grouped = sorted(compare(collect([tmp_path / "a"]).runs), key=lambda c: c.split != "official")
    assert table_1(official) is not None
    assert table_1(grouped) is None


def test_all_tables_and_the_figure_are_in_both_files(tmp_path: Path) -> None:
    write_steel(tmp_path / "s", method="FastCAR")
    write_steel(tmp_path / "s", steel(60.0), method="<b>two</b> heads")
    page, _, _ = build([tmp_path], tmp_path / "out")
    text, html = (page.parent / "report.md").read_text(), page.read_text()
    for title in ("Table 1 of arXiv 2403.17926, with our columns", "Each specimen counted once"):
        assert f"# {title}\n" in text
        assert f">{title}</h" in html
    for title in ("Per class", "The 5 worst specimens of each cell"):
        assert f"### {title}\n" in text
        assert f">{title}</h3></summary>" in html
    assert "prediction - label" in text
    assert "prediction - label" in html
    assert "(figures/specimens.png)" in text
    assert (page.parent / "figures" / "specimens.png").is_file()
    assert "<b>" not in html


@pytest.mark.parametrize("accuracy", [0.0, 1.0])
def test_markers_at_the_ends_of_the_range_are_whole(tmp_path: Path, accuracy: float) -> None:
    for seed, share in enumerate((accuracy, 0.5)):
        df = steel(seed=seed)
        df["class/prediction"] = np.where(np.arange(24) < 24 * share, df["class/target"], -1)
        write_steel(tmp_path / "s", df, seed=seed)
    figure = results_figure(only(tmp_path))
    assert figure is not None
    ax = figure.axes[0]
    left, right = ax.get_xlim()
    assert -8 < left <= -0.03 * (right - left), "the t interval reaches both ends, and no further"
    assert 100 + 0.03 * (right - left) <= right < 108
    assert not any(points.get_clip_on() for points in ax.collections)
    (line,) = [line for line in ax.get_lines() if len(line.get_xdata()) == 2]
    assert list(line.get_xdata()) == [0, 100]


def test_a_cell_that_is_far_off_does_not_squeeze_the_others(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_steel(tmp_path / "s", steel(4.0 + 20 * seed, seed), "two heads", seed=seed)
        constant = steel(seed=seed).assign(**{"property/prediction": np.float32(466 + seed)})
        write_steel(tmp_path / "s", constant, "constant", seed=seed)
    figure = results_figure(only(tmp_path))
    assert figure is not None
    scales = {ax.get_title(): ax.get_xscale() for ax in figure.axes}
    assert scales["test property MAE, HV (log axis)"] == "log"
    assert scales["test class accuracy, %"] == scales["test within 8 %, % of images"] == "linear"
    mae = next(ax for ax in figure.axes if "MAE" in ax.get_title())
    assert all(min(line.get_xdata()) > 0 for line in mae.get_lines()), "the t interval goes below 0"
