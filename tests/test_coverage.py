"""How often 95 % intervals hold the truth, on simulated test sets: between 93 and 97 times in 100 (about 2 minutes)."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from mtlcar.report.intervals import over_images, over_seeds, wilson
from mtlcar.report.paired import of_seeds, of_shares, of_units

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SPECIMENS = np.array([1, 3, 4, 12, 14, 15, 15, 16, 18, 18, 20, 20, 20, 24, 25, 30, 36, 38, 40, 46, 54, 71, 108])
"""Sizes as unequal as those of Advanced Steel's test specimens: 23, of 1 to 108 tiles (648 in all)."""


def covered(trials: int, once: Callable[[np.random.Generator], bool], seed: int = 0) -> float:
    rng = np.random.default_rng(seed)
    return float(np.mean([once(rng) for _ in range(trials)]))


@pytest.mark.parametrize("n", [3, 5])
def test_t_over_seeds(n: int) -> None:
    def once(rng: np.random.Generator) -> bool:
        found = over_seeds(rng.normal(0.8, 0.01, n).tolist())
        return found.low <= 0.8 <= found.high

    assert 0.93 < covered(5000, once) < 0.97


@pytest.mark.parametrize("middle", [0.5, 0.9, 0.99])
def test_wilson_for_650_images(middle: float) -> None:
    """Exact, from the binomial distribution; averaged over shares around `middle`, because the coverage of any interval
    of a share goes up and down with it (Brown, Cai and DasGupta 2001)."""
    right = np.arange(651)
    ends = np.array([wilson(k / 650, 650) for k in right])
    around = np.linspace(middle - 0.009, middle + 0.009, 181)
    holds = [(stats.binom.pmf(right, 650, p) * ((ends[:, 0] <= p) & (p <= ends[:, 1]))).sum() for p in around]
    assert 0.93 < np.mean(holds) < 0.97


@pytest.mark.parametrize("power", [1, 2])
def test_the_mean_of_650_skewed_errors(power: int) -> None:
    def once(rng: np.random.Generator) -> bool:
        low, high = over_images(rng.exponential(1.0, 650) ** power, resamples=400, seed=int(rng.integers(1 << 30)))
        return low <= power <= high  # E[X] = 1, E[X^2] = 2

    assert 0.93 < covered(1000, once) < 0.97


def errors_of(sizes: np.ndarray, spread: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Errors with mean 1: skewed among specimens (coefficient of variation sqrt(spread)) and within each."""
    groups = np.repeat(np.arange(len(sizes)), sizes)
    return rng.gamma(1 / spread, spread, len(sizes))[groups] * rng.exponential(1.0, len(groups)), groups


@pytest.mark.parametrize("spread", [0.1, 0.25, 0.5])
@pytest.mark.parametrize("count", [23, 57])
def test_the_mean_error_of_specimens(count: int, spread: float) -> None:
    sizes, few = np.resize(SPECIMENS, count), []

    def once(rng: np.random.Generator) -> bool:
        x, groups = errors_of(sizes, spread, rng)
        low, high = over_images(x, groups, seed=int(rng.integers(1 << 30)))
        totals = np.bincount(groups, weights=x)
        drawn = rng.integers(0, count, (300, count))
        few.append(np.quantile(totals[drawn].sum(1) / sizes[drawn].sum(1), [0.025, 0.975]))
        return low <= 1 <= high

    assert 0.93 < covered(2000, once) < 0.97
    percentile = np.mean([low <= 1 <= high for low, high in few])
    assert percentile < 0.93, f"the percentile bootstrap, {percentile}, would do: then it is the simpler one"


@pytest.mark.parametrize("share", [0.5, 0.8, 0.9])
@pytest.mark.parametrize("count", [23, 57])
def test_a_share_of_images_of_specimens(count: int, share: float) -> None:
    """Correlation .2 between images of a specimen. Higher shares and correlations: 91 to 98 times in 100."""
    sizes = np.resize(SPECIMENS, count)
    groups = np.repeat(np.arange(count), sizes)

    def once(rng: np.random.Generator) -> bool:
        right = rng.random(len(groups)) < rng.beta(4 * share, 4 * (1 - share), count)[groups]
        low, high = over_images(right, groups)
        return low <= share <= high

    assert 0.93 < covered(3000, once) < 0.97


@pytest.mark.parametrize("count", [23, 57])
def test_the_difference_of_two_networks_errors_on_specimens(count: int) -> None:
    sizes = np.resize(SPECIMENS, count)
    groups = np.repeat(np.arange(count), sizes)

    def once(rng: np.random.Generator) -> bool:
        hard = rng.gamma(2.0, 0.5, count)  # both find the same specimens hard
        a, b = (hard[groups] * rng.gamma(4.0, 0.25, count)[groups] * rng.exponential(1.0, len(groups)) for _ in "ab")
        found = of_units(a - b, groups)
        assert (found.p < 0.05) == (not found.low <= 0 <= found.high)
        return found.low <= 0 <= found.high

    assert 0.93 < covered(4000, once) < 0.97


@pytest.mark.parametrize(("a_alone", "b_alone"), [(0.1, 0.1), (0.12, 0.05), (0.02, 0.01)])
def test_the_difference_of_two_shares(a_alone: float, b_alone: float) -> None:
    def once(rng: np.random.Generator) -> bool:
        a, b, _ = rng.multinomial(650, [a_alone, b_alone, 1 - a_alone - b_alone])
        found = of_shares(int(a), int(b), 650)
        return found.low <= a_alone - b_alone <= found.high

    assert 0.93 < covered(2000, once) < 0.97


def test_exact_mcnemar_is_never_too_bold() -> None:
    def once(rng: np.random.Generator) -> bool:
        a, b, _ = rng.multinomial(650, [0.05, 0.05, 0.9])
        return of_shares(int(a), int(b), 650).p < 0.05

    assert 0.02 < covered(2000, once) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)


def test_the_paired_t_over_three_seeds_calls_5_in_100_equal_methods_different() -> None:
    def once(rng: np.random.Generator) -> bool:
        found = of_seeds(rng.normal(0, 0.01, 3).tolist())
        return found is not None and found.p < 0.05

    assert covered(5000, once) == pytest.approx(0.05, abs=0.01)
