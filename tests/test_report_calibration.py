"""Calibration in the report: the errors against other implementations, their intervals, tables and diagrams."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.collections import PathCollection
from scipy import stats
from torchmetrics.functional.classification import multiclass_calibration_error

from mtlcar.report import calibration
from mtlcar.report.calibration_errors import (
    BINS,
    LEAST,
    Answers,
    answers,
    binned_interval,
    chance_error,
    equal_mass,
    equal_width,
    expected_error,
    interval,
    maximum_error,
    measures,
)
from mtlcar.report.calibration_figure import FEW, Panel, reliability_figure
from mtlcar.report.collect import Run, collect
from mtlcar.report.comparison import Comparison, compare
from tests.run_dirs import CARS, config, predictions, write_run


def softmax(n: int, classes: int, seed: int, sharp: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities [N, C] and labels [N] drawn from them: a calibrated network."""
    rng = np.random.default_rng(seed)
    scores = np.exp(sharp * rng.standard_normal((n, classes)))
    scores /= scores.sum(1, keepdims=True)
    return scores, (scores.cumsum(1) > rng.random((n, 1))).argmax(1)


def simulated(n: int, too_sure: float, seed: int) -> Answers:
    """A network whose accuracy is its confidence less `too_sure`."""
    rng = np.random.default_rng(seed)
    confidence = rng.beta(4, 2, n)
    return Answers(confidence, rng.random(n) < confidence - too_sure)


def with_scores(skill: float, seed: int, n: int = 300) -> pd.DataFrame:
    """Predictions whose confidence is the score of the predicted class, which is the highest."""
    df = predictions(skill, n, seed)
    for task in CARS.classification:
        guess = df[f"{task.name}/prediction"].to_numpy()
        scores = np.random.default_rng(seed).random((n, len(task.classes)))
        scores[np.arange(n), guess] += 1 + 2 * len(task.classes) * np.random.default_rng(seed + 1).random(n)
        scores = (scores / scores.sum(1, keepdims=True)).astype(np.float32)
        df[f"{task.name}/scores"] = list(scores)
        df[f"{task.name}/confidence"] = scores[np.arange(n), guess]
    return df


def cars(folder: Path, df: pd.DataFrame, architecture: str = "parallel", seed: int = 0) -> Path:
    """A run with these predictions."""
    run = write_run(folder, config(architecture, seed))
    df.to_parquet(run / "predictions.parquet")
    return run


def only(folder: Path) -> Comparison:
    comparisons = compare(collect([folder]).runs)
    assert len(comparisons) == 1
    return comparisons[0]


def read(path: Path) -> Run:
    return collect([path]).runs[0]


@pytest.mark.parametrize("classes", [2, 6, 50])
@pytest.mark.parametrize("sharp", [0.3, 2.0, 8.0])
def test_expected_and_maximum_error_are_those_of_torchmetrics(classes: int, sharp: float) -> None:
    scores, target = softmax(777, classes, seed=classes, sharp=sharp)
    target[::3] = 0  # not calibrated
    scores = np.minimum(scores, 1 - 1e-6).astype(np.float32)  # torchmetrics gives certainty a bin of its own
    confidence, right = scores.max(1).astype(float), scores.argmax(1) == target
    for norm, ours in (("l1", expected_error), ("max", maximum_error)):
        theirs = multiclass_calibration_error(torch.tensor(scores), torch.tensor(target), classes, n_bins=15, norm=norm)
        assert ours(confidence, right, equal_width(confidence)) == pytest.approx(float(theirs), abs=1e-5)


def test_expected_error_is_equation_5_image_by_image() -> None:
    rng = np.random.default_rng(3)
    confidence = np.concatenate([rng.random(200), np.arange(BINS + 1) / BINS])  # bounds of bins too
    right = rng.random(len(confidence)) < 0.5
    total, worst = 0.0, 0.0
    for m in range(BINS):  # I_m = ((m - 1) / M, m / M], and 0 in the first
        inside = [
            i
            for i, c in enumerate(confidence)
            if (m / BINS < c or (m == 0 and c == 0)) and (c <= (m + 1) / BINS or math.isclose(c, (m + 1) / BINS))
        ]
        inside = [i for i in inside if not math.isclose(confidence[i], m / BINS) or m == 0]
        gap = abs(sum(right[i] for i in inside) / len(inside) - sum(confidence[i] for i in inside) / len(inside))
        total, worst = total + len(inside) / len(confidence) * gap, max(worst, gap)
    bin_of = equal_width(confidence)
    assert expected_error(confidence, right, bin_of) == pytest.approx(total)
    assert maximum_error(confidence, right, bin_of) == pytest.approx(worst)


def test_a_certain_network_is_in_the_last_bin_and_rounding_beyond_1_too() -> None:
    assert equal_width(np.array([0.0, 1.0, 1.0000001])).tolist() == [0, BINS - 1, BINS - 1]


def test_bins_of_equal_mass_are_pandas_quantile_bins_and_never_part_equal_confidences() -> None:
    confidence = np.random.default_rng(0).random(1000).round(4)
    assert np.array_equal(equal_mass(confidence), pd.qcut(confidence, BINS, labels=False))
    assert np.ptp(np.bincount(equal_mass(np.random.default_rng(1).random(1000)))) <= 1
    few = np.repeat([0.2, 0.5, 0.9], [500, 20, 480])
    assert all(len(set(equal_mass(few)[few == value])) == 1 for value in np.unique(few))
    assert set(equal_mass(np.full(30, 0.7))) == {0}


def test_brier_score_and_likelihood_are_those_of_torch(tmp_path: Path) -> None:
    df = with_scores(0.7, seed=5)
    a = answers(read(cars(tmp_path / "s", df)), "model")
    assert a is not None
    assert a.brier is not None
    assert a.nll is not None
    scores, target = torch.tensor(np.stack(df["model/scores"])), torch.tensor(df["model/target"].to_numpy())
    assert a.nll.mean() == pytest.approx(float(torch.nn.functional.nll_loss(scores.log(), target)), rel=1e-5)
    hot = torch.nn.functional.one_hot(target, scores.shape[1])
    assert a.brier.mean() == pytest.approx(float(((scores - hot) ** 2).sum(1).mean()), rel=1e-5)


def test_a_true_class_of_probability_0_costs_much_but_not_infinitely_much(tmp_path: Path) -> None:
    df = with_scores(0.0, seed=1)
    scores = np.eye(len(CARS["model"].classes), dtype=np.float32)[df["model/prediction"]]
    df["model/scores"] = list(scores)
    a = answers(read(cars(tmp_path / "s", df)), "model")
    assert a is not None
    assert a.nll is not None
    assert a.nll.max() == pytest.approx(-math.log(LEAST))
    assert set(a.nll[a.right]) == {0.0}


def test_images_without_label_class_or_confidence_take_no_part_and_are_counted(tmp_path: Path) -> None:
    df = with_scores(0.7, seed=2)
    whole = answers(read(cars(tmp_path / "whole", df)), "make")
    df.loc[:9, "make/target"] = -1
    df.loc[10:14, "make/prediction"] = -1
    df.loc[10:12, "make/confidence"] = np.nan  # of the others a file that we did not write could say anything
    df.loc[15:16, "make/confidence"] = np.nan
    a = answers(read(cars(tmp_path / "part", df)), "make")
    assert a is not None
    assert whole is not None
    assert a.left_out == 7
    for name in ("confidence", "right", "brier", "nll"):
        assert np.array_equal(getattr(a, name), getattr(whole, name)[17:])
    note = calibration.section(only(tmp_path / "part")).sheets[0].note  # type: ignore[union-attr]
    assert "7 of all runs" in note
    df["make/confidence"] = np.nan
    assert answers(read(cars(tmp_path / "none", df)), "make") is None


def test_without_whole_scores_there_are_no_scores_but_errors(tmp_path: Path) -> None:
    df = with_scores(0.7, seed=2)
    short = df.assign(**{"make/scores": [s[:3] for s in df["make/scores"]]})
    for name, frame in (("short", short), ("none", df.drop(columns="make/scores"))):
        a = answers(read(cars(tmp_path / name, frame)), "make")
        assert a is not None
        assert a.brier is None
        assert a.nll is None
        assert set(calibration.COLUMNS) - set(measures(a)) == {"brier", "nll"}


def test_the_error_by_chance_is_what_the_normal_approximation_says() -> None:
    confidence = np.random.default_rng(0).beta(4, 2, 4000)
    variance = np.bincount(equal_width(confidence), weights=confidence * (1 - confidence))
    expected = np.sqrt(2 / np.pi * variance).sum() / len(confidence)  # E|x| of normal bins
    assert chance_error(confidence) == pytest.approx(expected, rel=0.05)


def test_a_calibrated_network_is_near_the_error_by_chance_and_a_sharpened_one_too_sure() -> None:
    scores, target = softmax(3000, 10, seed=0)
    sharp = scores**3 / (scores**3).sum(1, keepdims=True)
    fair, sure = (measures(Answers(s.max(1), s.argmax(1) == target)) for s in (scores, sharp))
    assert fair["ece"] < 2 * fair["chance"]
    assert abs(fair["gap"]) < 0.03
    assert sure["accuracy"] == fair["accuracy"]
    assert sure["gap"] > 0.1
    assert sure["ece"] > 4 * sure["chance"]


def test_the_interval_holds_the_true_error_mostly_where_the_percentile_one_does_not() -> None:
    held, percentile, times, n = 0, 0, 60, 300
    for seed in range(times):
        a = simulated(n, 0.05, seed)
        bin_of = equal_width(a.confidence)
        low, high = binned_interval(a, bin_of, resamples=200)
        held += low <= 0.05 <= high
        assert low <= expected_error(a.confidence, a.right, bin_of) <= high
        drawn = np.random.default_rng(seed).integers(0, n, (200, n))
        errors = [expected_error(a.confidence[d], a.right[d], bin_of[d]) for d in drawn]
        percentile += np.quantile(errors, 0.025) <= 0.05
    assert held >= 0.75 * times
    assert percentile < 0.5 * times


def test_images_of_one_group_count_once_in_the_interval() -> None:
    a = simulated(200, 0.1, 0)
    tiles = Answers(np.repeat(a.confidence, 4), np.repeat(a.right, 4), groups=np.repeat(np.arange(200), 4))
    for key in ("ece", "gap"):
        assert interval(key, tiles) == pytest.approx(interval(key, a))
    assert np.diff(interval("ece", tiles)) > 1.5 * np.diff(interval("ece", Answers(tiles.confidence, tiles.right)))
    assert all(map(math.isnan, interval("ece", Answers(a.confidence, a.right, groups=np.zeros(200, int)))))


def test_a_cell_is_the_mean_and_t_interval_of_its_seeds(tmp_path: Path) -> None:
    frames = [with_scores(0.7, seed) for seed in range(3)]
    for seed, df in enumerate(frames):
        cars(tmp_path / "s", df, seed=seed)
    section = calibration.section(only(tmp_path / "s"))
    assert section is not None
    data = section.sheets[1].data
    assert data is not None
    row = data[(data["task"] == "model") & (data["metric"] == "ece")].iloc[0]
    values = [
        float(
            multiclass_calibration_error(
                torch.tensor(np.stack(df["model/scores"])), torch.tensor(df["model/target"].to_numpy()), 24, n_bins=15
            )
        )
        for df in frames
    ]
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert row["n"] == 3
    assert [row["mean"], row["low"], row["high"]] == pytest.approx([np.mean(values), low, high], abs=1e-4)


def test_tables_are_of_class_tasks_and_of_cells_that_say_how_sure_they_are(tmp_path: Path) -> None:
    df = with_scores(0.8, seed=0)
    cars(tmp_path / "s", df)
    cars(tmp_path / "s", with_scores(0.8, seed=7), "cascade")
    cars(tmp_path / "s", df.drop(columns=["make/confidence", "make/scores"]), "single")
    section = calibration.section(only(tmp_path / "s"))
    assert section is not None
    assert [sheet.name for sheet in section.sheets] == ["calibration_make", "calibration_model"]
    assert [drawing.name for drawing in section.drawings] == ["reliability_make", "reliability_model"]
    make, model = section.sheets
    assert {row[0][0] for row in make.rows} == {"parallel", "cascade"}
    assert {row[0][0] for row in model.rows} == {"parallel", "cascade", "single"}
    assert {len(row) for sheet in section.sheets for row in sheet.rows} == {len(make.heads)}
    column = make.heads.index("Brier score")
    least = min(make.rows, key=lambda row: float(row[column][0].split()[0]))
    assert [row[column][1] for row in make.rows] == [row is least for row in make.rows]


def test_without_a_confidence_there_is_no_section(tmp_path: Path) -> None:
    df = predictions(0.8)
    cars(tmp_path / "s", df[[name for name in df if not str(name).endswith(("confidence", "scores"))]])
    assert calibration.section(only(tmp_path / "s")) is None
    (read(tmp_path / "s").directory / "predictions.parquet").unlink()
    assert calibration.section(only(tmp_path / "s")) is None


def test_the_bins_of_a_diagram_add_up_to_its_error() -> None:
    a = simulated(500, 0.1, 0)
    table = calibration.by_bin([a])
    gaps = (table["accuracy"] - table["confidence"]).abs()
    assert (gaps * table["images"]).sum() / 500 == pytest.approx(measures(a)["ece"])
    assert table["images"].sum() == 500
    for b, row in table.iterrows():
        inside = a.right[equal_width(a.confidence) == b]
        ends = stats.binomtest(int(inside.sum()), len(inside)).proportion_ci(method="wilson")
        assert [row["low"], row["high"]] == pytest.approx([ends.low, ends.high], abs=1e-9)


def test_the_line_of_several_seeds_is_their_range() -> None:
    seeds = [simulated(400, shift, i) for i, shift in enumerate((0.0, 0.1, 0.2))]
    table = calibration.by_bin(seeds)
    b = int(table["images"].idxmax())
    each = [a.right[equal_width(a.confidence) == b].mean() for a in seeds]
    assert [table["low"][b], table["high"][b]] == pytest.approx([min(each), max(each)])
    assert table["images"].sum() == 1200


def test_the_diagram_shows_each_bin_and_few_images_hollow() -> None:
    a = simulated(120, 0.0, 1)
    table = calibration.by_bin([a])
    assert {True, False} == set(table["images"] < FEW)
    figure = reliability_figure([Panel(f"cell {i}", table, 0.05) for i in range(4)], BINS)
    assert len(figure.axes) == 8
    assert {ax.get_ylabel() for ax in figure.axes} >= {"accuracy, %", "images, %"}
    dots = next(c for c in figure.axes[0].collections if isinstance(c, PathCollection))
    assert np.allclose(dots.get_offsets(), 100 * table[["confidence", "accuracy"]])
    hollow = np.asarray(dots.get_facecolor())[:, 0] > 0.5
    assert np.array_equal(hollow, table["images"] < FEW)
    bars = figure.axes[3].patches
    assert sum(bar.get_height() for bar in bars) == pytest.approx(100)  # type: ignore[attr-defined]


def test_only_the_nine_best_cells_are_drawn_and_the_caption_says_so(tmp_path: Path) -> None:
    for i in range(11):
        df = with_scores(0.5 + 0.04 * i, seed=i, n=100).drop(columns="make/confidence")
        run = cars(tmp_path / "s", df)
        made = config(head__dropout=i / 100)
        (run / "config.yaml").write_text(json.dumps(made))
        metrics = json.loads((run / "metrics.json").read_text())
        metrics["test"]["model/accuracy"] = 0.5 + 0.04 * i
        (run / "metrics.json").write_text(json.dumps(metrics))
    section = calibration.section(only(tmp_path / "s"))
    assert section is not None
    assert len(section.sheets[0].rows) == 11
    titles = {ax.get_title() for ax in section.drawings[0].figure.axes} - {""}
    assert titles == {f"dropout {i / 100:g}" for i in range(2, 11)}
    assert "best 9 of 11 cells by test model/accuracy" in section.drawings[0].caption
