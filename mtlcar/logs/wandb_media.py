"""Pictures at the end of a run: confusion matrices and the worst errors, in `<run dir>/figures` and in W&B.

`df` is predictions.parquet (DESIGN section 5): `index`, `<task>/target`, `<task>/prediction`, `<task>/confidence`
(where the network gives scores).
"""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from lightning.pytorch.loggers import Logger
from matplotlib.figure import Figure

from mtlcar.logs.loggers import run_logs
from mtlcar.runs.files import replacing
from mtlcar.tasks import Task, TaskSet

Gather = Callable[[Sequence[int]], object]
"""Rows of the annotations -> their pictures, uint8 [B, 3, S, S] (array or tensor)."""

LABELLED = 60
"""Most classes whose names are written beside a confusion matrix."""


def confusion_figure(task: Task, targets: np.ndarray, predictions: np.ndarray) -> Figure:
    """Heat map of a classification: rows are true classes, in % of each true class's images.

    Args:
        targets: [N] class indices, -1 for a missing label (left out).
        predictions: [N] class indices, -1 for none (left out).

    With few classes each cell of at least 0.5 % has its number; with very many the class names give way to every
    tenth index.
    """
    n = len(task.classes)
    valid = (targets >= 0) & (predictions >= 0)
    counts = np.bincount(targets[valid].astype(int) * n + predictions[valid].astype(int), minlength=n * n).reshape(n, n)
    totals = counts.sum(1, keepdims=True)
    share = 100.0 * counts / np.maximum(totals, 1)
    named = n <= LABELLED
    side = float(np.clip(0.24 * n + 2.2, 4.2, 15.0)) if named else 9.0
    figure = Figure(figsize=(side + 0.9, side), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    # 3 % is already a confusion worth seeing: a root scale keeps it from being white.
    from matplotlib.colors import PowerNorm

    image = axes.imshow(share, cmap="Greys", norm=PowerNorm(0.5, 0, 100), interpolation="nearest")
    figure.colorbar(image, ax=axes, label="% of the true class's images", shrink=0.8, ticks=[0, 5, 25, 50, 100])
    if named:
        names = [textwrap.shorten(c, 24, placeholder="…") for c in task.classes]
        size = 8 if n <= 30 else 6.5
        axes.set_xticks(range(n), names, rotation=90, fontsize=size)
        axes.set_yticks(range(n), names, fontsize=size)
    else:
        axes.set_xticks(range(0, n, 10))
        axes.set_yticks(range(0, n, 10))
        axes.tick_params(labelsize=6, axis="both")
        axes.tick_params(axis="x", rotation=90)
    if n <= 20:
        for i, j in zip(*np.nonzero(share >= 0.5), strict=True):
            colour = "white" if share[i, j] > 25 else "black"
            axes.text(j, i, f"{share[i, j]:.0f}", ha="center", va="center", fontsize=7, color=colour)
    axes.set_xlabel(f"predicted {task.name}" + ("" if named else " (class index)"))
    axes.set_ylabel(f"true {task.name}" + ("" if named else " (class index)"))
    right = 100 * np.trace(counts) / max(counts.sum(), 1)
    axes.set_title(f"{task.name}: {right:.1f} % of {counts.sum()} images right", fontsize=10)
    return figure


def worst_errors(task: Task, df: pd.DataFrame, n: int) -> pd.DataFrame:
    """At most `n` rows of `df`, worst first: wrong classes by confidence, inexact values by absolute error."""
    target, prediction = df[f"{task.name}/target"], df[f"{task.name}/prediction"]
    if task.kind == "classification":
        wrong = df[(target >= 0) & (prediction >= 0) & (target != prediction)]
        by = [c for c in (f"{task.name}/confidence", "index") if c in df]  # no scores, no confidence
        return wrong.sort_values(by, ascending=[c == "index" for c in by]).head(n)
    error = (prediction - target).abs()
    order = np.lexsort((df["index"].to_numpy(), -error.fillna(-1.0).to_numpy()))
    return df.iloc[[i for i in order if error.iloc[i] > 0][:n]]


def worst_errors_figure(tasks: TaskSet, df: pd.DataFrame, gather: Gather, n: int = 24) -> Figure | None:
    """A grid of the worst test errors: per finest class task the surest wrong images, per value the largest errors.

    Args:
        gather: pictures of annotation rows, uint8 [B, 3, S, S].
        n: pictures in all, shared evenly between the tasks shown.

    Returns:
        The figure, or None when there is no error to show.
    """
    parents = {task.parent for task in tasks}
    shown = [t for t in tasks if t.name not in parents and f"{t.name}/prediction" in df]
    columns = 6
    each = max(n // max(len(shown), 1) // columns, 1) * columns
    sections = [(task, rows) for task in shown if len(rows := worst_errors(task, df, each))]
    if not sections:
        return None
    heights = [-(-len(rows) // columns) for _, rows in sections]
    figure = Figure(figsize=(1.75 * columns, 2.35 * sum(heights) + 0.35 * len(sections)), dpi=100, layout="constrained")
    parts = figure.subfigures(len(sections), 1, height_ratios=heights, squeeze=False)
    for part, height, (task, rows) in zip(parts[:, 0], heights, sections, strict=True):
        what = "wrong, surest first" if task.kind == "classification" else "largest absolute errors"
        part.suptitle(f"{task.name}: {what}", fontsize=10, fontweight="bold")
        pictures = np.asarray(gather([int(i) for i in rows["index"]])).transpose(0, 2, 3, 1)
        axes = part.subplots(height, columns, squeeze=False).ravel()
        for ax in axes:
            ax.axis("off")
        for ax, picture, (_, row) in zip(axes, pictures, rows.iterrows(), strict=False):
            ax.imshow(picture)
            ax.set_title(_caption(task, row), fontsize=6.5, loc="left", linespacing=1.1)
    return figure


def _caption(task: Task, row: pd.Series) -> str:
    target, prediction = row[f"{task.name}/target"], row[f"{task.name}/prediction"]
    if task.kind == "regression":
        unit = f" {task.unit}" if task.unit else ""
        return f"true: {target:.4g}{unit}\npredicted: {prediction:.4g}{unit}\nerror: {prediction - target:+.4g}{unit}"
    sure = f" ({row[f'{task.name}/confidence']:.0%})" if f"{task.name}/confidence" in row else ""
    # Room for two lines each at this size and width.
    true = textwrap.wrap("true: " + task.classes[int(target)], 27, max_lines=2, placeholder="…")
    guess = textwrap.wrap(f"pred.{sure}: " + task.classes[int(prediction)], 27, max_lines=2, placeholder="…")
    return "\n".join([*true, *guess])


def finish_figures(
    run_dir: Path,
    tasks: TaskSet,
    df: pd.DataFrame,
    gather: Gather,
    loggers: Sequence[Logger] = (),
    further: Mapping[str, Figure] | None = None,
) -> list[Path]:
    """Write the figures to `<run_dir>/figures` and log them to W&B where that is the logger.

    Args:
        further: name -> figure of a part's own.

    Returns:
        The PNG files: `confusion_<task>.png` for each class task with predictions, `worst_errors.png`, further ones.
    """
    figures: dict[str, Figure] = {}
    for task in tasks.classification:
        if f"{task.name}/prediction" in df:
            columns = (df[f"{task.name}/{c}"].fillna(-1).to_numpy() for c in ("target", "prediction"))
            figures[f"confusion_{task.name}"] = confusion_figure(task, *columns)
    worst = worst_errors_figure(tasks, df, gather)
    if worst is not None:
        figures["worst_errors"] = worst
    figures |= further or {}
    files = []
    for name, figure in figures.items():
        files.append(run_dir / "figures" / f"{name}.png")
        with replacing(files[-1]) as temporary:
            figure.savefig(temporary, format="png", facecolor="white")
    for logger in run_logs(loggers):
        logger.log_figures(files)
    return files
