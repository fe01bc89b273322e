"""The value of a metric for each test image, from predictions.parquet: its mean is the metric."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from mtlcar.metrics.decoding import DECODINGS, decode_levels, lift
from mtlcar.metrics.levels import edges, finest_below, levels
from mtlcar.metrics.scored_levels import scored_levels
from mtlcar.tasks import TaskSet

WITHIN = 0.08
"""As in `mtlcar.metrics.regression`, whose import would take torch's seconds."""


def class_and_value(tasks: TaskSet) -> tuple[str, str] | None:
    """The finest class task and the value, for tasks with one value (regression) besides at least one class."""
    if len(tasks.regression) != 1 or not tasks.classification:
        return None
    return tasks.finest().name, tasks.regression[0].name


def per_image(metric: str, df: pd.DataFrame, tasks: TaskSet) -> pd.Series | None:
    """Values of the images that the metric is defined for, by their place in `df`; boolean where it is a share.

    None if the predictions do not hold what it needs.

    Definitions are those of `mtlcar.metrics`: a missing label takes no part, class -1 is always wrong. One is the
    report's own: `mape_if_right` is the mape of the images whose class (of the finest class task) is right.
    """
    owner, _, kind = metric.rpartition("/")
    predicted = [t.name for t in tasks if f"{t.name}/prediction" in df]
    found: tuple[np.ndarray, np.ndarray] | None = None  # values, and which images have one
    if owner == "hierarchy":
        found = _hierarchy(kind, df, tasks, predicted)
    elif kind == "implied_accuracy":
        child = finest_below(tasks, owner, predicted)
        if child is not None:
            target = _labels(df, tasks, child, owner)
            if target is not None:
                found = _lifted(df, tasks, child, owner) == target, target >= 0
    elif owner in predicted and kind == "accuracy":
        target = _classes(df, owner, "target")
        found = _classes(df, owner, "prediction") == target, target >= 0
    elif owner in predicted and kind in ("mae", "mse", "mape", "within_8"):
        found = _errors(kind, df, owner)
    elif owner in predicted and kind == "mape_if_right":
        found = _errors_if_right(df, tasks)
    if found is None or not found[1].any():
        return None
    values, valid = found
    return pd.Series(values[valid], index=np.flatnonzero(valid))


def _classes(df: pd.DataFrame, task: str, column: str) -> np.ndarray:
    return df[f"{task}/{column}"].fillna(-1).to_numpy(np.int64)


def _lifted(df: pd.DataFrame, tasks: TaskSet, child: str, ancestor: str, column: str = "prediction") -> np.ndarray:
    """The class of `ancestor` that each class of `child` implies; -1 stays -1."""
    return lift(np.asarray(tasks.ancestor_table(child, ancestor)), _classes(df, child, column))


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
    if kind in ("mistake_severity", "distance"):
        return _heights(df, tasks, predicted, mistakes=kind == "mistake_severity")
    names = levels(tasks)
    if not names or any(name not in predicted for name in names):
        return None
    if kind == "consistency":
        pairs = [(_lifted(df, tasks, child, up), _classes(df, up, "prediction")) for child, up in edges(tasks)]
        return np.all([(implied == own) & (own >= 0) for implied, own in pairs], axis=0), np.full(len(df), True)
    if kind == "full_path_accuracy":
        targets = np.stack([_classes(df, name, "target") for name in names])
        right = np.stack([_classes(df, name, "prediction") for name in names]) == targets
        return np.all(right, axis=0), np.asarray(np.all(targets >= 0, axis=0))
    return None


def _heights(
    df: pd.DataFrame, tasks: TaskSet, predicted: list[str], *, mistakes: bool
) -> tuple[np.ndarray, np.ndarray] | None:
    """Levels at which true and predicted class of the finest task differ, of mistakes alone or of all images."""
    finest = tasks.finest().name
    above = tasks.ancestors(finest)
    if not above or finest not in predicted:
        return None
    differ = [
        _lifted(df, tasks, finest, name) != _lifted(df, tasks, finest, name, "target") for name in (finest, *above)
    ]
    height = np.sum(differ, axis=0)
    labelled = _classes(df, finest, "target") >= 0
    return height.astype(np.float64), labelled & (height > 0) if mistakes else labelled


def _errors(kind: str, df: pd.DataFrame, task: str) -> tuple[np.ndarray, np.ndarray]:
    target, prediction = df[f"{task}/target"].to_numpy(float), df[f"{task}/prediction"].to_numpy(float)
    error = np.abs(prediction - target)
    if kind in ("mae", "mse"):
        return error if kind == "mae" else error**2, ~np.isnan(target)
    valid = ~np.isnan(target) & (target != 0)
    relative = error / np.abs(np.where(valid, target, 1.0))
    return 100 * relative if kind == "mape" else relative <= WITHIN, valid


def _errors_if_right(df: pd.DataFrame, tasks: TaskSet) -> tuple[np.ndarray, np.ndarray] | None:
    pair = class_and_value(tasks)
    if pair is None or f"{pair[0]}/prediction" not in df:
        return None
    target = _classes(df, pair[0], "target")
    values, valid = _errors("mape", df, pair[1])
    return values, valid & (target >= 0) & (_classes(df, pair[0], "prediction") == target)


def decoding_metrics(tasks: TaskSet) -> list[str]:
    """The test metrics that a decoding changes."""
    kinds = ("consistency", "full_path_accuracy", "mistake_severity", "distance")
    return [*(f"{name}/accuracy" for name in levels(tasks)), *(f"hierarchy/{kind}" for kind in kinds)]


def decoded(
    columns: Mapping[str, np.ndarray], tasks: TaskSet, decodings: Sequence[str] = DECODINGS
) -> dict[str, pd.DataFrame]:
    """Targets and predictions of the levels under each decoding, for `per_image`; empty where fewer than two levels
    have scores, of which all decodings say the same.

    Args:
        columns: `<task>/target` and `<task>/prediction` [N] and `<task>/scores` [N, C], which are probabilities.
    """
    scores = {name: columns[f"{name}/scores"] for name in tasks.names if f"{name}/scores" in columns}
    if len(scored_levels(tasks, scores)) < 2:
        return {}
    shown = [name for name in levels(tasks) if {f"{name}/prediction", f"{name}/target"} <= set(columns)]
    if any(name not in shown for name in scores if name in levels(tasks)):  # no labels to compare with
        return {}
    own = {name: columns[f"{name}/prediction"] for name in shown}
    targets = {f"{name}/target": columns[f"{name}/target"] for name in shown}
    found = {}
    for how in decodings:
        classes = decode_levels(scores, tasks, how, own)
        found[how] = pd.DataFrame({**targets, **{f"{name}/prediction": classes[name] for name in shown}})
    return found


def by_decoding(columns: Mapping[str, np.ndarray], tasks: TaskSet) -> dict[str, dict[str, float]]:
    """{decoding: {metric: value}} of `decoding_metrics`, those that are defined; `columns` as for `decoded`."""
    found: dict[str, dict[str, float]] = {}
    for how, df in decoded(columns, tasks).items():
        images = {metric: per_image(metric, df, tasks) for metric in decoding_metrics(tasks)}
        found[how] = {metric: float(values.mean()) for metric, values in images.items() if values is not None}
    return found
