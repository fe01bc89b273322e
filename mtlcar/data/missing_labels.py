"""Training with fewer labels of a task: which training images keep theirs."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtlcar.data.annotations import MISSING_CLASS
from mtlcar.errors import UserError, did_you_mean
from mtlcar.options import number
from mtlcar.tasks import TaskSet

KEY = "data.label_fraction"


def check_label_fraction(label_fraction: Any, tasks: TaskSet) -> dict[str, float]:
    """{task: share in (0, 1]}, empty for None.

    Raises:
        UserError: no mapping, a task that there is not, or another number.
    """
    if label_fraction is None:
        return {}
    if not isinstance(label_fraction, Mapping):
        raise UserError(
            f"{KEY} should be null or shares by task, {{{tasks.names[-1]}: 0.1}} say. Found {label_fraction!r}."
        )
    for name in label_fraction:
        if name not in tasks:
            close = did_you_mean(str(name), tasks.names)
            raise UserError(f"{KEY}: no task {str(name)!r}; there are {', '.join(tasks.names)}.{close}")
    return {str(name): number(f"{KEY}.{name}", share, above=0, most=1) for name, share in label_fraction.items()}


def thin_labels(
    targets: Mapping[str, np.ndarray],
    tasks: TaskSet,
    paths: Sequence[str],
    train: np.ndarray,
    label_fraction: Mapping[str, float] | None,
    seed: int,
) -> dict[str, np.ndarray]:
    """The labels with only a share of each task's left on training images; others, and other splits, are untouched.

    Of the n training images with a label of the task, round(share * n) keep it, but at least one of each class. They
    are spread over the task's classes in proportion (a regression: over the classes of the finest class task). An image
    that keeps a label at one share keeps it at every greater one; and two tasks that are spread over the same classes
    and have the same share and images keep the labels of the same images. The choice depends on the seed and the
    images' names, not on their order.

    Args:
        targets: task -> int64 [N] (-1: missing) or float [N] (NaN: missing).
        tasks: all of them.
        paths: N names.
        train: rows of the training images [n].
        label_fraction: task -> share in (0, 1]; a task that is not in it keeps all labels.
        seed: of the random choice.

    Returns:
        task -> labels [N], new arrays where labels are missing now.

    Raises:
        UserError: see `check_label_fraction`.
    """
    found = dict(targets)
    finest = targets[tasks.finest().name] if tasks.classification else np.zeros(len(paths), dtype=np.int64)
    priority: np.ndarray | None = None
    for name, share in check_label_fraction(label_fraction, tasks).items():
        y, regression = targets[name], tasks[name].kind == "regression"
        rows = train[~np.isnan(y[train])] if regression else train[y[train] >= 0]
        if share == 1 or not len(rows):
            continue
        if priority is None:
            priority = _priority(paths, seed)
        kept = _chosen(rows, (finest if regression else y)[rows], priority[rows], share)
        thinned = y.copy()
        thinned[np.setdiff1d(rows, kept)] = np.nan if regression else MISSING_CLASS
        found[name] = thinned
    return found


def _priority(paths: Sequence[str], seed: int) -> np.ndarray:
    """uint64 [N], random numbers by the images' names."""
    hashes = (hashlib.blake2b(f"{seed} {path}".encode("utf-8", "surrogateescape"), digest_size=8) for path in paths)
    return np.array([int.from_bytes(h.digest(), "big") for h in hashes], dtype=np.uint64)


def _chosen(rows: np.ndarray, classes: np.ndarray, priority: np.ndarray, share: float) -> np.ndarray:
    """The rows that keep their label: the first of every class, then all classes evenly."""
    order = np.argsort(priority, kind="stable")
    rows, classes = rows[order], classes[order]
    place, size = np.empty(len(rows)), np.empty(len(rows))
    for c in np.unique(classes):
        own = np.flatnonzero(classes == c)
        place[own], size[own] = np.arange(len(own)), len(own)
    position = np.where(place == 0, -1.0, (place + 0.5) / size)  # within the class, in 0..1
    count = max(int((place == 0).sum()), round(share * len(rows)))
    return rows[np.argsort(position, kind="stable")[:count]]
