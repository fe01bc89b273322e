"""Training, validation and test rows: the publisher's, stratified by class, or with groups kept apart."""

from collections.abc import Sequence

import numpy as np

from mtlcar.data.annotations import Annotations
from mtlcar.data.split_counts import group_counts, stratified_counts
from mtlcar.errors import UserError, did_you_mean
from mtlcar.tasks import TaskSet

SPLITS = ("train", "val", "test")
KINDS = ("official", "stratified", "grouped")


def make_splits(
    annotations: Annotations, tasks: TaskSet, split: str, fractions: Sequence[float], seed: int
) -> dict[str, np.ndarray]:
    """Rows of each split: sorted int64, never overlapping.

    The same seed gives the same images whatever the order of the rows. Images without a label of the finest class
    task go to training (`stratified`, and a validation part taken from `official` training images).

    Args:
        split: `official`: the publisher's; where it has no validation part, that is taken from the training images,
            stratified, a share val / (train + val) of them. `stratified`: by the finest class task; every class with
            enough images gets at least one in each split. `grouped`: no group (specimen, car) is in two splits, the
            classes as balanced as that allows.
        fractions: of train, val and test, summing to 1; `official` uses only the first two.
        seed: of the random choice.

    Raises:
        UserError: bad fractions, no such split here, a class without images, or one that only val or test has.
    """
    if split not in KINDS:
        raise UserError(
            f"data.split should be one of {', '.join(KINDS)}. Found {split!r}.{did_you_mean(str(split), KINDS)}"
        )
    shares = check_fractions(fractions)
    label = finest_labels(annotations, tasks)
    order = shuffled(annotations.paths, np.random.default_rng(seed))
    if split == "official":
        part = _official(annotations, tasks, label, order, shares)
    elif split == "stratified":
        part = _stratified(annotations, tasks, label, order, shares)
    else:
        part = _grouped(annotations, label, order, shares)
    rows = {name: np.flatnonzero(part == i).astype(np.int64) for i, name in enumerate(SPLITS)}
    check_classes(annotations, tasks, rows, split)
    return rows


def check_fractions(fractions: Sequence[float]) -> np.ndarray:
    """The fractions as float64 [3]. Raises a UserError when they are no shares of a whole."""
    try:
        shares = np.array([float(f) for f in fractions])
    except (TypeError, ValueError):
        shares = np.empty(0)
    if len(shares) != 3 or not (shares >= 0).all() or abs(shares.sum() - 1) > 1e-6 or shares[0] <= 0:
        raise UserError(
            "data.fractions should be three numbers for train, val and test that sum to 1, the first above 0, "
            f"such as [0.8, 0.1, 0.1]. Found {fractions!r}."
        )
    return shares / shares.sum()


def finest_labels(annotations: Annotations, tasks: TaskSet) -> np.ndarray:
    """int64 [N]: class of the finest class task, -1 where missing; all 0 where there is no class task."""
    if not tasks.classification:
        return np.zeros(len(annotations), dtype=np.int64)
    return annotations.targets[tasks.finest().name]


def shuffled(names: Sequence[str], rng: np.random.Generator) -> np.ndarray:
    """Row indices in a random order that depends on the names, not on the order of the rows."""
    return np.array(sorted(range(len(names)), key=names.__getitem__), dtype=np.int64)[rng.permutation(len(names))]


def _stratified(
    annotations: Annotations, tasks: TaskSet, label: np.ndarray, order: np.ndarray, shares: np.ndarray
) -> np.ndarray:
    """Split index [N] of each row; `order` lists the rows to divide, others get -1."""
    part = np.full(len(label), -1)
    known = order[label[order] >= 0]
    part[order] = 0
    classes, sizes = np.unique(label[known], return_counts=True)
    counts = stratified_counts(sizes, shares)
    first = _one_of_each_class(annotations, tasks, known)
    for c, count in zip(classes, counts, strict=True):
        rows = known[label[known] == c]
        rows = rows[np.argsort(~np.isin(rows, first), kind="stable")]
        part[rows] = np.repeat(np.arange(3), count)
    return part


def _one_of_each_class(annotations: Annotations, tasks: TaskSet, order: np.ndarray) -> np.ndarray:
    """Rows that training takes first, so that it has every class of the tasks that are not stratified (year, say)."""
    chosen: list[int] = []
    stratified = (tasks.finest().name, *tasks.ancestors(tasks.finest().name))
    for task in tasks.classification:
        if task.name not in stratified:
            classes, at = np.unique(annotations.targets[task.name][order], return_index=True)
            chosen += [int(order[i]) for c, i in zip(classes, at, strict=True) if c >= 0]
    return np.array(sorted(set(chosen)), dtype=np.int64)


def _grouped(annotations: Annotations, label: np.ndarray, order: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Split index [N] of each row, the same for all rows of a group."""
    if annotations.groups is None:
        raise UserError(
            "data.split=grouped: this data set has no groups (specimens, cars) to keep apart. "
            "Use data.split=stratified or official."
        )
    names, group = np.unique(annotations.groups[order].astype(str), return_inverse=True)
    needed = int((shares > 0).sum())
    if len(names) < needed:
        raise UserError(f"data.split=grouped needs at least {needed} groups. Found {len(names)}.")
    # unlabelled images count as one more class, so that they are spread too
    columns = np.unique(label[order], return_inverse=True)[1]
    table = np.zeros((len(names), columns.max() + 1), dtype=np.int64)
    np.add.at(table, (group, columns), 1)
    # groups are tried in the order in which the shuffled rows name them
    tried = np.argsort(np.unique(group, return_index=True)[1])
    part = np.empty(len(label), dtype=np.int64)
    part[order] = group_counts(table, shares, tried)[group]
    return part


def _official(
    annotations: Annotations, tasks: TaskSet, label: np.ndarray, order: np.ndarray, shares: np.ndarray
) -> np.ndarray:
    """Split index [N] of each row, -1 for rows that the publisher has in no split."""
    given = annotations.split.astype(str)
    for name in ("train", "test"):
        if not (given == name).any():
            raise UserError(
                f"data.split=official: this copy of the data has no labelled {name} images under {annotations.root}. "
                "Use data.split=stratified, which divides the images that are there by data.fractions."
            )
    part = np.full(len(label), -1)
    for i, name in enumerate(SPLITS):
        part[given == name] = i
    if not (part == 1).any() and shares[1] > 0:
        train = order[part[order] == 0]
        two = np.array([shares[0], shares[1], 0.0]) / (shares[0] + shares[1])
        part[train] = _stratified(annotations, tasks, label, train, two)[train]
    return part


def check_classes(annotations: Annotations, tasks: TaskSet, rows: dict[str, np.ndarray], split: str) -> None:
    """Raises a UserError when a class has no training image: it has none at all, or only in val or test."""
    for task in tasks.classification:
        y = annotations.targets[task.name]
        seen = {name: np.bincount(y[r][y[r] >= 0], minlength=len(task.classes)) > 0 for name, r in rows.items()}
        only = {name: has & ~seen["train"] for name, has in seen.items()}
        for name in ("test", "val"):
            if only[name].any():
                raise UserError(
                    f"Task {task.name!r}: {_names(task.classes, only[name])} in the {name} split, never seen in "
                    f"training (data.split={split}). Use another data.split, add training images of them, or leave "
                    "them out (CompCars: data.unseen=drop)."
                )
        empty = ~seen["train"]
        if empty.any():
            raise UserError(
                f"Task {task.name!r}: {_names(task.classes, empty)} without a single image under {annotations.root} "
                f"(data.split={split}). Complete the copy of the data, or leave the task out."
            )


def _names(classes: Sequence[str], mask: np.ndarray) -> str:
    at = np.flatnonzero(mask)
    listed = ", ".join(repr(classes[i]) for i in at[:5]) + (", ..." if len(at) > 5 else "")
    return f"{len(at)} class{'es' if len(at) > 1 else ''} ({listed})"
