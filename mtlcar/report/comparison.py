"""Runs on one dataset's test images together: cells (what varied), their seeds, and their numbers with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from mtlcar.report.collect import Run
from mtlcar.report.estimates import estimate, shown_metrics
from mtlcar.report.intervals import Estimate
from mtlcar.report.per_image import class_and_value
from mtlcar.report.varied import (
    METHOD,
    NONE,
    Settings,
    by_content,
    column_titles,
    constant,
    is_seed,
    settings,
    show,
    varied,
)


@dataclass
class Cell:
    """One combination of what varied; `runs` are its seeds."""

    values: tuple[str, ...]
    label: str = "all runs"
    runs: list[Run] = field(default_factory=list)
    numbers: dict[str, Estimate] = field(default_factory=dict)


@dataclass
class Comparison:
    """All runs on one dataset, or on one split of it where there are several.

    Attributes:
        split: the `data.split` of these runs; None where all runs on the dataset have the same.
        keys: the settings that varied, dotted; `titles` are their column names.
        fixed: the settings that did not.
        differing: the settings that did, seeds and those folded into a name or method too -> their values.
        pair: the class task and the value that tables by class and by specimen are of; None for other tasks.
        metrics: test metrics shown, in the order of the tasks, then `parameters` and `minutes`.
        repeats: runs left out because a newer one has the same settings and seed.
        doubtful: the same, but the fingerprints differ: a sentence each.
        disagree: what metrics.json and predictions.parquet do not agree on.
    """

    dataset: str
    split: str | None
    keys: list[str]
    titles: list[str]
    fixed: Settings
    differing: dict[str, list[str]]
    pair: tuple[str, str] | None
    cells: list[Cell]
    metrics: list[str]
    units: dict[str, str]
    repeats: list[str]
    doubtful: list[str]
    disagree: list[str]

    @property
    def name(self) -> str:
        """`advanced_steel`, or `advanced_steel, split grouped` where other splits are compared too."""
        return self.dataset if self.split is None else f"{self.dataset}, split {self.split}"

    def values(self, key: str) -> list[str]:
        """What the runs have for a setting; empty where they have no such setting."""
        return [show(self.fixed[key])] if key in self.fixed else self.differing.get(key, [])

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
    """One comparison per dataset, in order of first appearance, and per split of it (other test images are another
    comparison), as they first finished."""
    datasets: dict[str, dict[str | None, list[Run]]] = {}
    for run in runs:
        values = flat(run)
        split = show(values["data.split"]) if "data.split" in values else None
        datasets.setdefault(str(values.get("data.name", "data")), {}).setdefault(split, []).append(run)
    return [
        _compare(name, split if len(splits) > 1 else None, some)
        for name, splits in datasets.items()
        for split, some in sorted(splits.items(), key=lambda item: min(run.finished for run in item[1]))
    ]


def _compare(dataset: str, split: str | None, runs: list[Run]) -> Comparison:
    flats = by_content([flat(run) for run in runs], [run.digests for run in runs])
    first = (METHOD, "architecture.name")
    keys = sorted(
        varied(flats), key=lambda key: (first.index(key) if key in first else len(first), not key.endswith(".name"))
    )
    titles = column_titles(keys)
    fixed = constant(flats)
    cells: dict[tuple[str, ...], Cell] = {}
    repeats, doubtful = [], []
    for run, values in sorted(zip(runs, flats, strict=True), key=lambda pair: -pair[0].finished):
        cell_values = tuple(show(values[key]) if key in values else NONE for key in keys)
        called = label(titles, cell_values) if keys else str(fixed.get(METHOD, "all runs"))
        cell = cells.setdefault(cell_values, Cell(cell_values, called))
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
    pairs = {class_and_value(run.tasks) for run in runs}
    pair = pairs.pop() if len(pairs) == 1 else None
    metrics = shown_metrics(runs, pair)
    disagree: list[str] = []
    for cell in ordered:
        cell.runs.sort(key=replicate)
        cell.numbers, contradicted = estimate(cell.runs, metrics)
        disagree += contradicted
    return Comparison(
        dataset=dataset,
        split=split,
        keys=keys,
        titles=titles,
        fixed=fixed,
        differing=_differing(flats, fixed),
        pair=pair,
        cells=ordered,
        metrics=[m for m in (*metrics, "parameters", "minutes") if any(m in c.numbers for c in ordered)],
        units={task.name: task.unit for run in runs for task in run.tasks.regression},
        repeats=repeats,
        doubtful=doubtful,
        disagree=disagree,
    )


def _differing(runs: Sequence[Settings], fixed: Settings) -> dict[str, list[str]]:
    keys = dict.fromkeys(key for run in runs for key in run if key not in fixed)
    shown = {key: {show(run[key]) if key in run else NONE for run in runs} for key in keys}
    return {key: sorted(values, key=lambda v: (len(v), v)) for key, values in shown.items()}


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
