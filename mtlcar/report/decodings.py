"""What each network's levels say under each decoding, recomputed from the class probabilities that runs keep."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from mtlcar.metrics.decoding import DECODINGS
from mtlcar.metrics.scored_levels import scored_levels
from mtlcar.report.class_scores import read_scores
from mtlcar.report.collect import Run
from mtlcar.report.comparison import Cell, Comparison
from mtlcar.report.intervals import Estimate, over_images, over_seeds
from mtlcar.report.per_image import decoded, decoding_metrics, per_image
from mtlcar.report.render import Row
from mtlcar.report.section import Section, Sheet
from mtlcar.report.table import best_of, heading, text
from mtlcar.report.varied import NONE

NOTE = (
    "independent: each level's own most probable class. top_down: the most probable class of the coarsest level, then "
    "the most probable of its children. marginal: a coarse level by sums of the finest level's probabilities, its own "
    "head not asked. joint: the path with the largest product of all levels' probabilities. consistent: every class "
    "implies the class above it, as top_down and joint always do. severity: how many levels up a wrong finest class "
    "first meets the right one, mean over the wrong images (each row's own); distance: the same over all images, a "
    "right one counting 0 (arXiv 1912.09393). "
)
ALWAYS = ("top_down", "joint")
"""Decodings that are consistent by definition."""
INTERVALS = (
    "± is half the 95 % t interval of the mean over n seeds; [low, high] is the 95 % interval over the test images of "
    "the one seed (over whole groups, where images have them). "
)


@dataclass
class _Numbers:
    """Of one cell: decoding -> metric -> one value a seed, and of a single seed the interval over images."""

    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    images: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    seeds: int = 0

    def estimate(self, how: str, metric: str) -> Estimate | None:
        values = self.values.get(how, {}).get(metric, [])
        if not values:
            return None
        found = over_seeds(values)
        if metric == "hierarchy/consistency" and how in ALWAYS:  # not an estimate
            return Estimate(found.mean, math.nan, math.nan, found.n, found.values)
        if metric not in self.images.get(how, {}):
            return found
        return Estimate(found.mean, *self.images[how][metric], n=1, values=found.values)


def section(comparison: Comparison) -> Section | None:
    """A table of cells by decoding. None where no run keeps probabilities of two levels."""
    found = [(cell, numbers) for cell in comparison.cells if (numbers := _measure(cell)).seeds]
    if not found:
        return None
    metrics = [m for m in _metrics(comparison) if any(m in row for _, n in found for row in n.values.values())]
    rows: list[list[tuple[str, Estimate | None]]] = []
    labels: list[tuple[str, str, str]] = []
    for cell, numbers in found:
        for how in DECODINGS:
            labels.append((cell.label, how, str(numbers.seeds)))
            rows.append([(metric, numbers.estimate(how, metric)) for metric in metrics])
    sheet = Sheet(
        name="decodings",
        title="Levels decoded in four ways",
        heads=["cell", "decoding", "n", *map(heading, metrics)],
        rows=_shown(labels, rows, metrics),
        data=_frame(comparison, found, metrics),
        note=NOTE + INTERVALS + _left_out(comparison, [cell for cell, _ in found]),
    )
    return Section("How the levels are decoded", paragraphs=_paragraphs(found, comparison), sheets=[sheet])


def _metrics(comparison: Comparison) -> list[str]:
    return list(dict.fromkeys(metric for run in comparison.runs for metric in decoding_metrics(run.tasks)))


def _measure(cell: Cell) -> _Numbers:
    """The numbers of a cell; the probabilities of one run at a time are in memory."""
    numbers = _Numbers()
    for run in cell.runs:
        tables = decoded(columns, run.tasks) if (columns := _columns(run)) else {}
        numbers.seeds += bool(tables)
        for how, df in tables.items():
            for metric in decoding_metrics(run.tasks):
                images = per_image(metric, df, run.tasks)
                if images is None:
                    continue
                numbers.values.setdefault(how, {}).setdefault(metric, []).append(float(images.mean()))
                if len(cell.runs) == 1:
                    groups = None if run.groups is None else run.groups[images.index]
                    numbers.images.setdefault(how, {})[metric] = over_images(images.to_numpy(), groups)
    return numbers


def _columns(run: Run) -> dict[str, np.ndarray]:
    """Targets, predictions and probabilities of a run's levels, as `per_image.decoded` takes them; nothing is kept.

    Empty where predictions.parquet is missing or damaged, or where not every level whose scores are probabilities (a
    column of confidences says so) has whole ones.
    """
    df = run.predictions
    if df is None:
        return {}
    sure = scored_levels(run.tasks, {name for name in run.tasks.names if f"{name}/confidence" in df})
    scores = read_scores(run, sure) if len(sure) > 1 else {}
    if set(scores) != set(sure):
        return {}
    names = [f"{task.name}/{kind}" for task in run.tasks.classification for kind in ("target", "prediction")]
    return {name: df[name].fillna(-1).to_numpy(np.int64) for name in names if name in df} | {
        f"{name}/scores": values for name, values in scores.items()
    }


def _shown(
    labels: Sequence[tuple[str, str, str]], rows: Sequence[Sequence[tuple[str, Estimate | None]]], metrics: list[str]
) -> list[Row]:
    best: dict[str, set[int]] = {}
    for j, metric in enumerate(metrics):
        means = {i: e.mean for i, row in enumerate(rows) if (e := row[j][1]) is not None}
        # Two decodings are consistent by definition, and each row's severity is of its own mistakes.
        own = metric in ("hierarchy/consistency", "hierarchy/mistake_severity")
        best[metric] = set() if own else best_of(metric, means)
    return [
        [
            *((label, False) for label in labels[i]),
            *((NONE if e is None else text(metric, e), i in best[metric]) for metric, e in row),
        ]
        for i, row in enumerate(rows)
    ]


def _frame(comparison: Comparison, found: Sequence[tuple[Cell, _Numbers]], metrics: list[str]) -> pd.DataFrame:
    """Tidy: one row a cell, decoding and metric; accuracies as fractions."""
    records = []
    for cell, numbers in found:
        for how in DECODINGS:
            for metric in metrics:
                e = numbers.estimate(how, metric)
                if e is None:
                    continue
                record: dict[str, object] = {"data": comparison.dataset, "cell": cell.label, "decoding": how}
                record |= {"metric": metric, "n": e.n, "mean": e.mean, "low": e.low, "high": e.high}
                records.append(record | {"values": " ".join(map(repr, e.values))})
    return pd.DataFrame(records)


def _paragraphs(found: Sequence[tuple[Cell, _Numbers]], comparison: Comparison) -> list[str]:
    """What joint decoding changes against the network's own answers, paired by run."""
    metric = "hierarchy/full_path_accuracy"
    parts = []
    for cell, numbers in found:
        own, joint = (numbers.values.get(how, {}).get(metric, []) for how in ("independent", "joint"))
        if len(own) != numbers.seeds or len(joint) != numbers.seeds:
            continue
        change = over_seeds([100 * (b - a) for a, b in zip(own, joint, strict=True)])
        spread = "" if not change.has_interval else f" ± {change.high - change.mean:.1f}"
        parts.append(f"{cell.label} {change.mean:+.1f}{spread}")
    if not parts:
        return []
    return [
        "Images with every level right, joint decoding against each level by itself, in percentage points (difference "
        f"within each run, mean over seeds): {'; '.join(parts)}."
    ]


def _left_out(comparison: Comparison, there: Sequence[Cell]) -> str:
    missing = [cell.label for cell in comparison.cells if not any(cell is other for other in there)]
    if not missing:
        return ""
    return f"Not shown, because runs keep no probabilities of two levels: {', '.join(missing)}."
