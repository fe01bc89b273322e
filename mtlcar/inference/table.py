"""Rows of predictions as JSON, CSV and an aligned table."""

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from mtlcar.data.file_bytes import shown
from mtlcar.inference.intervals import COVERAGE, Interval
from mtlcar.listing.tables import number, print_table
from mtlcar.tasks import Task, TaskSet

Row = dict[str, Any]
NOT_TASKS = ("file", "error", "unlike")
"""Columns of the CSV that are no task's. A task that is called so gets `task/` before its name."""
PERCENT = f"{100 * COVERAGE:.0f} %"


def as_json(rows: Sequence[Row]) -> str:
    """One list, an object a picture."""
    rows = [{**row, "file": shown(row["file"])} for row in rows]
    return json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def as_csv(rows: Sequence[Row], tasks: TaskSet, top: int) -> str:
    """A header, and a line a picture. Columns: `file`; of a classification `<task>`, `<task>/probability` (or
    `<task>/score`) and, from the most probable on, `<task>/top1`, `<task>/top1/probability`, ...; of a value `<task>`,
    `<task>/unit`, `<task>/low` and `<task>/high`; what the label transform adds; `unlike/score`, `unlike/threshold`,
    `unlike/flag`; `error`. What there is not is empty. See `NOT_TASKS` for tasks with one of these names."""
    flat = [_flat(row) for row in rows]
    present = {name for row in flat for name in row}
    order = ["file"]
    for name in map(_column, tasks.names):
        order += [name, *(f"{name}/{key}" for key in ("probability", "score", "unit", "low", "high"))]
        order += [f"{name}/top{k}{end}" for k in range(1, top + 1) for end in ("", "/probability", "/score")]
    last = ["unlike/score", "unlike/threshold", "unlike/flag", "error"]
    order += [*sorted(present - {*order, *last}), *last]
    text = io.StringIO()
    names = [name for name in order if name in present or name in ("file", *last)]
    writer = csv.DictWriter(text, names, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def _flat(row: Row) -> Row:
    found: Row = {"file": shown(row["file"])}
    if "error" in row:
        return {**found, "error": row["error"]}
    for task, said in row["tasks"].items():
        name = _column(task)
        found[name] = said["value"] if "value" in said else said["class"]
        found |= {f"{name}/{key}": said[key] for key in ("probability", "score", "unit") if key in said}
        for k, best in enumerate(said.get("top", ()), start=1):
            found[f"{name}/top{k}"] = best["class"]
            found |= {f"{name}/top{k}/{key}": best[key] for key in ("probability", "score") if key in best}
        if said.get("interval"):
            found[f"{name}/low"], found[f"{name}/high"] = said["interval"]
    found |= row["columns"]
    if row["unlike"] is not None:
        found |= {f"unlike/{key}": value for key, value in row["unlike"].items()}
    return found


def _column(task: str) -> str:
    return f"task/{task}" if task in NOT_TASKS else task


def as_text(rows: Sequence[Row], tasks: TaskSet, top: int, width: int | None = None) -> str:
    """A table: for each picture its predictions, and below them the next classes in order of probability.

    Args:
        width: characters of a terminal, on which a table is folded and coloured; None: of any width, plain.
    """
    said_of = [task for task in tasks if any(task.name in row.get("tasks", {}) for row in rows)]
    heads, right = ["file"], []
    for task in said_of:
        if task.kind == "classification":
            right.append(len(heads) + 1)
            heads += [task.name, "%"]
        else:
            right.append(len(heads))
            heads += [f"{task.name} ({task.unit})" if task.unit else task.name, f"{PERCENT} interval"]
    heads.append("")
    lines: list[list[str]] = []
    for row in rows:
        cells = [[shown(row["file"])]]
        for task in said_of:
            said = row.get("tasks", {}).get(task.name)
            cells += [[], []] if said is None else _class_cells(said, top) if task.classes else _value_cells(said)
        cells.append([_note(row)])
        depth = max(map(len, cells))
        lines += [[cell[i] if i < len(cell) else "" for cell in cells] for i in range(depth)]
    terminal = width is not None
    console = Console(file=io.StringIO(), force_terminal=terminal, width=width)
    print_table(heads, lines, right=right, console=console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return str(text)


def _class_cells(said: Row, top: int) -> list[list[str]]:
    """Names and percentages; the predicted class first, which need not be the most probable one of its level. Without
    probabilities the predicted class alone: nobody could read a table of scores."""
    first = [said] if said["class"] is not None else [{"class": "none"}]
    others = [best for best in said.get("top", ()) if best["index"] != said["index"] and "probability" in best]
    listed = [*first, *others][: max(1, min(top, len(said.get("top", ())) or 1))]
    shares = [f"{100 * best['probability']:.1f}" if "probability" in best else "" for best in listed]
    return [[best["class"] for best in listed], shares]


def _value_cells(said: Row) -> list[list[str]]:
    value, interval = said["value"], said["interval"]
    return [[number(value)], ["" if interval is None else f"{number(interval[0])} to {number(interval[1])}"]]


def _note(row: Row) -> str:
    if "error" in row:
        return f"not read: {row['error']}"
    return "unlike the training images" if (row["unlike"] or {}).get("flag") else ""


def sentence_of_interval(task: Task, interval: Interval, *, cut: bool = False) -> str:
    """What an interval is worth, for whoever reads it.

    Args:
        cut: whether the test images were cut out along boxes, and so held the object alone.
    """
    images = f"{interval.images} test images"
    groups = "" if interval.groups in (None, interval.images) else f" in {interval.groups} groups"
    if not (math.isfinite(interval.half) or interval.classes):
        return f"{task.name}: no {PERCENT} interval; {images}{groups} are too few to say."
    return (
        f"{task.name}: {PERCENT} intervals from the errors on {images}{groups}; they hold for pictures like those"
        f"{', cut to the object' if cut else ''}"
        f"{' of a new group' if groups else ''}."
    )
