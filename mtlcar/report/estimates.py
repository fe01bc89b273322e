"""The numbers of one cell: test metrics with their intervals, parameters and minutes."""

import math
from collections.abc import Sequence

import pandas as pd

from mtlcar.report.collect import Run
from mtlcar.report.intervals import Estimate, over_images, over_seeds
from mtlcar.report.per_image import per_image

FROM_PREDICTIONS = ("within_8", "mape_if_right", "mistake_severity")
"""Metrics computed from predictions.parquet where metrics.json has none (runs of before they existed)."""


def shown_metrics(runs: Sequence[Run], pair: tuple[str, str] | None) -> list[str]:
    """The main test metrics that at least one run has or may have, in the order of the tasks.

    Args:
        pair: the class and the value of tasks with exactly one value, which get more columns.
    """
    there = {name for run in runs for name in run.test}
    tasks = {task.name: task for run in runs for task in run.tasks}
    wanted = []
    for task in tasks.values():
        if task.kind == "classification":
            wanted += [f"{task.name}/accuracy", f"{task.name}/implied_accuracy"]
    wanted += ["hierarchy/consistency", "hierarchy/full_path_accuracy"]
    tree = ["hierarchy/mistake_severity"] if any(task.parent in tasks for task in tasks.values()) else []
    wanted += tree
    for task in tasks.values():
        if task.kind == "regression":
            wanted += [f"{task.name}/{error}" for error in ("mae", "mape", "mse")]
    shown = [name for name in wanted if name in there or name in tree]
    return [*shown, *([f"{pair[1]}/within_8", f"{pair[1]}/mape_if_right"] if pair else [])]


def estimate(runs: Sequence[Run], metrics: Sequence[str]) -> tuple[dict[str, Estimate], list[str]]:
    """Metric -> estimate over the seeds `runs` of a cell; and a sentence for each value that predictions contradict."""
    numbers: dict[str, Estimate] = {}
    disagree: list[str] = []
    for metric in metrics:
        values: list[float] = []
        single: tuple[float, float] | None = None
        for run in runs:
            images = _images(run, metric)
            stored = run.test.get(metric)
            if stored is None and images is not None and metric.rpartition("/")[2] in FROM_PREDICTIONS:
                stored = float(images.mean(skipna=False))
            if stored is None:
                continue
            values.append(stored)
            if images is None:
                continue
            again = float(images.mean(skipna=False))
            both_nan = math.isnan(again) and math.isnan(stored)
            if not both_nan and not math.isclose(again, stored, rel_tol=1e-3, abs_tol=1e-4):
                disagree.append(
                    f"{run.name}: test {metric} is {stored:.5g} in metrics.json, but {again:.5g} "
                    "computed from predictions.parquet"
                )
            elif len(runs) == 1:
                single = over_images(images.to_numpy(), None if run.groups is None else run.groups[images.index])
        if values:
            found = over_seeds(values)
            numbers[metric] = found if single is None else Estimate(found.mean, *single, n=1, values=found.values)
    for name, group, key, scale in (
        ("parameters", "cost", "parameters", 1.0),
        ("minutes", "timing", "fit_seconds", 1 / 60),
    ):
        costs = [run.metrics.get(group, {}).get(key) for run in runs]
        scaled = [float(value) * scale for value in costs if isinstance(value, int | float)]
        if scaled:
            numbers[name] = Estimate(sum(scaled) / len(scaled), math.nan, math.nan, len(scaled), tuple(scaled))
    return numbers, disagree


def _images(run: Run, metric: str) -> pd.Series | None:
    return None if run.predictions is None else per_image(metric, run.predictions, run.tasks)
