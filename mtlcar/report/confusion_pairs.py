"""Which classes a network takes for which: predictions of a cell's seeds together, counted pair by pair."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mtlcar.metrics.decoding import lift
from mtlcar.report.collect import Run


@dataclass(frozen=True)
class Level:
    """The finest class task that a run predicts; `parent` is None, and the two tables empty, where it is flat."""

    name: str
    classes: tuple[str, ...]
    parent: str | None = None
    parents: tuple[str, ...] = ()
    parent_of: tuple[int, ...] = ()


def level(run: Run) -> Level | None:
    """None where no class is predicted."""
    df = run.predictions
    if df is None or not {"index", "path"} <= set(df):
        return None
    predicted = [t for t in run.tasks.classification if f"{t.name}/prediction" in df]
    if not predicted:
        return None
    task = max(predicted, key=lambda t: (run.tasks.depth(t.name), len(t.classes)))
    if task.parent is None or task.parent not in run.tasks:
        return Level(task.name, task.classes)
    table = run.tasks.parent_of[task.name]
    return Level(task.name, task.classes, task.parent, run.tasks[task.parent].classes, table)


def pooled(runs: Sequence[Run], of: Level) -> pd.DataFrame:
    """One row for each labelled test image of each run that predicts the task, at least one of `runs`.

    Columns: `run` (its place in `runs`), `index`, `path`, `true`, `predicted` (-1: no class) and `confidence` (NaN:
    unknown).
    """
    parts = []
    for i, run in enumerate(runs):
        df = run.predictions
        if df is None or level(run) != of:
            continue
        part = pd.DataFrame({"run": i, "index": df["index"], "path": df["path"]})
        for ours, column in (("true", "target"), ("predicted", "prediction")):
            part[ours] = df[f"{of.name}/{column}"].fillna(-1).astype(np.int64)
        confidence = f"{of.name}/confidence"
        part["confidence"] = df[confidence].astype(float) if confidence in df else np.nan
        parts.append(part[part["true"] >= 0])
    return pd.concat(parts, ignore_index=True)


def wrong_pairs(df: pd.DataFrame, of: Level) -> pd.DataFrame:
    """Each pair of classes (`true`, `predicted`) that was confused, the most frequent first, of rows of `pooled`.

    Columns: `times`; `of`, the rows of the true class; `share` = times / of; `confidence`, the mean; `seeds`, in how
    many runs; `within`, whether both have the same parent. Equally frequent ones: the larger share, the higher
    confidence, the classes' order. Rows without a predicted class are no pair.
    """
    wrong = df[(df["true"] != df["predicted"]) & (df["predicted"] >= 0)]
    found = wrong.groupby(["true", "predicted"]).agg(
        times=("run", "size"), confidence=("confidence", "mean"), seeds=("run", "nunique")
    )
    found = found.reset_index()
    found["of"] = df.groupby("true").size().reindex(found["true"]).to_numpy()
    found["share"] = found["times"] / found["of"]
    parents = np.asarray(of.parent_of or [0] * len(of.classes))
    found["within"] = parents[found["true"].astype(int)] == parents[found["predicted"].astype(int)]
    order = ["times", "share", "confidence", "true", "predicted"]
    return found.sort_values(order, ascending=[False, False, False, True, True], ignore_index=True)


def counts(df: pd.DataFrame, classes: int, table: Sequence[int] | None = None) -> np.ndarray:
    """Confusion matrix int64 [C, C + 1] of rows of `pooled`: true class, predicted one, the last column: none.

    Args:
        classes: C.
        table: class of the matrix of each class of the task; None: the task's own.
    """
    true, predicted = df["true"].to_numpy(int), df["predicted"].to_numpy(int)
    if table is not None:
        true, predicted = (lift(np.asarray(table), classes) for classes in (true, predicted))
    predicted = np.where(predicted >= 0, predicted, classes)
    return np.bincount(true * (classes + 1) + predicted, minlength=classes * (classes + 1)).reshape(classes, -1)
