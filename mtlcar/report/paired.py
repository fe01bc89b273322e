"""Two cells on the same test images: how much they differ, and whether chance alone differs as much."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from mtlcar.report.collect import Run
from mtlcar.report.comparison import Cell, replicate
from mtlcar.report.intervals import LEVEL, effective_groups, group_totals, jackknife_error
from mtlcar.report.per_image import per_image


@dataclass(frozen=True)
class Difference:
    """A mean difference a - b with its 95 % interval and the two-sided p-value of no difference; NaN: not known."""

    mean: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Paired:
    """What two cells a and b give on the images that both have, for the seeds that both have.

    Two things vary, and each has its test. `methods` is over seeds: would other seeds give a difference too? It is
    about the methods, for this test set. `networks` is over images: would other images? It is about the networks
    trained here: with thousands of images two seeds of one method differ "significantly" as well, so it cannot carry a
    statement about methods. Therefore `main` is the test over seeds where there are several, and that over images for
    one seed.

    Attributes:
        images: different test images compared; `groups`: of how many groups, None where each image is one of its own.
        methods: over seeds; None for one seed, or where all seeds differ by the same (no spread, so no t test).
        a_alone, b_alone: images that only a (only b) got right, mean over seeds; NaN for values.
    """

    seeds: tuple[str, ...]
    images: int
    groups: int | None
    methods: Difference | None
    networks: Difference
    a_alone: float
    b_alone: float

    @property
    def main(self) -> Difference:
        return self.methods or self.networks


@dataclass(frozen=True)
class Scores:
    """A metric's values by image (index and path), boolean for a share; the images' groups, None where they have
    none."""

    values: pd.Series
    groups: pd.Series | None


def scores(run: Run, metric: str) -> Scores | None:
    """None where the run's predictions do not hold what the metric needs, or do not tell the images apart."""
    df = run.predictions
    if df is None or not {"index", "path"} <= set(df):
        return None
    found = per_image(metric, df, run.tasks)
    if found is None:
        return None
    rows = df.iloc[found.index.to_numpy()]
    images = pd.MultiIndex.from_frame(rows[["index", "path"]])
    if not images.is_unique:
        return None
    groups = None
    if run.groups is not None:
        alone = pd.Series([f"image {i} alone" for i in rows["index"]], index=rows.index)
        groups = pd.Series(rows["group"].where(rows["group"].notna(), alone).to_numpy(), index=images)
    return Scores(pd.Series(found.to_numpy(), index=images), groups)


def cell_scores(cell: Cell, metric: str) -> dict[str, Scores]:
    """Seed -> scores of the cell's run with that seed."""
    found = {replicate(run): scores(run, metric) for run in cell.runs}
    return {seed: s for seed, s in found.items() if s is not None}


def compare_cells(a: Mapping[str, Scores], b: Mapping[str, Scores]) -> Paired | None:
    """Paired comparison of two cells' `cell_scores` of one metric.

    The main p-value is exact McNemar for a share and one seed, a paired t test over images otherwise (whole groups
    where images are not independent), or over seeds: see `Paired`.

    Returns:
        None where no seed and image is in both, or a value is NaN: to leave that image out would favour the network
        that gave no number for it.
    """
    seeds, differences, alone, share = [], [], [], True
    for seed in (s for s in a if s in b):
        x, y = a[seed].values, b[seed].values
        if not x.index.equals(y.index):
            x, y = x.align(y, join="inner")
        if not len(x):
            continue
        share &= x.dtype == np.bool_ and y.dtype == np.bool_
        seeds.append(seed)
        differences.append(x.astype(np.float64) - y.astype(np.float64))
        alone.append((int((differences[-1] > 0).sum()), int((differences[-1] < 0).sum())))
    if not seeds or any(bool(d.isna().any()) for d in differences):
        return None
    per_image = differences[0] if len(seeds) == 1 else _mean_of(differences)
    groups = _groups([found[seed].groups for seed in seeds for found in (a, b)], per_image.index)
    if share and len(seeds) == 1 and groups is None:
        networks = of_shares(*alone[0], len(per_image))
    else:
        networks = of_units(per_image.to_numpy(), groups)
    a_alone, b_alone = np.mean(alone, axis=0) if share else (math.nan, math.nan)
    return Paired(
        seeds=tuple(seeds),
        images=len(per_image),
        groups=None if groups is None else len(np.unique(groups)),
        methods=of_seeds([float(d.mean()) for d in differences]),
        networks=networks,
        a_alone=float(a_alone),
        b_alone=float(b_alone),
    )


def of_seeds(differences: Sequence[float]) -> Difference | None:
    """Paired t test over seeds, one difference each; None for one seed or no spread."""
    x = np.asarray(differences, dtype=np.float64)
    if len(x) < 2 or np.ptp(x) <= 1e-12 * max(1.0, float(np.abs(x).max())):
        return None
    return _student(float(x.mean()), float(x.std(ddof=1) / math.sqrt(len(x))), len(x) - 1)


def of_units(differences: np.ndarray, groups: np.ndarray | None = None) -> Difference:
    """Paired t test of the mean of `differences` [N] over images.

    With `groups` [N] over whole groups: the error leaves out one group at a time, and the degrees of freedom are those
    of the effective number of groups (`intervals.jackknife_error`, `intervals.effective_groups`).
    """
    x = differences.astype(np.float64)
    totals, sizes = group_totals(x, groups)
    if len(sizes) < 2:
        return Difference(float(x.mean()), math.nan, math.nan, math.nan)
    return _student(float(x.mean()), jackknife_error(totals, sizes), max(1.0, effective_groups(sizes) - 1))


def of_shares(a_alone: int, b_alone: int, n: int) -> Difference:
    """Difference of two shares of the same `n` images, of which only a or only b got so many right.

    p: McNemar's test, exact: each of these images is as likely a's as b's (two-sided binomial test). Interval: Wald's
    with one more image of each kind (Bonett and Price 2012, Laplace's correction), which has a width where the two
    agree on all images; near the edge it may disagree with the exact p about 0.05.
    """
    p = float(stats.binomtest(a_alone, a_alone + b_alone).pvalue) if a_alone + b_alone else 1.0
    first, second = (a_alone + 1) / (n + 2), (b_alone + 1) / (n + 2)
    half = float(stats.norm.ppf(0.5 + LEVEL / 2)) * math.sqrt((first + second - (first - second) ** 2) / (n + 2))
    mean, middle = (a_alone - b_alone) / n, first - second
    return Difference(mean, max(-1.0, min(mean, middle - half)), min(1.0, max(mean, middle + half)), p)


def _student(mean: float, error: float, freedom: float) -> Difference:
    if error == 0:
        return Difference(mean, mean, mean, 1.0 if mean == 0 else 0.0)
    half = float(stats.t.ppf(0.5 + LEVEL / 2, freedom)) * error
    return Difference(mean, mean - half, mean + half, float(2 * stats.t.sf(abs(mean) / error, freedom)))


def _mean_of(differences: Sequence[pd.Series]) -> pd.Series:
    """Per image, over the seeds whose test set it is in."""
    first = differences[0].index
    if all(d.index.equals(first) for d in differences):
        return pd.Series(np.mean([d.to_numpy() for d in differences], axis=0), index=first)
    return pd.concat(differences).groupby(level=[0, 1]).mean()


def _groups(found: Sequence[pd.Series | None], images: pd.Index) -> np.ndarray | None:
    """Groups of `images`, from the runs that name them; None where no group has several of them."""
    named = [groups for groups in found if groups is not None]
    if not named:
        return None
    missing = images
    parts = []
    for groups in named:
        parts.append(groups[groups.index.isin(missing)])
        missing = missing.difference(groups.index)
        if not len(missing):
            break
    names = pd.concat(parts).reindex(images)
    alone = pd.Series([f"image {i} alone" for i in range(len(images))], index=images)
    codes = pd.factorize(names.where(names.notna(), alone))[0]
    return codes if len(np.unique(codes)) < len(codes) else None
