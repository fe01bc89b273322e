"""Several tests at once: p-values that hold for all of them together."""

from collections.abc import Sequence

import numpy as np


def holm(p: Sequence[float]) -> np.ndarray:
    """Holm's step-down adjusted p-values [M] of M tests (Holm 1979, Scand. J. Statist. 6).

    Calling what is below 0.05 a difference makes a single false call in at most 5 of 100 such families of tests,
    whatever the tests have to do with each other. NaN (no test could be made) stays NaN and is not counted.
    """
    given = np.asarray(p, dtype=np.float64)
    adjusted = np.full(given.shape, np.nan)
    there = np.flatnonzero(~np.isnan(given))
    order = there[np.argsort(given[there], kind="stable")]
    steps = given[order] * (len(order) - np.arange(len(order)))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return adjusted
