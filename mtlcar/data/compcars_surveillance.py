"""CompCars' surveillance-nature images (see `compcars.py` for the layout): front views, without boxes."""

from pathlib import Path

import numpy as np

from mtlcar.data.annotations import Annotations
from mtlcar.data.car_levels import level_tasks
from mtlcar.data.compcars_lists import HOW, full_name, parse_id, read_lists, seen_in_training, unique_names
from mtlcar.data.listed_files import find_root, keep_present, present, safe_relative
from mtlcar.data.matfile import integers, load_variable, strings
from mtlcar.errors import UserError
from mtlcar.tasks import TaskSet

LEVELS = ("make", "model", "color")
COLORS = ("black", "white", "red", "yellow", "blue", "green", "purple", "brown", "champagne", "silver")
"""By the publisher's index; -1 is a colour that could not be told."""


def read_surveillance(
    root: Path | str | None, levels: tuple[str, ...], drop_unseen: bool, max_missing: float
) -> tuple[Annotations, TaskSet]:
    """The listed images; arguments as in `compcars.read`."""
    places = [(f, "train_surveillance.txt") for f in (".", "sv_data", "sv_data/sv_data", "compcars/sv_data")]
    base = find_root(root, places, "CompCars (surveillance)", HOW)
    file = base / "sv_make_model_name.mat"
    cells = load_variable(file, "sv_make_model_name")
    if cells.ndim != 2 or cells.shape[1] < 2:
        raise UserError(f"{file}: expected columns make, model, web model id. Found an array of shape {cells.shape}.")
    make_of, model_of = strings(cells[:, 0], "make", file), strings(cells[:, 1], "model", file)

    lists = {split: base / f"{split}_surveillance.txt" for split in ("train", "test")}
    listed, split = read_lists(lists, parts=2)
    images = [f"image/{p}" for p in listed]
    rows = keep_present(present(base, images), images, base, max_missing, " and ".join(map(str, lists.values())))
    model = [parse_id(listed[i].split("/")[0], model_of, "model", listed[i]) for i in rows]
    full = [full_name(a, b or f"model {i + 1}") for i, (a, b) in enumerate(zip(make_of, model_of, strict=True))]
    models = unique_names(sorted(set(model)), full, "model")
    color = read_colors(base / "color_list.mat", [listed[i] for i in rows]) if "color" in levels else []
    values: dict[str, list[str | None]] = {
        "make": [make_of[m] or "unknown make" for m in model],
        "model": [models[m] for m in model],
        "color": color,
    }
    if drop_unseen:
        keep = np.flatnonzero(seen_in_training({level: values[level] for level in levels}, split[rows]))
        rows = rows[keep]
        values = {level: [v[i] for i in keep] for level, v in values.items() if v}
    used = {level: set(v) for level, v in values.items()}
    classes = {
        "make": [m for m in dict.fromkeys(m or "unknown make" for m in make_of) if m in used["make"]],
        "model": [name for name in models.values() if name in used["model"]],
        "color": [c for c in COLORS if c in used.get("color", ())],
    }
    tasks, targets = level_tasks(levels, values, classes, ("make",))
    return Annotations(base, tuple(images[i] for i in rows), targets, split[rows]), tasks


def read_colors(file: Path, images: list[str]) -> list[str | None]:
    """Colour of each image, None where it is unknown or not listed.

    Raises:
        UserError: a damaged file, or an index that is no colour.
    """
    cells = load_variable(file, "color_list")
    if cells.ndim != 2 or cells.shape[1] != 2:
        raise UserError(f"{file}: expected columns image, colour. Found an array of shape {cells.shape}.")
    names = [safe_relative(n, str(file)) for n in strings(cells[:, 0], "image", file)]
    index = integers(cells[:, 1], "colour", file)
    if len(index) and (index.min() < -1 or index.max() >= len(COLORS)):
        raise UserError(f"{file}: colours should be -1 to {len(COLORS) - 1}. Found {index.min()} to {index.max()}.")
    known = {n: COLORS[c] for n, c in zip(names, index, strict=True) if c >= 0}
    return [known.get(image) for image in images]
