"""What history.csv says of a cell, epoch by epoch."""

import numpy as np
import pandas as pd

from mtlcar.report.comparison import Cell


def curve(cell: Cell, name: str) -> pd.DataFrame:
    """Mean, min, max and count of a column over the runs that have an epoch, by epoch from 1.

    What is no number is left out; empty where no run has any.
    """
    parts = [run.history[["epoch", name]].dropna() for run in cell.runs if {"epoch", name} <= set(run.history.columns)]
    if not parts:
        return pd.DataFrame(columns=["mean", "min", "max", "count"])
    table = pd.concat(parts).astype(float)
    table = table[np.isfinite(table[name])]
    found = table.groupby("epoch")[name].agg(["mean", "min", "max", "count"]).sort_index()
    found.index = found.index.astype(int) + 1
    return found
