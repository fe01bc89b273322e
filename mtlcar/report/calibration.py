"""Calibration in the report: a table and a reliability diagram of each class task."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from mtlcar.report.calibration_errors import BINS, Answers, answers, equal_width, interval, measures
from mtlcar.report.calibration_figure import FEW, Panel, reliability_figure
from mtlcar.report.comparison import Cell, Comparison
from mtlcar.report.figures import PANELS
from mtlcar.report.intervals import Estimate, over_images, over_seeds
from mtlcar.report.ranking import best_cells, main_metric
from mtlcar.report.render import Row
from mtlcar.report.section import Drawing, Section, Sheet
from mtlcar.report.varied import NONE

COLUMNS = {
    "accuracy": "accuracy %",
    "confidence": "mean confidence %",
    "gap": "confidence - accuracy, points",
    "ece": "ECE %",
    "chance": "ECE if calibrated %",
    "adaptive": "adaptive ECE %",
    "mce": "MCE %",
    "brier": "Brier score",
    "nll": "NLL, nats",
}
WITH_INTERVAL = ("gap", "ece", "adaptive", "brier", "nll")
"""The others are shown as means alone: the main table has the accuracy's interval, and the worst bin's says nothing."""
BEST = ("ece", "adaptive", "brier", "nll")
"""Columns whose least value is bold."""
MEANING = (
    "Of the images that a network is 80 % sure of, are 80 % right? ECE, the expected calibration error, is the mean "
    f"over images of |accuracy - mean confidence| of their bin, of {BINS} equally wide bins of confidence (Guo et al. "
    "2017); adaptive: of bins of equally many images; MCE: of the worst bin, however few images it has. ECE if "
    "calibrated: what a perfectly calibrated network with these confidences would show by chance on as many images; an "
    "ECE near it is no sign of bad calibration. Confidence - accuracy: above 0 the network is too sure of itself, "
    "below 0 not sure enough."
)

Found = list[tuple[Cell, list[Answers], dict[str, Estimate]]]


def section(comparison: Comparison) -> Section | None:
    """None where no run says how sure it is."""
    made = Section("Calibration", [MEANING])
    for task in dict.fromkeys(task.name for run in comparison.runs for task in run.tasks.classification):
        read = [(cell, [answers(run, task) for run in cell.runs]) for cell in comparison.cells]
        kept = [(cell, [a for a in seeds if a is not None]) for cell, seeds in read]
        found = [(cell, seeds, estimates(seeds)) for cell, seeds in kept if seeds]
        if found:
            made.sheets.append(_sheet(task, found))
            made.drawings.append(_drawing(comparison, task, found))
    return made if made.sheets else None


def estimates(seeds: Sequence[Answers]) -> dict[str, Estimate]:
    """A key of `COLUMNS` -> mean over seeds, with its t interval or with that over the images of the one seed."""
    each = [measures(a) for a in seeds]
    found = {}
    for key in COLUMNS:
        values = [m[key] for m in each if key in m]
        if not values:
            continue
        e = over_seeds(values)
        if len(seeds) == 1:
            e = Estimate(e.mean, *interval(key, seeds[0]), n=1, values=e.values)
        found[key] = e if key in WITH_INTERVAL else Estimate(e.mean, math.nan, math.nan, e.n, e.values)
    return found


def by_bin(seeds: Sequence[Answers]) -> pd.DataFrame:
    """Bins of equal width that have images, those of all seeds together.

    Columns: `confidence` and `accuracy` (means), `images`, and `low` and `high`: the range of the seeds' accuracies, or
    the 95 % interval over the images of one seed. Fractions. Index: the bin.
    """
    parts = [
        pd.DataFrame({"bin": equal_width(a.confidence), "confidence": a.confidence, "accuracy": a.right * 1.0})
        for a in seeds
    ]
    grouped = pd.concat(parts).groupby("bin")
    found = grouped.mean().assign(images=grouped.size())
    if len(seeds) > 1:
        means = pd.concat([part.groupby("bin")["accuracy"].mean() for part in parts]).groupby("bin")
        return found.assign(low=means.min(), high=means.max())
    rows = [np.flatnonzero(parts[0]["bin"] == b) for b in found.index]
    groups = seeds[0].groups
    ends = [over_images(seeds[0].right[i], None if groups is None else groups[i]) for i in rows]
    return found.assign(low=[low for low, _ in ends], high=[high for _, high in ends])


def _drawing(comparison: Comparison, task: str, found: Found) -> Drawing:
    best = best_cells(comparison, [cell for cell, *_ in found], PANELS)
    kept = [row for row in found if any(row[0] is cell for cell in best)]
    panels = [Panel(cell.label, by_bin(seeds), numbers["ece"].mean) for cell, seeds, numbers in kept]
    kinds = {len(seeds) > 1 for _, seeds, _ in kept}
    lines = {True: "the range of the seeds", False: "the 95 % interval over the images of the one seed"}
    caption = (
        f"{comparison.name}, {task}: accuracy against mean confidence in {BINS} bins of confidence, the images of all "
        f"seeds of a cell together. Vertical line: {', or '.join(lines[many] for many in sorted(kinds))}. "
        f"Hollow: fewer than {FEW} images. Dashed: perfectly calibrated; below it the network is too sure of itself. "
        "Bars: the share of the images in each bin."
    )
    if len(found) > PANELS:
        caption += f" Only the best {PANELS} of {len(found)} cells by test {main_metric(comparison)}."
    return Drawing(f"reliability_{task}", caption, reliability_figure(panels, BINS))


def _sheet(task: str, found: Found) -> Sheet:
    keys = [key for key in COLUMNS if any(key in numbers for *_, numbers in found)]
    best = {key: _least(key, [numbers[key] for *_, numbers in found if key in numbers]) for key in BEST}
    rows: list[Row] = []
    records = []
    for cell, seeds, numbers in found:
        having = {key: numbers.get(key) for key in keys}
        texts = [(_text(key, e), e is not None and _plain(key, e.mean) == best.get(key)) for key, e in having.items()]
        rows.append([(cell.label, False), (str(len(seeds)), False), *texts])
        for key, e in numbers.items():
            record = {"cell": cell.label, "task": task, "metric": key, "mean": e.mean, "low": e.low, "high": e.high}
            records.append(record | {"n": e.n})
    sizes = sorted({len(a.right) for _, seeds, _ in found for a in seeds})
    note = (
        f"{' to '.join(f'{n:,}' for n in dict.fromkeys((sizes[0], sizes[-1])))} test images a seed, n seeds. ± is half "
        "the 95 % t interval over seeds, [low, high] a bootstrap over the images of the one seed (over whole groups, "
        "where images are not independent). Brier score: 0 to 2. NLL: of the true class. The least value is bold."
    )
    left = [f"{n} of {cell.label}" for cell, seeds, _ in found if (n := sum(a.left_out for a in seeds))]
    if left:
        note += f" Images for which no class was predicted have no confidence and are left out: {', '.join(left)}."
    heads = ["cell", "n", *(COLUMNS[key] for key in keys)]
    return Sheet(f"calibration_{task}", f"Calibration of {task}", heads, rows, pd.DataFrame(records), note)


def _least(key: str, column: Sequence[Estimate]) -> str | None:
    """The least mean, as it is shown; None where all are equal."""
    shown = {_plain(key, e.mean): e.mean for e in column}
    return min(shown, key=lambda text: shown[text]) if len(shown) > 1 else None


def _plain(key: str, value: float) -> str:
    """In %, but `brier` and `nll`."""
    return f"{value:.3f}" if key in ("brier", "nll") else f"{100 * value:{'+' if key == 'gap' else ''}.1f}"


def _text(key: str, e: Estimate | None) -> str:
    """`4.2 ± 0.3` over seeds, `4.2 [3.6, 4.9]` over the images of one, `4.2`."""
    if e is None:
        return NONE
    mean, low, high = (_plain(key, v) for v in (e.mean, e.low, e.high))
    if not e.has_interval:
        return mean
    return f"{mean} ± {_plain(key, e.high - e.mean).lstrip('+')}" if e.n > 1 else f"{mean} [{low}, {high}]"
