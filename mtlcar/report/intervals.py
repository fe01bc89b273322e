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


def over_images(per_image: np.ndarray, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap of the mean of `per_image` [N], resampling test images with replacement.

    The same seed always, so that a report is the same each time it is built. Resampling N zeros and ones is a binomial
    draw, which is what is drawn for accuracies.
    """
    rng = np.random.default_rng(seed)
    n = len(per_image)
    x = per_image.astype(np.float64)
    if np.isin(x, (0.0, 1.0)).all():
        means = rng.binomial(n, x.mean(), resamples) / n
    else:
        chunk = max(1, 4_000_000 // n)  # rows at a time: 16 MB of indices
        sizes = [min(chunk, resamples - i) for i in range(0, resamples, chunk)]
        means = np.concatenate([x[rng.integers(0, n, (size, n), dtype=np.int32)].mean(axis=1) for size in sizes])
    low, high = np.quantile(means, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return float(low), float(high)
