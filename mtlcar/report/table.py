"""The numbers of a comparison as rows of text, and as CSV."""

import math
from collections.abc import Mapping

import pandas as pd

from mtlcar.metrics.direction import lower_is_better
from mtlcar.report.comparison import Cell, Comparison
from mtlcar.report.intervals import Estimate
from mtlcar.report.varied import NONE


def percent(metric: str) -> bool:
    """Whether a metric is a fraction, shown in %."""
    kind = metric.rsplit("/", 1)[-1]
    return kind.endswith(("accuracy", "consistency", "macro_f1", "within_8")) or (
        kind.startswith("top") and kind[3:].isdigit()
    )


def heading(metric: str, unit: str = "") -> str:
    """A metric as a column is headed, with its unit: `make %`, `hardness MAE, HV`."""
    owner, _, kind = metric.rpartition("/")
    fixed = {
        "hierarchy/consistency": "consistent %",
        "hierarchy/full_path_accuracy": "full path %",
        "hierarchy/mistake_severity": "severity, levels",
        "hierarchy/distance": "distance, levels",
        "parameters": "parameters, M",
        "minutes": "fit, min",
    }
    if metric in fixed:
        return fixed[metric]
    words = {
        "accuracy": f"{owner} %",
        "implied_accuracy": f"{owner} implied %",
        "mae": f"{owner} MAE" + (f", {unit}" if unit else ""),
        "mape": f"{owner} MAPE %",
        "mse": f"{owner} MSE" + (f", {unit}²" if unit else ""),
        "within_8": "within 8 %, % of images",
        "mape_if_right": "MAPE % if class right",
    }
    return words.get(kind, metric + (" %" if percent(metric) else ""))


def axis_label(metric: str, unit: str = "") -> str:
    """A metric as an axis is labelled: as its column, with `accuracy` written out."""
    words = heading(metric, unit)
    if not words.endswith(" %"):
        return words
    return words.removesuffix(" %") + (" accuracy, %" if metric.endswith("accuracy") else ", %")


def headings(comparison: Comparison) -> list[str]:
    """Column heads of `rows`."""
    metrics = [heading(m, comparison.units.get(m.rpartition("/")[0], "")) for m in comparison.metrics]
    return [*(comparison.titles or ["runs"]), "n", *metrics]


def best(comparison: Comparison, metric: str) -> set[int]:
    """Indices of the cells whose mean, as it is shown, is the best; none where all are equal or only one has it.

    An implied class competes under `implied_accuracy` alone, not as a prediction as well; an error where the class is
    right and the severity of mistakes do not compete, because each cell's is of other images; nor do minutes, which
    other load on the machine changes more than most settings."""
    if metric.endswith(("_if_right", "/mistake_severity")) or metric == "minutes":
        return set()
    having = {
        i: c.numbers[metric].mean
        for i, c in enumerate(comparison.cells)
        if metric in c.numbers and not any(metric == f"{name}/accuracy" for run in c.runs for name in run.implied)
    }
    return best_of(metric, having)


def best_of(metric: str, means: Mapping[int, float]) -> set[int]:
    """The keys whose value, as it is shown, is the best; none where all are equal. NaN is never the best."""
    numbers = {i: mean for i, mean in means.items() if not math.isnan(mean)}
    shown = {i: plain(metric, mean) for i, mean in numbers.items()}
    if len(set(shown.values())) < 2:
        return set()
    pick = min if lower_is_better(metric) else max
    top = shown[pick(numbers, key=lambda i: numbers[i])]
    return {i for i, value in shown.items() if value == top}


def plain(metric: str, mean: float) -> str:
    """A number as the tables show it, without an interval."""
    return text(metric, Estimate(mean, math.nan, math.nan, 1))


def rows(comparison: Comparison, *, short: bool = False) -> list[list[tuple[str, bool]]]:
    """Per cell: (text, is the best of its column). Accuracies in % with one decimal; `short` leaves [low, high] out."""
    winners = {metric: best(comparison, metric) for metric in comparison.metrics}
    table = []
    for i, cell in enumerate(comparison.cells):
        labels = [(v, False) for v in cell.values or ("all",)]
        numbers = [
            (text(metric, cell.numbers[metric], short=short), i in winners[metric])
            if metric in cell.numbers
            else (NONE, False)
            for metric in comparison.metrics
        ]
        table.append([*labels, (str(len(cell.runs)), False), *numbers])
    return table


def text(metric: str, e: Estimate, *, short: bool = False) -> str:
    """`84.1 ± 0.9` over seeds, `84.1 [82.3, 85.8]` over the images of one seed, `84.1` without an interval."""
    if metric == "parameters":
        return f"{e.mean / 1e6:.{4 if e.mean < 1e6 else 3}f}"
    scale = 100.0 if percent(metric) else 1.0
    places = digits(metric, e.mean)
    shown = f"{scale * e.mean:.{places}f}"
    if not e.has_interval:
        return shown
    if e.n > 1:
        return f"{shown} ± {scale * (e.high - e.mean):.{places}f}"
    return shown if short else f"{shown} [{scale * e.low:.{places}f}, {scale * e.high:.{places}f}]"


def digits(metric: str, value: float) -> int:
    """Decimal places of a number, in the unit in which it is shown."""
    if percent(metric) or metric == "minutes" or metric.endswith(("/mape", "/mape_if_right")):
        return 1
    # An error in the label's unit: three significant digits, whatever the unit.
    return 0 if value == 0 or not math.isfinite(value) else max(0, 2 - math.floor(math.log10(abs(value))))


def frame(comparison: Comparison) -> pd.DataFrame:
    """One row a cell with full precision: accuracies as fractions, `<metric>`, `<metric>/low`, `<metric>/high`."""
    return pd.DataFrame([_record(comparison, cell) for cell in comparison.cells])


def _record(comparison: Comparison, cell: Cell) -> dict[str, object]:
    record: dict[str, object] = {"data": comparison.dataset}
    if comparison.split is not None:
        record["split"] = comparison.split
    record |= dict(zip(comparison.titles, cell.values, strict=True))
    record |= {"n": len(cell.runs), "runs": " ".join(run.name for run in cell.runs)}
    for metric in comparison.metrics:
        e = cell.numbers.get(metric)
        record[metric] = math.nan if e is None else e.mean
        if metric not in ("parameters", "minutes"):
            record[f"{metric}/low"] = math.nan if e is None else e.low
            record[f"{metric}/high"] = math.nan if e is None else e.high
    return record


def run_headings() -> list[str]:
    return ["cell", "seed", "run directory", "best epoch", "fit, min"]


def run_rows(comparison: Comparison) -> list[list[tuple[str, bool]]]:
    """One row a run, so that each number can be traced to its directory."""
    table = []
    for cell, run, seed in comparison.each_run():
        epoch = run.metrics.get("best", {}).get("epoch")
        epoch = epoch + 1 if isinstance(epoch, int) else NONE  # counted from 1, as while training
        seconds = run.metrics.get("timing", {}).get("fit_seconds")
        minutes = f"{seconds / 60:.1f}" if isinstance(seconds, int | float) else NONE
        table.append([(str(t), False) for t in (cell.label, seed, run.name, epoch, minutes)])
    return table
