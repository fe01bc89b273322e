"""Linear probes (Alain & Bengio 2016, arXiv 1610.01644): how much of a label can be read off features linearly."""

import numpy as np

from mtlcar.tasks import Task

FOLDS = 5
PENALTIES = np.logspace(-4, 4, 13)
"""Ridge penalties that are tried, per image."""


def probe(features: np.ndarray, labels: np.ndarray, task: Task, groups: np.ndarray | None = None) -> float | None:
    """Cross-validated accuracy of a ridge classifier, or R^2 of a ridge regression, of images it was not fitted on.

    Least squares on the classes' indicators (the largest answer wins), in closed form: no start, no optimizer, the same
    number each time. Features are standardised by the fitted images; the penalty is the one of `PENALTIES` with the
    least squared error when each of the fitted images is left out once (`ridge`). R^2 is 1 - squared error / squared
    deviation from the mean of the fitted labels.

    Args:
        features: float64 [n, D].
        labels: class indices [n] or values [n]; -1 and NaN are missing and left out.
        groups: [n], images that are never on both sides (`folds`).

    Returns:
        None: fewer than two images a fold or, of a classification, a single class.
    """
    known = labels >= 0 if task.classes else ~np.isnan(labels)
    x, y = features[known], labels[known]
    if len(y) < 2 * FOLDS or len(np.unique(y)) < 2:
        return None
    fold = folds(y, None if groups is None else groups[known])
    targets = np.eye(len(task.classes))[y] if task.classes else y[:, None].astype(float)
    hits, wrong, spread = 0, 0.0, 0.0
    for k in np.unique(fold):
        fitted, held = fold != k, fold == k
        said = ridge(x[fitted], targets[fitted], x[held])
        hits += int((said.argmax(1) == y[held]).sum()) if task.classes else 0
        wrong += float(((said - targets[held]) ** 2).sum())
        spread += float(((targets[held] - targets[fitted].mean(0)) ** 2).sum())
    return hits / len(y) if task.classes else 1 - wrong / spread


def baseline(labels: np.ndarray, task: Task) -> float | None:
    """The score that needs no features: the most frequent class's share, or an R^2 of 0. None without labels."""
    known = labels[labels >= 0] if task.classes else labels[~np.isnan(labels)]
    if not len(known):
        return None
    return float(np.bincount(known).max() / len(known)) if task.classes else 0.0


def folds(labels: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
    """Fold of each image [n], 0..FOLDS-1: sorted by label and dealt out in turn, so that each fold has about the same
    labels.

    Args:
        groups: images of one group are dealt out together, at the place of its first. Not where some label has one
            group only: nothing would be left to learn it from.
    """
    if groups is not None and _several_groups(labels, groups):
        _, first, group = np.unique(groups, return_index=True, return_inverse=True)
        return _dealt(labels[first])[group]
    return _dealt(labels)


def _several_groups(labels: np.ndarray, groups: np.ndarray) -> bool:
    if np.issubdtype(labels.dtype, np.floating):  # a value belongs to no class
        return len(np.unique(groups)) >= 2 * FOLDS
    return all(len(np.unique(groups[labels == c])) > 1 for c in np.unique(labels))


def _dealt(labels: np.ndarray) -> np.ndarray:
    fold = np.empty(len(labels), dtype=np.int64)
    fold[np.argsort(labels, kind="stable")] = np.arange(len(labels)) % FOLDS
    return fold


def ridge(x: np.ndarray, y: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Ridge regression of y [n, K] on x [n, D] -> what it says of `new` [m, D], [m, K].

    One penalty for all K, that with the least sum of squared leave-one-out errors e_i / (1 - h_ii), h the hat matrix
    with its intercept (Allen 1974's PRESS): exact, and no more work than one fit. Constant features are left out.
    """
    mean, std = x.mean(0), x.std(0)
    used = std > 1e-12 * max(float(np.abs(x).max()), 1e-300)
    if not used.any():
        return np.repeat(y.mean(0, keepdims=True), len(new), 0)
    x, new = (x[:, used] - mean[used]) / std[used], (new[:, used] - mean[used]) / std[used]
    middle = y.mean(0)
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    penalty = min(PENALTIES * len(x), key=lambda p: press(u, s, y - middle, p))
    found: np.ndarray = middle + new @ (vt.T @ ((s / (s**2 + penalty))[:, None] * (u.T @ (y - middle))))
    return found


def press(u: np.ndarray, s: np.ndarray, y: np.ndarray, penalty: float) -> float:
    """Sum of squared errors of ridge regression at each of n images by the fit without it.

    Args:
        u, s: of the thin singular value decomposition of centred features [n, D].
        y: centred, [n, K].
    """
    shrink = s**2 / (s**2 + penalty)
    left = 1 - 1 / len(y) - (u**2) @ shrink  # 1 - h_ii; 1 / n is the intercept's
    residual = y - u @ (shrink[:, None] * (u.T @ y))
    return float(((residual / np.maximum(left, 1e-9)[:, None]) ** 2).sum())
