"""Do tasks use the same directions of a feature space? Overlap of the subspaces that their labels span.

Not DCI (Eastwood & Williams 2018): it asks whether single units stand for single factors, and what a linear head reads
does not change when all units are rotated. Neither do the angles between subspaces, which are taken here as for groups'
principal components by Krzanowski 1979 (JASA 74) and, of images' factors, by Lindsey & Issa 2024 (eLife 91685), who
call factors that vary in different subspaces factorised.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from mtlcar.tasks import TaskSet

KEPT = 0.9
"""Share of the variance between classes that a task's directions keep; what is beyond is mostly noise of the means."""
SHUFFLES = 10


@dataclass(frozen=True)
class Factor:
    """Labels [n] without missing ones, class indices or values; `given`: class indices [n] of a coarser task, within
    whose classes alone the labels count."""

    labels: np.ndarray
    given: np.ndarray | None = None

    @property
    def is_class(self) -> bool:
        return bool(np.issubdtype(self.labels.dtype, np.integer))

    def shuffled(self, rng: np.random.Generator) -> "Factor":
        """The same labels of other images, under `given` of the same class."""
        labels = self.labels.copy()
        within = np.zeros(len(labels), dtype=np.int64) if self.given is None else self.given
        for c in np.unique(within):
            at = np.flatnonzero(within == c)
            labels[at] = labels[rng.permutation(at)]
        return Factor(labels, self.given)


def directions(features: np.ndarray, factor: Factor, rank: int | None = None) -> np.ndarray:
    """An orthonormal basis [D, r] of the directions that a label moves features along.

    Of a class: the principal directions of the class means (weighted by their images) around the mean of all, or around
    the mean of the class they are `given`: the between-class scatter. Of a value: its covariance with the features, or
    that within the classes given; r = 1.

    Args:
        features: float64 [n, D].
        rank: how many; None: as many as hold `KEPT` of the variance. At most as many as there are.

    Returns:
        [D, 0] where a label moves nothing.
    """
    groups = np.zeros(len(features), dtype=np.int64) if factor.given is None else factor.given
    x = _within(features, groups)
    if factor.is_class:
        _, index = np.unique(factor.labels, return_inverse=True)
        moved = _sums(x, index) / np.sqrt(np.bincount(index))[:, None]
    else:
        moved = (_within(factor.labels[:, None].astype(float), groups) * x).sum(0, keepdims=True)
    _, s, vt = np.linalg.svd(moved, full_matrices=False)
    there = int((s > 1e-9 * max(float(np.linalg.norm(features)), 1e-300)).sum())
    if rank is None and there:
        rank = int(np.searchsorted(np.cumsum(s**2) / (s**2).sum(), KEPT - 1e-12)) + 1
    found: np.ndarray = vt[: min(rank or 0, there)].T
    return found


def overlap(u: np.ndarray, v: np.ndarray) -> float:
    """Mean squared cosine of the principal angles (Bjorck & Golub 1973) between the spans of orthonormal [D, p] and
    [D, q], |U^T V|_F^2 / min(p, q): 0 orthogonal, 1 one inside the other. NaN where one is empty."""
    least = min(u.shape[1], v.shape[1])
    return float(np.square(u.T @ v).sum() / least) if least else float("nan")


def random_overlap(p: int, q: int, dimensions: int) -> float:
    """The expected overlap of independent random subspaces of ranks p and q of R^D, at least one of them uniform:
    E |U^T V|_F^2 = p q / D, so max(p, q) / D."""
    return max(p, q) / dimensions


def overlaps(features: np.ndarray, labels: Mapping[str, np.ndarray], tasks: TaskSet) -> list[dict[str, Any]]:
    """Of each pair of tasks (a, b):

    a, b, given: the tasks; whether b counts within the classes of a only. That is so for a finer class (a model's
        mean minus its make's), since finer means contain the coarser ones, and for a value beside a class.
    images, rank_a, rank_b: what it is measured on; directions of each.
    overlap: `overlap`. 0: what is known of b beside a lies in other directions than a.
    random: `random_overlap`, as if all directions of the space were alike.
    shuffled: the mean overlap of subspaces of these ranks from shuffled labels: as above for features as they are,
        whose noise lies in few directions. Overlap below this is separation, above it is entanglement.
    """
    found = []
    for first, second in combinations(tasks.names, 2):
        a, b = (second, first) if _coarser(tasks, second, first) else (first, second)
        given = _coarser(tasks, a, b)
        known = _known(labels[a]) & _known(labels[b])
        if not known.any():
            continue
        x = features[known]
        factor_a = Factor(labels[a][known])
        factor_b = Factor(labels[b][known], labels[a][known] if given else None)
        u, v = directions(x, factor_a), directions(x, factor_b)
        p, q = u.shape[1], v.shape[1]
        rng = np.random.default_rng(0)
        chance = [
            overlap(directions(x, factor_a.shuffled(rng), p), directions(x, factor_b.shuffled(rng), q))
            for _ in range(SHUFFLES if p and q else 0)
        ]
        found.append(
            {
                "a": a,
                "b": b,
                "given": given,
                "images": len(x),
                "rank_a": p,
                "rank_b": q,
                "overlap": overlap(u, v),
                "random": random_overlap(p, q, x.shape[1]) if p and q else float("nan"),
                "shuffled": float(np.mean(chance)) if chance else float("nan"),
            }
        )
    return found


def _coarser(tasks: TaskSet, a: str, b: str) -> bool:
    """Whether b is told within the classes of a."""
    if not tasks[a].classes:
        return False
    return a in tasks.ancestors(b) if tasks[b].classes else True


def _within(x: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """[n, D] minus the means of their groups [n]."""
    _, index = np.unique(groups, return_inverse=True)
    found: np.ndarray = x - (_sums(x, index) / np.bincount(index)[:, None])[index]
    return found


def _sums(x: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Sums [K, D] of the rows of each index 0..K-1, all of which occur."""
    order = np.argsort(index, kind="stable")
    found: np.ndarray = np.add.reduceat(x[order], np.searchsorted(index[order], np.arange(index.max() + 1)))
    return found


def _known(labels: np.ndarray) -> np.ndarray:
    known: np.ndarray = labels >= 0 if np.issubdtype(labels.dtype, np.integer) else ~np.isnan(labels)
    return known
