"""Accuracy and errors for each class of a comparison: a mean over all images hides a class that a method gets wrong."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mtlcar.report.comparison import Comparison
from mtlcar.report.section import Row, Sheet
from mtlcar.report.table import best_of, digits, heading, plain
from mtlcar.report.varied import NONE

MOST_CLASSES = 30
"""Tables of more classes cannot be read; metrics.json has them."""


def by_class(df: pd.DataFrame, label: str, value: str) -> pd.DataFrame | None:
    """Per class index of the labels: `images`, `accuracy`, and `mae`, `mape` and `bias` (mean of prediction - label).

    NaN where the task is not predicted, or a prediction is no number. None where the labels' class is not there.
    """
    if f"{label}/target" not in df:
        return None
    target = df[f"{label}/target"].fillna(-1).astype(int)
    table = pd.DataFrame({"class": target, "accuracy": np.nan, "mae": np.nan, "mape": np.nan, "bias": np.nan})
    if f"{label}/prediction" in df:
        table["accuracy"] = (df[f"{label}/prediction"].fillna(-1).astype(int) == target).astype(float)
    table["lost"] = False
    if f"{value}/prediction" in df:
        true = df[f"{value}/target"].astype(float)
        error = df[f"{value}/prediction"].astype(float) - true
        table["bias"], table["mae"], table["lost"] = error, error.abs(), error.isna() & true.notna()
        table["mape"] = 100 * error.abs() / true.abs().where(true != 0)
    grouped = table[target >= 0].groupby("class")
    means = grouped.mean()
    means.loc[means.pop("lost") > 0, ["mae", "mape", "bias"]] = np.nan
    return means.assign(images=grouped.size())


def class_table(comparison: Comparison) -> Sheet | None:
    """Rows: classes x cells, so that the cells stand side by side; means over seeds. None without class and value."""
    if comparison.pair is None:
        return None
    label, value = comparison.pair
    classes = next(run.tasks[label].classes for run in comparison.runs)
    found: list[tuple[str, pd.DataFrame]] = []
    for cell in comparison.cells:
        parts = [by_class(run.predictions, label, value) for run in cell.runs if run.predictions is not None]
        seeds = [part for part in parts if part is not None]
        if seeds:
            found.append((cell.label, _mean(seeds)))
    if not found or len(classes) > MOST_CLASSES:
        return None
    metrics = {"accuracy": f"{label}/accuracy", "mae": f"{value}/mae", "mape": f"{value}/mape"}
    rows: list[Row] = []
    for index, name in enumerate(classes):
        having = [(cell, means.loc[index].to_dict()) for cell, means in found if index in means.index]
        best = {m: best_of(m, {i: row[key] for i, (_, row) in enumerate(having)}) for key, m in metrics.items()}
        for i, (cell_label, row) in enumerate(having):
            numbers = [(_shown(metric, row[key]), i in best[metric]) for key, metric in metrics.items()]
            bias = NONE if np.isnan(row["bias"]) else f"{row['bias']:+.{digits(metrics['mae'], row['mae'])}f}"
            rows.append([(name, False), (cell_label, False), (f"{row['images']:g}", False), *numbers, (bias, False)])
    unit = comparison.units.get(value, "")
    heads = [label, "cell", "test images", *(heading(metric, unit) for metric in metrics.values())]
    heads.append(f"{value} bias" + (f", {unit}" if unit else ""))
    note = "Means over seeds. Bias: mean of prediction - label. The best value of a class is bold."
    return Sheet("per_class", "Per class", heads, rows, note=note)


def _mean(seeds: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Means over seeds of those that have a class; NaN in one is NaN in the mean."""
    grouped = pd.concat(seeds).groupby(level=0)
    return grouped.mean().where(grouped.count().eq(grouped.size(), axis=0))


def _shown(metric: str, value: float) -> str:
    return NONE if np.isnan(value) else plain(metric, value)
