"""Runs on one dataset, brought together: cells (what varied), their seeds, and their numbers with intervals."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from mtlcar.report.collect import Run
from mtlcar.report.intervals import Estimate, over_images, over_seeds
from mtlcar.report.per_image import per_image
from mtlcar.report.varied import NONE, Settings, by_content, constant, is_seed, settings, show, title, varied


@dataclass
class Cell:
    """One combination of what varied; `runs` are its seeds."""

    values: tuple[str, ...]
    label: str = "all runs"
    runs: list[Run] = field(default_factory=list)
    numbers: dict[str, Estimate] = field(default_factory=dict)


@dataclass
class Comparison:
    """All runs on one dataset.

    Attributes:
        keys: the settings that varied, dotted; `titles` are their column names.
        fixed: the settings that did not.
        metrics: test metrics shown, in the order of the tasks, then `parameters` and `minutes`.
        repeats: runs left out because a newer one has the same settings and seed.
        doubtful: the same, but the fingerprints differ: a sentence each.
        disagree: what metrics.json and predictions.parquet do not agree on.
    """

    dataset: str
    keys: list[str]
    titles: list[str]
    fixed: Settings
    cells: list[Cell]
    metrics: list[str]
    units: dict[str, str]
    repeats: list[str]
    doubtful: list[str]
    disagree: list[str]

    @property
    def runs(self) -> list[Run]:
        return [run for cell in self.cells for run in cell.runs]

    def each_run(self) -> list[tuple[Cell, Run, str]]:
        """(cell, run, its seed) of every run."""
        return [(cell, run, replicate(run)) for cell in self.cells for run in cell.runs]

    @property
    def seeds(self) -> list[str]:
        return sorted({replicate(run) for run in self.runs})


def flat(run: Run) -> Settings:
    return settings(run.config, run.tasks.names)


def replicate(run: Run) -> str:
    """The run's seeds: what tells repetitions of one cell apart, such as `0` or `0, data.split_seed 1`."""
    seeds = {key: show(value) for key, value in flat(run).items() if is_seed(key)}
    others = [f"{key} {value}" for key, value in seeds.items() if key != "seed" and value != "0"]
    return ", ".join([seeds.get("seed", "none"), *others])


def compare(runs: Sequence[Run]) -> list[Comparison]:
    """One comparison per dataset, in order of first appearance."""
    datasets: dict[str, list[Run]] = {}
    for run in runs:
        datasets.setdefault(str(flat(run).get("data.name", "data")), []).append(run)
    return [_compare(name, some) for name, some in datasets.items()]


def _compare(dataset: str, runs: list[Run]) -> Comparison:
    flats = by_content([flat(run) for run in runs], [run.digests for run in runs])
    keys = sorted(varied(flats), key=lambda key: (key != "architecture.name", not key.endswith(".name")))
    titles = _titles(keys)
    cells: dict[tuple[str, ...], Cell] = {}
    repeats, doubtful = [], []
    for run, values in sorted(zip(runs, flats, strict=True), key=lambda pair: -pair[0].finished):
        cell_values = tuple(show(values[key]) if key in values else NONE for key in keys)
        cell = cells.setdefault(cell_values, Cell(cell_values, label(titles, cell_values)))
        newer = next((other for other in cell.runs if replicate(other) == replicate(run)), None)
        if newer is None:
            cell.runs.append(run)
        elif newer.fingerprint == run.fingerprint:
            repeats.append(run.name)
        else:
            doubtful.append(
                f"{run.name} is not counted: it shows the settings and seed of {newer.name}, which is newer, but its "
                "fingerprint is another, so something that the table does not show differs"
            )
    ordered = _in_order(list(cells.values()))
    metrics = shown_metrics(runs)
    disagree: list[str] = []
    for cell in ordered:
        cell.runs.sort(key=replicate)
        _estimate(cell, metrics, disagree)
    return Comparison(
        dataset=dataset,
        keys=keys,
        titles=titles,
        fixed=constant(flats),
        cells=ordered,
        metrics=[*metrics, *(m for m in ("parameters", "minutes") if any(m in c.numbers for c in ordered))],
        units={task.name: task.unit for run in runs for task in run.tasks.regression},
        repeats=repeats,
        doubtful=doubtful,
        disagree=disagree,
    )


def label(titles: Sequence[str], values: Sequence[str]) -> str:
    """A cell in words, `cascade · dropout 0.25`: a word says itself what it is, a number or yes/no needs its title."""
    pairs = [(t, v) for t, v in zip(titles, values, strict=True) if v != NONE]
    bare = [v if v[:1].isalpha() and v not in ("yes", "no", "none") else f"{t} {v}" for t, v in pairs]
    return " · ".join(bare) or "all runs"


def _in_order(cells: list[Cell]) -> list[Cell]:
    """Cells column by column: numbers by size, words as they first finished, which is the order they were typed in.

    The directories' own order is that of their fingerprints, which means nothing."""
    by_time = sorted(cells, key=lambda cell: (min(run.finished for run in cell.runs), cell.values))
    ranks: list[dict[str, float]] = []
    for column in zip(*(cell.values for cell in by_time), strict=True):
        values = list(dict.fromkeys(column))
        try:
            ranks.append({value: float(value) for value in values})
        except ValueError:
            ranks.append({value: float(i) for i, value in enumerate(values)})
    return sorted(by_time, key=lambda cell: [rank[v] for rank, v in zip(ranks, cell.values, strict=True)])


def _titles(keys: list[str]) -> list[str]:
    """The last word of each key, or as much of it as tells the keys apart."""
    short = [title(key).rsplit(".", 1)[-1] for key in keys]
    count = Counter(short)
    return [(s if count[s] == 1 else title(k)).replace("_", " ") for s, k in zip(short, keys, strict=True)]


def shown_metrics(runs: Sequence[Run]) -> list[str]:
    """The main test metrics that at least one run has, in the order of the tasks."""
    there = {name for run in runs for name in run.test}
    tasks = {task.name: task for run in runs for task in run.tasks}
    wanted = []
    for task in tasks.values():
        if task.kind == "classification":
            wanted += [f"{task.name}/accuracy", f"{task.name}/implied_accuracy"]
    wanted += ["hierarchy/consistency", "hierarchy/full_path_accuracy"]
    for task in tasks.values():
        if task.kind == "regression":
            wanted += [f"{task.name}/{error}" for error in ("mae", "mape", "mse")]
    return [name for name in wanted if name in there]


def _estimate(cell: Cell, metrics: Sequence[str], disagree: list[str]) -> None:
    for metric in metrics:
        having = [run for run in cell.runs if metric in run.test]
        if not having:
            continue
        estimate = over_seeds([run.test[metric] for run in having])
        for run in having:
            single = None if run.predictions is None else per_image(metric, run.predictions, run.tasks)
            if single is None:
                continue
            values = single.to_numpy()
            if not math.isclose(values.mean(), run.test[metric], rel_tol=1e-3, abs_tol=1e-4):
                disagree.append(
                    f"{run.name}: test {metric} is {run.test[metric]:.5g} in metrics.json, but {values.mean():.5g} "
                    "computed from predictions.parquet"
                )
            elif len(cell.runs) == 1:
                groups = None if run.groups is None else run.groups[single.index]
                estimate = Estimate(estimate.mean, *over_images(values, groups), n=1, values=estimate.values)
        cell.numbers[metric] = estimate
    for name, group, key, scale in (
        ("parameters", "cost", "parameters", 1.0),
        ("minutes", "timing", "fit_seconds", 1 / 60),
    ):
        found = [run.metrics.get(group, {}).get(key) for run in cell.runs]
        numbers = [float(value) * scale for value in found if isinstance(value, int | float)]
        if numbers:
            mean = sum(numbers) / len(numbers)
            cell.numbers[name] = Estimate(mean, math.nan, math.nan, len(numbers), tuple(numbers))


def lower_is_better(metric: str) -> bool:
    return metric.rsplit("/", 1)[-1] in ("mae", "mse", "rmse", "mape", "loss", "parameters", "minutes")
