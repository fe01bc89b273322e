"""CompCars' web-nature images (see `compcars.py` for the layout)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mtlcar.data.annotations import MISSING_CLASS, Annotations
from mtlcar.data.car_levels import level_tasks
from mtlcar.data.compcars_lists import (
    HOW,
    full_name,
    is_count,
    parse_id,
    read_lists,
    seen_in_training,
    text_lines,
    unique_names,
)
from mtlcar.data.listed_files import check_boxes, find_root, keep_present, present
from mtlcar.data.matfile import load_variable, strings
from mtlcar.errors import UserError, did_you_mean
from mtlcar.tasks import Task, TaskSet

LEVELS = ("make", "model", "year", "type")
VIEWS = {-1: "unknown", 1: "front", 2: "rear", 3: "side", 4: "front-side", 5: "rear-side"}
UNITS = {"maximum_speed": "km/h", "displacement": "L"}
COUNTS = ("door_number", "seat_number")
COLUMNS = ("model_id", "maximum_speed", "displacement", "door_number", "seat_number", "type")


def read_web(
    root: Path | str | None,
    levels: tuple[str, ...],
    triple: bool,
    attributes: tuple[str, ...],
    views: tuple[str, ...] | None,
    drop_unseen: bool,
    max_missing: float,
) -> tuple[Annotations, TaskSet]:
    """The listed images; arguments as in `compcars.read`."""
    for name in attributes:
        if name not in (*UNITS, *COUNTS):
            known = (*UNITS, *COUNTS)
            raise UserError(f"data.attributes: no {name!r}; there are {', '.join(known)}.{did_you_mean(name, known)}")
    places = [(f, "train_test_split/classification/train.txt") for f in (".", "data", "data/data", "compcars/data")]
    base = find_root(root, places, "CompCars (web)", HOW)
    misc = next((m for m in (base / "misc", base.parent / "misc") if m.is_dir()), base / "misc")
    names_file = misc / "make_model_name.mat"
    make_names = strings(load_variable(names_file, "make_names"), "make_names", names_file)
    model_names = strings(load_variable(names_file, "model_names"), "model_names", names_file)

    lists = base / "train_test_split" / "classification"
    paths, split = read_lists({"train": lists / "train.txt", "test": lists / "test.txt"}, parts=4)
    images = [f"image/{p}" for p in paths]
    labels = [f"label/{p.rsplit('.', 1)[0]}.txt" for p in paths]
    there = present(base, images) & present(base, labels)
    rows = keep_present(there, images, base, max_missing, f"{lists}/train.txt and test.txt")
    view, boxes = read_labels(base, [labels[i] for i in rows])
    if views is not None:
        chosen = np.isin([VIEWS[v] for v in view], views)
        rows, boxes = rows[chosen], boxes[chosen]
        if not len(rows):
            raise UserError(f"CompCars: no listed image has a viewpoint of data.views={list(views)}.")
    check_boxes(boxes, [images[i] for i in rows], str(base / "label"))

    ids = [_ids(paths[i], make_names, model_names) for i in rows]
    makes, models = _names(ids, make_names, model_names)
    table = read_attributes(misc / "attributes.txt") if attributes or "type" in levels else {}
    type_names = read_types(misc / "car_type.mat", table) if "type" in levels else []
    values: dict[str, list[str | None]] = {level: [] for level in LEVELS}
    for make, model, year in ids:
        values["make"].append(makes[make])
        values["model"].append(models[model] if not triple else f"{models[model]} {year}" if year else None)
        values["year"].append(year)
        kind = model_type(table, model)
        values["type"].append(type_names[kind - 1] if type_names and kind else None)
    if drop_unseen:
        classified = {level: values[level] for level in levels}
        classified |= {
            name: attribute_texts(name, table, [m for _, m, _ in ids]) for name in attributes if name in COUNTS
        }
        keep = np.flatnonzero(seen_in_training(classified, split[rows]))
        rows, boxes, ids = rows[keep], boxes[keep], [ids[i] for i in keep]
        values = {level: [v[i] for i in keep] for level, v in values.items()}
    used = {level: set(v) for level, v in values.items()}
    by_model = sorted(zip(ids, values["model"], strict=True), key=lambda pair: (pair[0][1], pair[0][2] or ""))
    classes = {
        "make": [name for name in makes.values() if name in used["make"]],
        "model": list(dict.fromkeys(name for _, name in by_model if name)),
        "year": sorted(name for name in used["year"] if name),
        "type": [name for name in type_names if name in used["type"]],
    }
    tasks, targets = level_tasks(levels, values, classes, ("make", "type", "year") if triple else ("make", "type"))
    extra = [attribute_task(name, table, [model for _, model, _ in ids]) for name in attributes]
    annotations = Annotations(
        root=base,
        paths=tuple(images[i] for i in rows),
        targets=targets | {task.name: y for task, y in extra},
        split=split[rows],
        boxes=boxes,
    )
    return annotations, TaskSet([*tasks, *(task for task, _ in extra)], tasks.parent_of)


def _ids(path: str, make_names: Sequence[str], model_names: Sequence[str]) -> tuple[int, int, str | None]:
    """Make and model of a listed path, counted from 0, and the year or None."""
    make, model, year, _ = path.split("/")
    known = year if year.isascii() and year.isdigit() else None
    return parse_id(make, make_names, "make", path), parse_id(model, model_names, "model", path), known


def _names(
    ids: Sequence[tuple[int, int, str | None]], make_names: Sequence[str], model_names: Sequence[str]
) -> tuple[dict[int, str], dict[int, str]]:
    """Class names of the makes and of the models, by id and in the order of the ids.

    Raises:
        UserError: a model listed under two makes.
    """
    make_of: dict[int, int] = {}
    for make, model, _ in ids:
        if make_of.setdefault(model, make) != make:
            raise UserError(
                f"CompCars: the lists have model {model + 1} under makes {make_of[model] + 1} and {make + 1}."
            )
    full = list(model_names)
    for model, make in make_of.items():
        full[model] = full_name(make_names[make], model_names[model] or f"model {model + 1}")
    return unique_names(sorted(set(make_of.values())), make_names, "make"), unique_names(sorted(make_of), full, "model")


def read_labels(base: Path, files: Sequence[str]) -> tuple[list[int], np.ndarray]:
    """Viewpoint of each label file, and boxes float32 [N, 4]; the first box where there are several."""
    view, boxes = [], []
    for name in files:
        lines = text_lines(base / name)
        try:
            if len(lines[0]) > 20:  # Python refuses thousands of digits in words of its own
                raise ValueError
            view.append(int(lines[0]))
            x1, y1, x2, y2 = (float(v) for v in lines[2].split())
        except (IndexError, ValueError) as e:
            raise UserError(
                f"{base / name} should have three lines: viewpoint, number of boxes, x1 y1 x2 y2. "
                f"Found {[line[:40] for line in lines[:3]]}."
            ) from e
        if view[-1] not in VIEWS:
            raise UserError(f"{base / name}: the viewpoint should be one of {list(VIEWS)}. Found {view[-1]}.")
        # pixels are counted from 1 and the last one belongs to the box; a 0 is taken as the first pixel too
        boxes.append((x1 - 1 if x1 else 0.0, y1 - 1 if y1 else 0.0, x2, y2))
    return view, np.asarray(boxes, dtype=np.float32).reshape(-1, 4)


def read_attributes(file: Path) -> dict[int, dict[str, str]]:
    """Model index (from 0) -> attribute -> text, `0` for unknown."""
    if not file.is_file():
        raise UserError(f"CompCars: no file {file}, which types and attributes come from.")
    lines = [line.split() for line in text_lines(file) if line.strip()]
    if not lines or tuple(lines[0]) != COLUMNS:
        found = " ".join(lines[0])[:120] if lines else ""
        raise UserError(f"{file}: the first line should be {' '.join(COLUMNS)!r}. Found {found!r}.")
    table = {}
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(COLUMNS) or not is_count(line[0]) or not is_count(line[5]):
            raise UserError(f"{file}, line {number}: expected {len(COLUMNS)} numbers. Found {' '.join(line)[:80]!r}.")
        table[int(line[0]) - 1] = dict(zip(COLUMNS, line, strict=True))
    return table


def model_type(table: dict[int, dict[str, str]], model: int) -> int:
    """Body type of a model, counted from 1; 0 when unknown."""
    return int(table[model]["type"]) if model in table else 0


def read_types(file: Path, table: dict[int, dict[str, str]]) -> list[str]:
    """Names of the body types.

    Raises:
        UserError: the attributes have a type that the file does not name.
    """
    names = strings(load_variable(file, "types"), "types", file)
    highest = max((model_type(table, model) for model in table), default=0)
    if highest > len(names):
        raise UserError(f"CompCars: attributes.txt has body type {highest}; {file} names only {len(names)}.")
    return names


def attribute_texts(name: str, table: dict[int, dict[str, str]], models: Sequence[int]) -> list[str | None]:
    """One attribute of each image's model as the file has it, None where it is 0 (unknown) or not listed."""
    texts = [table[m][name] if m in table else "0" for m in models]
    return [None if text == "0" else text for text in texts]


def attribute_task(name: str, table: dict[int, dict[str, str]], models: Sequence[int]) -> tuple[Task, np.ndarray]:
    """One attribute as a task, with the label [N] of each image's model; 0 is a missing label."""
    texts = attribute_texts(name, table, models)
    if name in COUNTS:
        classes = sorted({t for t in texts if t is not None}, key=lambda t: (len(t), t))
        index = {c: i for i, c in enumerate(classes)}
        labels = [MISSING_CLASS if t is None else index[t] for t in texts]
        return Task(name, "classification", tuple(classes)), np.array(labels, dtype=np.int64)
    try:
        value = np.array([float(t or 0) for t in texts], dtype=np.float32)
    except ValueError as e:
        raise UserError(f"CompCars: attributes.txt: {name} should be numbers ({e}).") from e
    if not (np.isfinite(value) & (value >= 0)).all():
        raise UserError(f"CompCars: attributes.txt: {name} should be 0 (unknown) or above. Found {value.min():g}.")
    return Task(name, "regression", unit=UNITS[name]), np.where(value == 0, np.float32("nan"), value)
