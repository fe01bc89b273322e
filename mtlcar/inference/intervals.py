"""How far a predicted value may be off: split-conformal intervals from the errors on a run's test images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mtlcar.metrics.decoding import decode_levels
from mtlcar.metrics.scored_levels import scored_levels
from mtlcar.runs.predictions import read_predictions
from mtlcar.tasks import TaskSet

COVERAGE = 0.95
"""Share of new images whose value is to lie in its interval."""
ENOUGH = 50
"""Held-out images of a class from which on it has a half width of its own."""


def half_width(errors: np.ndarray, groups: Sequence[Any] | np.ndarray | None = None) -> float:
    """q such that |error| <= q for at least `COVERAGE` of new images; infinite where there are too few to say.

    Of n independent images q is the ceil(0.95 (n + 1))-th smallest |error| (split conformal; Lei et al. 2018, arXiv
    1604.04173, algorithm 2), which holds for any network and any distribution of errors, if new images are like these.
    Images of one group (tiles of a specimen) are not independent. Then each of K groups weighs 1 / (K + 1), shared by
    its images, and infinity the rest (HCP: Lee, Barber & Willett 2023, arXiv 2306.06342): the promise is for an image
    of a new group. With one image a group both are the same.

    Args:
        errors: [n], of any sign; NaN, a prediction that is no number, counts as infinite.
        groups: [n] names, or None where images are independent.
    """
    size = np.abs(np.asarray(errors, dtype=np.float64))
    size[np.isnan(size)] = np.inf
    if not len(size):
        return math.inf
    _, group, counts = np.unique(
        np.arange(len(size)) if groups is None else np.asarray(groups), return_inverse=True, return_counts=True
    )
    order = np.argsort(size, kind="stable")
    reached = np.cumsum(1 / counts[group[order]])
    enough = reached >= COVERAGE * (len(counts) + 1) - 1e-9  # the sum of thirds and the like is rounded
    return float(size[order][enough.argmax()]) if enough.any() else math.inf


@dataclass(frozen=True)
class Interval:
    """Half widths of one value.

    Attributes:
        half: over all held-out images, in the value's unit.
        classes: {class index of `by`: its own half width}, of predicted classes with `ENOUGH` images.
        by: the classification by which they are told apart, or None.
        images, groups: how many held-out images with a label, and groups of them (None: they are independent).
    """

    half: float
    classes: dict[int, float] = field(default_factory=dict)
    by: str | None = None
    images: int = 0
    groups: int | None = None

    def around(self, value: float, label: int | None) -> tuple[float, float] | None:
        """Lowest and highest value; None where none can be given. `label`: the predicted class of `by`."""
        half = self.classes.get(-1 if label is None else label, self.half)
        return (value - half, value + half) if math.isfinite(half) and math.isfinite(value) else None


def read_intervals(run_dir: Path, decoding: str = "independent") -> dict[str, Interval]:
    """{value: its intervals} from the test images of predictions.parquet; empty where a run has none.

    By predicted class where a class has enough images, because a hard steel's errors are not a soft one's; it is as
    valid as over all (Vovk 2012, arXiv 1209.2673: the class is a function of the image). A class whose half width would
    be infinite has that over all.

    Args:
        decoding: how predicted classes are to be read, as when they are predicted.
    """
    path = run_dir / "predictions.parquet"
    if not path.is_file():
        return {}
    df, tasks = read_predictions(path)
    found = {}
    for task in tasks.regression:
        if f"{task.name}/prediction" not in df:
            continue
        own = df[df[f"{task.name}/target"].notna()]
        error = own[f"{task.name}/prediction"].to_numpy(np.float64) - own[f"{task.name}/target"].to_numpy(np.float64)
        groups = own["group"].to_numpy() if "group" in own else None
        by, label = _classes(own, tasks, decoding)
        classes = {}
        for c, n in zip(*np.unique(label, return_counts=True), strict=True):
            if c >= 0 and n >= ENOUGH:
                half = half_width(error[label == c], None if groups is None else groups[label == c])
                if math.isfinite(half):
                    classes[int(c)] = half
        count = None if groups is None else len(np.unique(groups))
        found[task.name] = Interval(half_width(error, groups), classes, by, len(own), count)
    return found


def _classes(df: Any, tasks: TaskSet, decoding: str) -> tuple[str | None, np.ndarray]:
    """The finest predicted classification and its classes [n]."""
    fine = tasks.finest()
    if not fine.classes or f"{fine.name}/prediction" not in df:
        return None, np.full(len(df), -1)
    names = {t.name for t in tasks.classification if f"{t.name}/scores" in df and f"{t.name}/confidence" in df}
    levels = scored_levels(tasks, names)
    if decoding != "independent" and len(levels) > 1 and fine.name in levels and len(df):
        scores = {name: np.stack(list(df[f"{name}/scores"])) for name in levels}
        return fine.name, decode_levels(scores, tasks, decoding)[fine.name]
    return fine.name, df[f"{fine.name}/prediction"].to_numpy(np.int64)
