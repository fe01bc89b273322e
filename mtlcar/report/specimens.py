"""Errors by specimen (group of test images that are not independent), each of which counts once."""

import numpy as np
import pandas as pd

from mtlcar.report.collect import Run
from mtlcar.report.comparison import Cell, Comparison
from mtlcar.report.intervals import Estimate, over_images, over_seeds
from mtlcar.report.per_image import WITHIN
from mtlcar.report.section import Row, Sheet
from mtlcar.report.table import best_of, heading, plain, text
from mtlcar.report.varied import NONE

WORST = 5


def by_specimen(df: pd.DataFrame, label: str, value: str) -> pd.DataFrame | None:
    """Per group of `df`, in order of its name, what is true and what was predicted for its tiles.

    Columns: `class` (index of most of its labels, -1 without), `true` and `predicted` (means over tiles), `low` and
    `high` (10 and 90 % quantile of the predictions), `mae`, `mape` and `tiles`. An image without a group is one of its
    own; one without a value takes no part. A prediction that is no number makes its group's errors NaN.
    None where no group has several images, or the value is not predicted.
    """
    if "group" not in df or f"{value}/prediction" not in df:
        return None
    alone = pd.Series([f"image {i}" for i in df["index"]], index=df.index)
    table = pd.DataFrame({"group": df["group"].where(df["group"].notna(), alone)})
    table["class"] = df[f"{label}/target"].fillna(-1).astype(int) if f"{label}/target" in df else -1
    table["true"] = df[f"{value}/target"].astype(float)
    table["predicted"] = df[f"{value}/prediction"].astype(float)
    table = table[table["true"].notna()].copy()
    table["mae"] = (table["predicted"] - table["true"]).abs()
    table["mape"] = 100 * table["mae"] / table["true"].abs().where(table["true"] != 0)
    grouped = table.groupby("group")
    if len(grouped) == len(table):
        return None
    found = grouped[["true", "predicted", "mae", "mape"]].mean()
    found["class"] = grouped["class"].agg(lambda classes: classes.mode().iloc[0])
    found["low"], found["high"] = (grouped["predicted"].quantile(q) for q in (0.1, 0.9))
    lost = table["predicted"].isna().groupby(table["group"]).any()
    found.loc[lost, ["predicted", "mae", "mape", "low", "high"]] = np.nan
    return found.assign(tiles=grouped.size())


def of_run(comparison: Comparison, run: Run) -> pd.DataFrame | None:
    """`by_specimen` of a run's predictions."""
    if comparison.pair is None or run.predictions is None:
        return None
    return by_specimen(run.predictions, *comparison.pair)


def specimen_table(comparison: Comparison) -> Sheet | None:
    """One row a cell: means over its specimens, of its seeds. None where no predictions name groups."""
    found = [(cell, seeds) for cell in comparison.cells if (seeds := _seeds(comparison, cell))]
    if comparison.pair is None or not found:
        return None
    value = comparison.pair[1]
    metrics = [f"{value}/{kind}" for kind in ("mae", "mape", "within_8")]
    numbers = [[_over_specimens(metric, seeds) for metric in metrics] for _, seeds in found]
    best = [best_of(metric, {i: row[j].mean for i, row in enumerate(numbers)}) for j, metric in enumerate(metrics)]
    rows: list[Row] = []
    for i, (cell, seeds) in enumerate(found):
        counts = [str(n) for n in dict.fromkeys(len(seed) for seed in seeds)]
        shown = [(text(metric, e), i in winners) for metric, e, winners in zip(metrics, numbers[i], best, strict=True)]
        rows.append([(cell.label, False), (str(len(seeds)), False), (", ".join(counts), False), *shown])
    heads = [heading(metric, comparison.units.get(value, "")) for metric in metrics[:2]]
    note = (
        "The mean over specimens of each one's mean over its tiles; a specimen is within 8 % where its MAPE is. "
        "± is half the 95 % t interval over seeds, [low, high] that over the specimens of the one seed "
        "(Wilson's for the share, else a studentized bootstrap)."
    )
    heads = ["cell", "n", "specimens", *heads, "within 8 %, % of specimens"]
    return Sheet("specimens", "Each specimen counted once", heads, rows, note=note)


def worst_table(comparison: Comparison) -> Sheet | None:
    """The specimens with the largest mean error, of each cell's first seed."""
    rows: list[Row] = []
    for cell in comparison.cells:
        seeds = _seeds(comparison, cell)
        if comparison.pair is None or not seeds:
            continue
        label, value = comparison.pair
        classes = cell.runs[0].tasks[label].classes
        worst = seeds[0].sort_values("mae", ascending=False, na_position="first", kind="stable").head(WORST)
        for name, row in worst.iterrows():
            index = int(row["class"])
            errors = [plain(f"{value}/{kind}", row[kind]) for kind in ("mae", "mape")]
            values = [f"{row['true']:.5g}", f"{row['predicted']:.4g}", *errors, f"{row['tiles']:g}"]
            rows.append([(v, False) for v in (cell.label, str(name), classes[index] if index >= 0 else NONE, *values)])
    if comparison.pair is None or not rows:
        return None
    label, value = comparison.pair
    unit = comparison.units.get(value, "")
    true, predicted = (f"{words}{f', {unit}' if unit else ''}" for words in ("true value", "mean predicted"))
    errors = [heading(f"{value}/{kind}", unit) for kind in ("mae", "mape")]
    heads = ["cell", "specimen", label, true, predicted, *errors, "tiles"]
    title = f"The {WORST} worst specimens of each cell"
    return Sheet("worst_specimens", title, heads, rows, note="Of each cell's first seed, by MAE.")


def _seeds(comparison: Comparison, cell: Cell) -> list[pd.DataFrame]:
    found = [of_run(comparison, run) for run in cell.runs]
    return [table for table in found if table is not None]


def _over_specimens(metric: str, seeds: list[pd.DataFrame]) -> Estimate:
    values = [_values(metric, seed) for seed in seeds]
    found = over_seeds([float(v.mean()) for v in values])
    if len(values) > 1 or not len(values[0]):
        return found
    return Estimate(found.mean, *over_images(values[0]), n=1, values=found.values)


def _values(metric: str, specimens: pd.DataFrame) -> np.ndarray:
    kind = metric.rpartition("/")[2]
    if kind == "within_8":
        return (specimens["mape"] <= 100 * WITHIN).to_numpy()
    return specimens[kind].to_numpy(float)
