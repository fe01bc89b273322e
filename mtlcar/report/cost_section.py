"""What each cell costs: parameters, multiply-adds, milliseconds an image, minutes of training."""

import math
from collections import Counter
from collections.abc import Sequence

import pandas as pd

from mtlcar.report.comparison import Cell, Comparison
from mtlcar.report.cost_numbers import GMACS, LATENCY, costs, device, fit_hours, shown
from mtlcar.report.section import Row, Section, Sheet
from mtlcar.report.varied import NONE

SIZES = ("parameters", "shared parameters", GMACS)
TIMES = ("minutes", "images/s", "step ms", "epochs")
LEAST = ("parameters", GMACS, f"{LATENCY}/all", "minutes", "step ms")
"""Columns whose least value is the best one; of images/s it is the largest. The others have no best."""

STEADY = 1.25
"""Most that the seeds of a cell may differ in the time of a step, as a ratio, for times to be compared."""


def section(comparison: Comparison) -> Section | None:
    """A table of time and cost per cell and the sum of all runs; None where no run says what it cost."""
    numbers = [costs(cell) for cell in comparison.cells]
    there = {name for found in numbers for name in found}
    tasks = [name for run in comparison.runs for name in run.tasks.names]
    found = [name for cell in numbers for name in cell if name.startswith(f"{LATENCY}/") and name != f"{LATENCY}/all"]
    order = [f"{LATENCY}/{name}" for name in dict.fromkeys(tasks)]
    latency = [f"{LATENCY}/all", *sorted(set(found), key=lambda n: (order.index(n) if n in order else len(order), n))]
    columns = [name for name in (*SIZES, *latency, *TIMES) if name in there]
    if not columns:
        return None
    devices = [[device(run) for run in cell.runs] for cell in comparison.cells]
    sheet = Sheet(
        "cost",
        "Time and cost",
        [*(comparison.titles or ["runs"]), "n", *map(_heading, columns), "device"],
        _rows(comparison.cells, numbers, columns, devices),
        _data(comparison, numbers, devices),
        _note(columns, numbers, devices),
    )
    return Section(sheet.title, paragraphs=_paragraphs(comparison), sheets=[sheet])


def _heading(name: str) -> str:
    if name.startswith(f"{LATENCY}/"):
        task = name.partition("/")[2]
        return "all tasks, ms" if task == "all" else f"{task} alone, ms"
    words = {"parameters": "parameters, M", "shared parameters": "shared, M", "minutes": "fit, min"}
    words |= {"images/s": "training, images/s", "step ms": "step, ms"}
    return words.get(name, name)


def _rows(
    cells: Sequence[Cell], numbers: Sequence[dict], columns: Sequence[str], devices: Sequence[Sequence[str]]
) -> list[Row]:
    """Means over seeds. Times have a best only where they can be compared."""
    same = len(_machines(devices)) == 1 and "" not in _machines(devices) and _unsteady(numbers) <= STEADY
    best: dict[str, str] = {}
    for name in columns:
        texts = {shown(name, found[name].mean): found[name].mean for found in numbers if name in found}
        timed = name.startswith(LATENCY) or name in TIMES
        if len(texts) < 2 or name not in (*LEAST, "images/s") or (timed and not same):
            continue
        best[name] = (max if name == "images/s" else min)(texts, key=texts.__getitem__)
    rows: list[Row] = []
    for cell, found, where in zip(cells, numbers, devices, strict=True):
        row = [(value, False) for value in cell.values or ("all",)] + [(str(len(cell.runs)), False)]
        for name in columns:
            text = shown(name, found[name].mean) if name in found else NONE
            row.append((text, name in found and best.get(name) == text))
        named = ", ".join(sorted(set(where) - {""})) or NONE
        rows.append([*row, (named, False)])
    return rows


def _machines(devices: Sequence[Sequence[str]]) -> set[str]:
    return {name for found in devices for name in found}


def _unsteady(numbers: Sequence[dict]) -> float:
    """How many times the slowest run of a cell took as long for a step as the fastest: they do the same."""
    steps = [found["step ms"].values for found in numbers if "step ms" in found]
    return max((max(values) / min(values) for values in steps), default=1.0)


def _data(comparison: Comparison, numbers: Sequence[dict], devices: Sequence[Sequence[str]]) -> pd.DataFrame:
    """One row a cell: each number's mean, and its least and largest where the runs differ."""
    records = []
    for cell, found, where in zip(comparison.cells, numbers, devices, strict=True):
        record: dict[str, object] = dict(zip(comparison.titles, cell.values, strict=True))
        record["n"] = len(cell.runs)
        for name, e in found.items():
            record[name] = e.mean
            if min(e.values) < max(e.values):
                record |= {f"{name}/least": min(e.values), f"{name}/most": max(e.values)}
        records.append(record | {"device": ", ".join(sorted(set(where)))})
    return pd.DataFrame(records)


def _paragraphs(comparison: Comparison) -> list[str]:
    hours = [fit_hours(run) for run in comparison.runs]
    timed = [value for value in hours if not math.isnan(value)]
    if not timed:
        return []
    total = sum(timed)
    long = f"{total:.1f} hours" if total >= 1 else f"{60 * total:.2g} minutes" if total >= 1 / 60 else "under a minute"
    parts = [f"All {len(timed)} runs together trained for {long}"]
    where: Counter[str] = Counter()
    for run, value in zip(comparison.runs, hours, strict=True):
        where[device(run) or "an unknown machine"] += 0.0 if math.isnan(value) else value  # type: ignore[assignment]
    if len(where) > 1:
        parts.append(": " + ", ".join(f"{value:.2g} h on {name}" for name, value in where.most_common()))
    elif "an unknown machine" not in where:
        parts.append(f" on {next(iter(where))}")
    found = ["".join(parts) + ", without tests, start-up and runs that are not counted here."]
    if len(timed) < len(hours):
        silent = len(hours) - len(timed)
        found.append(
            f"{silent} {'run does not say how long it' if silent == 1 else 'runs do not say how long they'} took."
        )
    resumed = sum(int(run.metrics.get("timing", {}).get("sessions") or 1) > 1 for run in comparison.runs)
    if resumed:
        found.append(
            f"{resumed} {'run was' if resumed == 1 else 'runs were'} interrupted and resumed; what was lost after the "
            "last checkpoint is not in these times."
        )
    return found


def _note(columns: Sequence[str], numbers: Sequence[dict], devices: Sequence[Sequence[str]]) -> str:
    parts = ["Means over n runs. Times compare only on one machine under one load."]
    if "shared parameters" in columns:
        parts.append("shared: trained parameters that more than one task's loss reaches.")
    if GMACS in columns:
        parts.append("GMACs: 1e9 multiply-adds of the evaluated network for one image, without norms and activations.")
    if any(name.startswith(LATENCY) for name in columns):
        parts.append("ms: median time for one image, all tasks at once or one task alone, on the device named.")
    if "step ms" in columns:
        parts.append("step: median time of a training batch as the host sees it.")
    if len(_machines(devices)) > 1:
        parts.append("The runs were on several machines, so no time is marked as the best.")
    elif (times := _unsteady(numbers)) > STEADY:
        parts.append(
            f"A step took up to {times:.1f} times as long in one seed as in another of the same cell: the machine had "
            "other work too, so no time is marked as the best."
        )
    return " ".join(parts)
