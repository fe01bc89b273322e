"""The value of a metric for each test image, from predictions.parquet: its mean is the metric."""

import numpy as np
import pandas as pd

from mtlcar.tasks import TaskSet


def per_image(metric: str, df: pd.DataFrame, tasks: TaskSet) -> pd.Series | None:
    """Values of the images that the metric is defined for, by their place in `df`; boolean where it is a share.

    None if the predictions do not hold what it needs.

    Definitions are those of `mtlcar.metrics`: a missing label takes no part, class -1 is always wrong.
    """
    owner, _, kind = metric.rpartition("/")
    predicted = [t.name for t in tasks if f"{t.name}/prediction" in df]
    found: tuple[np.ndarray, np.ndarray] | None = None  # values, and which images have one
    if owner == "hierarchy":
        found = _hierarchy(kind, df, tasks, predicted)
    elif kind == "implied_accuracy":
        below = [t for t in tasks if t.name in predicted and owner in tasks.ancestors(t.name)]
        if below:
            child = max(below, key=lambda t: (tasks.depth(t.name), len(t.classes))).name
            target = _labels(df, tasks, child, owner)
            if target is not None:
                found = _lifted(df, tasks, child, owner) == target, target >= 0
    elif owner in predicted and kind == "accuracy":
        target = _classes(df, owner, "target")
        found = _classes(df, owner, "prediction") == target, target >= 0
    elif owner in predicted and kind in ("mae", "mse", "mape"):
        found = _errors(kind, df[f"{owner}/target"].to_numpy(float), df[f"{owner}/prediction"].to_numpy(float))
    if found is None or not found[1].any():
        return None
    values, valid = found
    return pd.Series(values[valid], index=np.flatnonzero(valid))


def _classes(df: pd.DataFrame, task: str, column: str) -> np.ndarray:
    return df[f"{task}/{column}"].fillna(-1).to_numpy(np.int64)


def _lifted(df: pd.DataFrame, tasks: TaskSet, child: str, ancestor: str, column: str = "prediction") -> np.ndarray:
    """The class of `ancestor` that each class of `child` implies; -1 stays -1."""
    classes = _classes(df, child, column)
    table = np.asarray(tasks.ancestor_table(child, ancestor))
    return np.where(classes >= 0, table[np.maximum(classes, 0)], -1)


def _labels(df: pd.DataFrame, tasks: TaskSet, child: str, ancestor: str) -> np.ndarray | None:
    """Labels of `ancestor`.

    A network that does not predict it has no column of them: then those that the child's labels imply, unless some of
    these are missing, where the ancestor's may not be.
    """
    if f"{ancestor}/target" in df:
        return _classes(df, ancestor, "target")
    implied = _lifted(df, tasks, child, ancestor, "target")
    return implied if (implied >= 0).all() else None


def _hierarchy(
    kind: str, df: pd.DataFrame, tasks: TaskSet, predicted: list[str]
) -> tuple[np.ndarray, np.ndarray] | None:
    edges = [(t.name, t.parent) for t in tasks if t.parent is not None and t.parent in tasks]
    levels = [t.name for t in tasks if any(t.name in edge for edge in edges)]
    if not edges or any(name not in predicted for name in levels):
        return None
    if kind == "consistency":
        pairs = [(_lifted(df, tasks, child, up), _classes(df, up, "prediction")) for child, up in edges]
        return np.all([(implied == own) & (own >= 0) for implied, own in pairs], axis=0), np.full(len(df), True)
    if kind == "full_path_accuracy":
        targets = np.stack([_classes(df, name, "target") for name in levels])
        right = np.stack([_classes(df, name, "prediction") for name in levels]) == targets
        return np.all(right, axis=0), np.asarray(np.all(targets >= 0, axis=0))
    return None


def _errors(kind: str, target: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    error = prediction - target
    if kind == "mape":
        valid = ~np.isnan(target) & (target != 0)
        return 100 * np.abs(error) / np.abs(np.where(valid, target, 1.0)), valid
    return np.abs(error) if kind == "mae" else error**2, ~np.isnan(target)
