"""Paired tests: against SciPy, statsmodels and plain loops; and the tables made of them."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mtlcar.report.collect import collect
from mtlcar.report.comparison import Comparison, compare
from mtlcar.report.corrections import holm
from mtlcar.report.paired import Scores, cell_scores, compare_cells, of_seeds, of_shares, of_units, scores
from mtlcar.report.pairwise import MOST_CELLS, pairs_of, section
from mtlcar.report.ranking import task_metrics
from mtlcar.report.section import Sheet
from tests.run_dirs import config, predictions, steel, write_run, write_steel


def one(values: np.ndarray, groups: np.ndarray | None = None, first: int = 0) -> Scores:
    """Scores of images numbered from `first`."""
    numbers = range(first, first + len(values))
    images = pd.MultiIndex.from_arrays([numbers, [f"{i}.jpg" for i in numbers]], names=["index", "path"])
    return Scores(pd.Series(values, index=images), None if groups is None else pd.Series(groups, index=images))


def only(folder: Path) -> Comparison:
    (comparison,) = compare(collect([folder]).runs)
    return comparison


# The tests themselves


@pytest.mark.parametrize(("a", "b"), [(0, 0), (1, 0), (3, 9), (40, 41), (12, 3), (200, 120)])
def test_one_seed_of_shares_is_exact_mcnemar(a: int, b: int) -> None:
    mcnemar = pytest.importorskip("statsmodels.stats.contingency_tables").mcnemar
    found = of_shares(a, b, 650)
    assert found.p == pytest.approx(min(1.0, mcnemar([[300, a], [b, 350 - a - b]], exact=True).pvalue))
    assert found.mean == pytest.approx((a - b) / 650)
    assert found.low < found.mean < found.high


def test_the_interval_of_a_share_difference_is_near_the_t_interval_and_never_empty() -> None:
    d = np.repeat([1.0, -1.0, 0.0], [60, 30, 560])
    t = stats.ttest_1samp(d, 0).confidence_interval(0.95)
    found = of_shares(60, 30, 650)
    assert (found.low, found.high) == pytest.approx((t.low, t.high), abs=0.002)
    assert of_shares(0, 0, 650).high - of_shares(0, 0, 650).low > 0
    assert of_shares(5, 0, 5).high == 1


@pytest.mark.parametrize("n", [2, 3, 5])
def test_over_seeds_is_the_paired_t_test(n: int) -> None:
    rng = np.random.default_rng(n)
    a, b = rng.normal(0.8, 0.02, n), rng.normal(0.78, 0.02, n)
    theirs = stats.ttest_rel(a, b)
    found = of_seeds((a - b).tolist())
    assert found is not None
    assert found.p == pytest.approx(theirs.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval(0.95)))


def test_no_spread_between_seeds_is_no_evidence() -> None:
    assert of_seeds([0.1]) is None
    assert of_seeds([0.1, 0.1, 0.1]) is None, "not p = 0"
    assert of_seeds([0.0, 0.0]) is None


def test_over_images_is_the_paired_t_test_and_near_the_permutation_test() -> None:
    rng = np.random.default_rng(0)
    a = rng.exponential(2.0, 300)
    b = a + rng.normal(0.12, 1.0, 300)
    theirs = stats.ttest_rel(a, b)
    found = of_units(a - b)
    assert found.p == pytest.approx(theirs.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval(0.95)))
    flips = stats.permutation_test((a, b), lambda x, y: np.mean(x - y), permutation_type="samples", rng=1)
    assert found.p == pytest.approx(flips.pvalue, abs=0.02)


def test_over_groups_is_near_flipping_the_signs_of_whole_groups() -> None:
    rng = np.random.default_rng(4)
    groups = np.repeat(np.arange(14), rng.integers(4, 30, 14))
    for shift in (0.0, 0.3, 0.8):
        d = rng.normal(shift, 1.0, 14)[groups] + rng.normal(0, 0.5, len(groups))
        totals = np.bincount(groups, weights=d)
        signs = np.array(list(itertools.product((-1, 1), repeat=14)))
        exact = np.mean(np.abs(signs @ totals) >= abs(totals.sum()) - 1e-9)
        assert of_units(d, groups).p == pytest.approx(exact, abs=0.04), shift
        assert of_units(d).p < of_units(d, groups).p or shift == 0, "images of a group are not independent"


def test_equal_groups_are_a_t_test_of_their_means() -> None:
    rng = np.random.default_rng(5)
    d = rng.normal(0.2, 1.0, (12, 6))
    found = of_units(d.ravel(), np.repeat(np.arange(12), 6))
    theirs = stats.ttest_1samp(d.mean(axis=1), 0)
    assert found.p == pytest.approx(theirs.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval(0.95)))


@pytest.mark.parametrize("seed", range(5))
def test_holm_agrees_with_statsmodels(seed: int) -> None:
    multipletests = pytest.importorskip("statsmodels.stats.multitest").multipletests
    p = np.random.default_rng(seed).random(1 + 4 * seed) ** 3
    p[::3] = p[0]  # ties
    assert holm(p.tolist()) == pytest.approx(multipletests(p, method="holm")[1])


@given(st.lists(st.floats(0, 1), max_size=20))
def test_holm_keeps_the_order_and_only_raises(p: list[float]) -> None:
    adjusted = holm(p)
    assert (adjusted >= np.array(p)).all()
    assert (adjusted <= 1).all()
    order = np.argsort(p, kind="stable")
    assert (np.diff(adjusted[order]) >= 0).all()


def test_holm_does_not_count_tests_that_could_not_be_made() -> None:
    assert holm([0.01, math.nan, 0.04]) == pytest.approx([0.02, math.nan, 0.04], nan_ok=True)


def test_holm_over_all_pairs_is_needed_where_the_best_cell_was_picked_from_the_results() -> None:
    """Six equal methods, three seeds: some difference from the best is called real in at most 5 of 100 tables."""
    rng, pairs = np.random.default_rng(0), list(itertools.combinations(range(6), 2))
    left, right = np.array(pairs).T
    calls = {"all pairs": 0, "the best alone": 0}
    for _ in range(1000):
        values = rng.normal(0, 1, (6, 8))
        best = int(values.mean(axis=1).argmax())
        p = dict(zip(pairs, stats.ttest_rel(values[left], values[right], axis=1).pvalue, strict=True))
        against = [pair for pair in pairs if best in pair]
        every = dict(zip(pairs, holm(list(p.values())), strict=True))
        calls["all pairs"] += any(every[pair] < 0.05 for pair in against)
        calls["the best alone"] += bool((holm([p[pair] for pair in against]) < 0.05).any())
    assert calls["all pairs"] <= 55
    assert calls["the best alone"] > 70


# Two cells


def test_cells_are_matched_by_seed_and_image() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.random((3, 40)), rng.random((3, 40))
    a = {"0": one(x[0]), "1": one(x[1]), "2": one(x[2])}
    b = {"2": one(y[2, 10:], first=10), "0": one(y[0]), "7": one(y[1])}
    found = compare_cells(a, b)
    assert found is not None
    assert found.seeds == ("0", "2")
    expected = [(x[0] - y[0]).mean(), (x[2, 10:] - y[2, 10:]).mean()]
    assert found.methods is not None
    assert found.methods.mean == pytest.approx(np.mean(expected))
    assert found.methods.p == pytest.approx(stats.ttest_1samp(expected, 0).pvalue)
    per_image = [(x[0, i] - y[0, i] + (x[2, i] - y[2, i] if i >= 10 else 0)) / (2 if i >= 10 else 1) for i in range(40)]
    assert found.networks.mean == pytest.approx(np.mean(per_image))
    assert found.networks.p == pytest.approx(stats.ttest_1samp(per_image, 0).pvalue)
    assert found.main is found.methods
    assert found.images == 40


def test_images_of_one_index_and_another_path_are_other_images() -> None:
    a, b = one(np.ones(4)), one(np.zeros(4))
    b.values.index = pd.MultiIndex.from_tuples([(i, f"other{i}.jpg") for i in range(4)], names=["index", "path"])
    assert compare_cells({"0": a}, {"0": b}) is None
    assert compare_cells({"0": a}, {"1": a}) is None


def test_shuffled_images_are_the_same_images() -> None:
    rng = np.random.default_rng(2)
    x, y = one(rng.random(30) < 0.6), one(rng.random(30) < 0.8)
    shuffled = Scores(y.values.sample(frac=1, random_state=0), None)
    assert compare_cells({"0": x}, {"0": shuffled}) == compare_cells({"0": x}, {"0": y})


def test_discordant_images_are_counted_and_swap_with_the_cells() -> None:
    rng = np.random.default_rng(3)
    right = rng.random((2, 2, 200)) < 0.7
    a, b = ({str(s): one(right[i, s]) for s in (0, 1)} for i in (0, 1))
    forth, back = compare_cells(a, b), compare_cells(b, a)
    assert forth is not None
    assert back is not None
    assert forth.a_alone == np.mean([(right[0, s] & ~right[1, s]).sum() for s in (0, 1)])
    assert (forth.a_alone, forth.b_alone) == (back.b_alone, back.a_alone)
    assert forth.main.p == pytest.approx(back.main.p)
    assert (forth.main.low, forth.main.high) == pytest.approx((-back.main.high, -back.main.low))
    errors = compare_cells({"0": one(rng.random(9))}, {"0": one(rng.random(9))})
    assert errors is not None
    assert math.isnan(errors.a_alone)


def test_one_seed_with_groups_is_no_mcnemar() -> None:
    rng = np.random.default_rng(6)
    groups = np.repeat([f"g{i}" for i in range(10)], 20)
    right = (rng.random((2, 10)) < 0.6).repeat(20, axis=1)  # a network gets a whole group right or wrong
    a, b = ({"0": one(right[i], groups)} for i in (0, 1))
    found, alone = compare_cells(a, b), compare_cells({"0": one(right[0])}, {"0": one(right[1])})
    assert found is not None
    assert alone is not None
    assert found.groups == 10
    theirs = stats.ttest_rel(right[0, ::20].astype(float), right[1, ::20].astype(float))
    assert found.networks.p == pytest.approx(theirs.pvalue)
    assert alone.groups is None
    assert alone.networks.p < 0.05 < found.networks.p


def test_several_seeds_that_differ_by_the_same_are_tested_over_images() -> None:
    right = np.arange(20) < 12
    a, b = {s: one(right) for s in "01"}, {s: one(np.roll(right, 3) & right) for s in "01"}
    found = compare_cells(a, b)
    assert found is not None
    assert found.methods is None
    assert found.main is found.networks
    assert 0 < found.main.p < 1


def test_a_prediction_that_is_no_number_makes_no_comparison() -> None:
    values = np.array([1.0, math.nan, 2.0])
    assert compare_cells({"0": one(values)}, {"0": one(np.ones(3))}) is None


# From run directories


@pytest.fixture
def cars(tmp_path: Path) -> Path:
    for architecture, skill in (("parallel", 0.8), ("cascade", 0.6), ("single", 0.79)):
        for seed in (0, 1, 2):
            write_run(tmp_path / "s", config(architecture, seed), skill)
    return tmp_path


def right_of(skill: float, seed: int, task: str = "model") -> np.ndarray:
    df = predictions(skill, seed=1000 * seed + int(skill * 100))
    return (df[f"{task}/target"] == df[f"{task}/prediction"]).to_numpy(float)


def rows_of(sheet: Sheet) -> dict[str, dict[str, str]]:
    return {row[0][0]: dict(zip(sheet.heads, (t for t, _ in row), strict=True)) for row in sheet.rows}


def test_the_table_is_of_each_cell_against_the_best(cars: Path) -> None:
    found = section(only(cars))
    assert found is not None
    assert [sheet.name for sheet in found.sheets] == ["pairs_model_accuracy", "pairs_make_accuracy", "pairs_weight_mae"]
    sheet = found.sheets[0]
    means = {
        name: np.mean([right_of(s, i).mean() for i in range(3)]) for name, s in (("parallel", 0.8), ("single", 0.79))
    }
    best = max(means, key=lambda name: means[name])
    assert sheet.title.startswith(f"model/accuracy: difference from {best} ({100 * means[best]:.1f} %)")
    table = rows_of(sheet)
    assert set(table) == {"parallel", "cascade", "single"} - {best}
    skill = {"parallel": 0.8, "single": 0.79}[best]
    differences = [right_of(0.6, i).mean() - right_of(skill, i).mean() for i in range(3)]
    t = stats.ttest_1samp(differences, 0)
    low, high = t.confidence_interval(0.95)
    row = table["cascade"]
    assert (
        row["difference, points [95 %]"] == f"{100 * np.mean(differences):+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
    )
    assert float(row["p"]) == pytest.approx(t.pvalue, rel=0.5 if t.pvalue < 1e-3 else 0.05)
    assert float(row["p, Holm"]) >= float(row["p"])
    alone = [np.sum(right_of(0.6, i) > right_of(skill, i)) for i in range(3)]
    assert float(row["only this right, images"]) == pytest.approx(np.mean(alone), abs=0.05)
    assert (row["n seeds"], row["images"]) == ("3", "300")


def test_the_csv_has_all_pairs_and_the_correction_is_over_them(cars: Path) -> None:
    comparison = only(cars)
    found = section(comparison)
    assert found is not None
    data = found.sheets[0].data
    assert data is not None
    assert len(data) == 3
    assert data["p/holm"].tolist() == pytest.approx(holm(data["p"].tolist()))
    assert data["images/p/holm"].tolist() == pytest.approx(holm(data["images/p"].tolist()))
    for row in data.to_dict("records"):
        a, b = (next(cell for cell in comparison.cells if cell.label == row[side]) for side in "ab")
        numbers = [cell.numbers["model/accuracy"].mean for cell in (a, b)]
        assert row["difference"] == pytest.approx(numbers[0] - numbers[1])
        assert row["over"] == "seeds"


def test_an_implied_level_is_not_compared_as_a_prediction(cars: Path) -> None:
    found = section(only(cars))
    assert found is not None
    make = found.sheets[1]
    assert len(make.rows) == 1
    assert "Not compared, because implied by a finer level or no number: single." in make.note


def test_the_best_error_is_the_least_and_has_its_unit(cars: Path) -> None:
    comparison = only(cars)
    found = section(comparison)
    assert found is not None
    errors = found.sheets[2]
    means = {c.label: c.numbers["weight/mae"].mean for c in comparison.cells if c.label != "single"}
    assert f"difference from {min(means, key=lambda name: means[name])}" in errors.title
    assert errors.title.endswith(" kg)")
    assert "difference, kg [95 %]" in errors.heads
    assert not any("right" in head for head in errors.heads)
    assert all(row[1][0].startswith("+") for row in errors.rows)


def test_one_seed_says_so_and_has_one_p(tmp_path: Path) -> None:
    write_run(tmp_path / "s", config("parallel"), 0.8)
    write_run(tmp_path / "s", config("cascade"), 0.6)
    found = section(only(tmp_path))
    assert found is not None
    assert any("They know nothing of the spread between seeds" in p for p in found.paragraphs)
    sheet = found.sheets[0]
    assert "p of images" not in sheet.heads
    a, b = right_of(0.8, 0), right_of(0.6, 0)
    n = int(np.sum(a != b))
    p = stats.binomtest(int(np.sum(a > b)), n).pvalue
    assert float(rows_of(sheet)["cascade"]["p"]) == pytest.approx(p, rel=0.5)
    assert "McNemar's exact test" in sheet.note


def test_specimens_are_the_units(tmp_path: Path) -> None:
    for method, error in (("FastCAR", 10.0), ("two heads", 60.0)):
        write_steel(tmp_path / "s", steel(error), method)
    found = section(only(tmp_path))
    assert found is not None
    errors = next(sheet for sheet in found.sheets if sheet.name == "pairs_property_mae")
    assert "whole groups (6)" in errors.note
    a, b = (steel(e) for e in (60.0, 10.0))
    d = (a["property/prediction"] - a["property/target"]).abs() - (
        b["property/prediction"] - b["property/target"]
    ).abs()
    theirs = stats.ttest_1samp(d.groupby(a["group"]).mean(), 0)  # all specimens have four tiles
    assert float(rows_of(errors)["two heads"]["p"]) == pytest.approx(theirs.pvalue, abs=0.0006)


def test_nothing_to_compare_is_no_section(tmp_path: Path) -> None:
    write_run(tmp_path / "one", config())
    assert section(only(tmp_path / "one")) is None
    for architecture in ("parallel", "cascade"):
        (write_run(tmp_path / "bare", config(architecture)) / "predictions.parquet").unlink()
    assert section(only(tmp_path / "bare")) is None
    for i, architecture in enumerate(("parallel", "cascade")):
        write_run(tmp_path / "seeds", config(architecture, seed=i))
    assert section(only(tmp_path / "seeds")) is None, "no common seed"


def test_too_many_cells_are_no_section(tmp_path: Path) -> None:
    for i in range(MOST_CELLS + 1):
        write_run(tmp_path / "s", config(head__dropout=i / 100), 0.5)
    assert section(only(tmp_path)) is None


def test_a_run_whose_images_cannot_be_told_apart_is_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "s", config())
    df = pd.read_parquet(run / "predictions.parquet")
    df["index"], df["path"] = 0, "same.jpg"
    df.to_parquet(run / "predictions.parquet")
    assert scores(only(tmp_path).runs[0], "model/accuracy") is None


def test_a_cell_whose_number_is_nan_is_not_the_best(tmp_path: Path) -> None:
    for method, error in (("FastCAR", 10.0), ("two heads", 60.0), ("broken", 5.0)):
        df = steel(error)
        if method == "broken":
            df.loc[3, "property/prediction"] = math.nan
        run = write_steel(tmp_path / "s", df, method)
        if method == "broken":
            stored = json.loads((run / "metrics.json").read_text())
            stored["test"]["property/mae"] = math.nan
            (run / "metrics.json").write_text(json.dumps(stored))
    comparison = only(tmp_path)
    found = section(comparison)
    assert found is not None
    errors = next(sheet for sheet in found.sheets if sheet.name == "pairs_property_mae")
    assert "difference from FastCAR" in errors.title
    assert set(rows_of(errors)) == {"two heads"}
    assert "broken" in errors.note


def test_the_finest_level_comes_first_and_cells_without_seeds_in_common_show_a_dash(tmp_path: Path) -> None:
    for architecture, seeds in (("parallel", (0, 1)), ("cascade", (0,)), ("single", (5,))):
        for seed in seeds:
            write_run(tmp_path / "s", config(architecture, seed), 0.8 if architecture == "parallel" else 0.6)
    comparison = only(tmp_path)
    assert task_metrics(comparison) == ["model/accuracy", "make/accuracy", "weight/mae"]
    pairs = pairs_of(comparison.cells, "model/accuracy")
    assert len(pairs) == 1
    found = section(comparison)
    assert found is not None
    table = rows_of(found.sheets[0])
    assert table["single"]["p"] == "-"
    assert table["cascade"]["n seeds"] == "1"
    assert "2 pairs have no common seed and image" in found.sheets[0].note


def test_scores_are_the_metric(cars: Path) -> None:
    cell = only(cars).cells[0]
    found = cell_scores(cell, "weight/mae")
    assert [found[s].values.mean() for s in found] == pytest.approx(cell.numbers["weight/mae"].values)
