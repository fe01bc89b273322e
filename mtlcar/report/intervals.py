"""95 % intervals of a mean: over seeds, or over test images where there is one seed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval (`low` and `high` NaN where there is none); `n` seeds; `values` one a seed."""

    mean: float
    low: float
    high: float
    n: int
    values: tuple[float, ...] = ()

    @property
    def has_interval(self) -> bool:
        return not math.isnan(self.low)


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean and Student's t interval, mean ± t(0.975, n - 1) s / sqrt(n); no interval for one value.

    The n runs are taken as independent draws; they share the test set, so the interval says how far training differs
    from seed to seed, not how far another test set would."""
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Estimate(mean, math.nan, math.nan, n, tuple(values))
    half = float(stats.t.ppf(0.5 + LEVEL / 2, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    return Estimate(mean, mean - half, mean + half, n, tuple(values))


def over_images(
    per_image: np.ndarray, groups: np.ndarray | None = None, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Interval of the mean of `per_image` [N] over test images; boolean values are right or wrong.

    Shares of right images get Wilson's interval, which has a width where all are right; other values a percentile
    bootstrap. With `groups` [N] whole groups are resampled, because the images of one are not independent. NaN for
    values of one group alone. The same seed always, so that a report is the same each time it is built.
    """
    x = per_image.astype(np.float64)
    share = per_image.dtype == np.bool_
    code = np.arange(len(x)) if groups is None else np.unique(groups, return_inverse=True)[1]
    count = int(code.max()) + 1
    grouped = count < len(x)
    if share and not grouped:
        return wilson(float(x.mean()), len(x))
    sums, sizes = np.bincount(code, weights=x), np.bincount(code)
    rng = np.random.default_rng(seed)
    chunk = max(1, 4_000_000 // count)  # rows at a time: 16 MB of indices
    means = []
    for start in range(0, resamples, chunk):
        drawn = rng.integers(0, count, (min(chunk, resamples - start), count), dtype=np.int32)
        means.append(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    low, high = map(float, np.quantile(np.concatenate(means), [0.5 - LEVEL / 2, 0.5 + LEVEL / 2]))
    if grouped and share and low == high:
        return wilson(float(x.mean()), count)
    return (math.nan, math.nan) if grouped and count == 1 else (low, high)


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's score interval of a share of n trials."""
    z = float(stats.norm.ppf(0.5 + LEVEL / 2))
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))
