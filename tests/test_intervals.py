"""Intervals: against SciPy, statsmodels and plain loops."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mtlcar.report.intervals import (
    FEW,
    effective_groups,
    group_totals,
    grouped_wilson,
    jackknife_error,
    over_images,
    over_seeds,
    wilson,
)

GROUPS = np.repeat(np.arange(9), [1, 3, 5, 8, 8, 13, 21, 34, 60])


@pytest.mark.parametrize("n", [2, 3, 5, 30])
def test_over_seeds_is_the_t_interval(n: int) -> None:
    x = np.random.default_rng(n).normal(0.8, 0.02, n)
    theirs = stats.ttest_1samp(x, 0).confidence_interval(0.95)
    found = over_seeds(x.tolist())
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high))


@pytest.mark.parametrize(("right", "n"), [(0, 7), (1, 30), (500, 650), (649, 650), (650, 650), (6000, 8041)])
def test_wilson_agrees_with_statsmodels(right: int, n: int) -> None:
    confint = pytest.importorskip("statsmodels.stats.proportion").proportion_confint
    assert wilson(right / n, n) == pytest.approx(confint(right, n, method="wilson"), abs=1e-12)
    assert over_images(np.arange(n) < right) == wilson(right / n, n)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 500), st.floats(0, 1))
def test_wilson_holds_the_share_and_narrows_with_n(n: int, share: float) -> None:
    low, high = wilson(share, n)
    assert 0 <= low <= share <= high <= 1
    wider = wilson(share, n / 2)
    assert high - low <= wider[1] - wider[0] + 1e-12


def plain_bootstrap_t(x: np.ndarray, groups: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    """The same resamples, one at a time, each with its mean and error by the formulas for a ratio."""
    names, rng, t = np.unique(groups), np.random.default_rng(seed), []
    members = [x[groups == name] for name in names]
    mean, count = x.mean(), len(names)
    for drawn in rng.integers(0, count, (resamples, count), dtype=np.int32):
        chosen = [members[i] for i in drawn]
        m = np.concatenate(chosen).mean()
        squares = sum((group.sum() - m * len(group)) ** 2 for group in chosen)
        t.append((m - mean) / math.sqrt(squares * count / (count - 1)) * sum(map(len, chosen)))
    left_out = [np.concatenate(members[:i] + members[i + 1 :]).mean() for i in range(count)]
    error = math.sqrt((count - 1) / count * sum((m - mean) ** 2 for m in left_out))
    below, above = np.quantile(t, [0.025, 0.975], method="weibull")
    sizes = [len(group) for group in members]
    effective = sum(sizes) ** 2 / sum(size**2 for size in sizes)
    error *= stats.t.ppf(0.975, effective - 1) / stats.t.ppf(0.975, count - 1)
    return mean - above * error, mean - below * error


@pytest.mark.parametrize("grouped", [False, True])
def test_the_studentized_bootstrap_is_the_plain_one(grouped: bool) -> None:
    rng = np.random.default_rng(3)
    x = rng.exponential(2.0, len(GROUPS)) * (rng.gamma(2, 0.5, 9)[GROUPS] if grouped else 1.0)
    plain = plain_bootstrap_t(x, GROUPS if grouped else np.arange(len(x)), 200, 7)
    found = over_images(x, GROUPS if grouped else None, resamples=200, seed=7)
    assert found == pytest.approx((max(x.min(), plain[0]), min(x.max(), plain[1])))


def test_for_many_values_all_bootstraps_agree() -> None:
    x = np.random.default_rng(0).normal(10, 3, 2000)
    theirs = stats.bootstrap((x,), np.mean, n_resamples=4000, method="BCa", random_state=0).confidence_interval
    width = theirs.high - theirs.low
    assert over_images(x, resamples=4000) == pytest.approx((theirs.low, theirs.high), abs=0.05 * width)


def test_chunks_of_resamples_change_nothing() -> None:
    x = np.random.default_rng(0).exponential(2.0, 30_000)  # more than 2,000,000 counts in 100 resamples
    low, high = over_images(x, resamples=100)
    half = 1.96 * x.std() / math.sqrt(len(x))
    assert (low, high) == pytest.approx((x.mean() - half, x.mean() + half), abs=0.35 * half)


def test_the_jackknife_leaves_out_one_group_at_a_time() -> None:
    x = np.random.default_rng(1).exponential(2.0, len(GROUPS))
    left_out = np.array([x[g != GROUPS].mean() for g in range(9)])
    error = jackknife_error(*group_totals(x, GROUPS))
    assert error == pytest.approx(math.sqrt(8 / 9 * np.sum((left_out - x.mean()) ** 2)))
    assert jackknife_error(*group_totals(x, None)) == pytest.approx(stats.sem(x))
    assert jackknife_error(np.array([3.0]), np.array([2.0])) == math.inf


def test_for_many_groups_the_error_is_the_cluster_robust_one() -> None:
    api = pytest.importorskip("statsmodels.api")
    rng = np.random.default_rng(2)
    sizes = rng.integers(5, 15, 300)
    groups = np.repeat(np.arange(300), sizes)
    x = rng.normal(0, 1, 300)[groups] + rng.normal(0, 1, len(groups))
    fit = api.OLS(x, np.ones_like(x)).fit(cov_type="cluster", cov_kwds={"groups": groups})
    assert jackknife_error(*group_totals(x, groups)) == pytest.approx(fit.bse[0], rel=0.01)


def test_groups_of_one_image_are_no_groups() -> None:
    x = np.random.default_rng(4).exponential(1.0, 50)
    shuffled = np.random.default_rng(5).permutation(50)
    assert over_images(x, np.arange(50)) == over_images(x)
    assert over_images(x, shuffled) == pytest.approx(over_images(x), abs=0.1)
    assert over_images(x > 1, shuffled) == over_images(x > 1)


def test_effective_groups_counts_equal_ones_in_full() -> None:
    assert effective_groups(np.full(7, 4.0)) == pytest.approx(7)
    assert effective_groups(np.array([1.0, 1, 1, 997])) == pytest.approx(1, abs=0.01)


def test_a_share_of_groups_counts_independent_images_as_one_each() -> None:
    rng = np.random.default_rng(6)
    groups = np.repeat(np.arange(200), 10)
    independent = rng.random(2000) < 0.7
    same = (rng.random(200) < 0.7)[groups]  # all images of a group right, or all wrong
    assert over_images(independent, groups) == pytest.approx(wilson(independent.mean(), 2000), abs=0.01)
    assert over_images(same, groups) == pytest.approx(wilson(same.mean(), 200), abs=0.005)


def test_few_groups_with_a_wrong_image_count_as_groups_at_most() -> None:
    sizes = np.full(30, 20.0)
    for wrong in range(FEW):
        right = sizes - np.where(np.arange(30) < wrong, 1, 0)  # spread evenly, as if images were independent
        low, high = grouped_wilson(right, sizes)
        assert high - low >= np.subtract(*wilson(right.sum() / 600, 30)[::-1]) - 1e-9, wrong
    many = grouped_wilson(sizes - (np.arange(30) < FEW), sizes)
    assert many[1] - many[0] < 0.05


@pytest.mark.parametrize("share", [False, True])
def test_odd_inputs(share: bool) -> None:
    two = np.array([1.0, 0.0, 1.0, 1.0]) if not share else np.array([True, False, True, True])
    low, high = over_images(two, np.array([0, 0, 0, 1]))
    assert 0 <= low <= 0.75 <= high <= 1
    assert high - low > 0.5, "two groups say next to nothing"
    same = over_images(np.full(6, 2.5), np.array([0, 0, 1, 1, 2, 2]))
    assert same == (2.5, 2.5)
    assert all(map(math.isnan, over_images(np.array([1.0, math.nan, 2.0]))))
    assert all(map(math.isnan, over_images(np.array([1.0, math.inf, 2.0]))))
    assert over_images(np.array([3.0])) == (3.0, 3.0)
    assert over_images(np.array([True, False]), np.zeros(2)) == wilson(0.5, 1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(-1e6, 1e6), st.integers(0, 4)), min_size=2, max_size=40))
def test_the_interval_is_within_the_values_and_about_the_mean(rows: list[tuple[float, int]]) -> None:
    x, groups = np.array([v for v, _ in rows]), np.array([g for _, g in rows])
    low, high = over_images(x, groups, resamples=50)
    if len(np.unique(groups)) > 1:
        slack = 1e-9 * (1 + np.abs(x).max())
        assert x.min() - slack <= low <= high <= x.max() + slack
        assert (low, high) == over_images(x, groups, resamples=50)
