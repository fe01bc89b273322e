"""The embedded dataset: invented cars, drawn on first use, with labels of every kind."""

import csv
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mtlcar.data.annotations import Annotations
from mtlcar.data.car_levels import check_levels, level_tasks
from mtlcar.data.car_styles import MAX_MAKES, MAX_MODELS, TYPES
from mtlcar.data.car_writer import CarSet, write_pictures
from mtlcar.data.drawn import drawn_folder
from mtlcar.errors import UserError
from mtlcar.tasks import Task, TaskSet

DRAWING_VERSION = 1
"""Part of the folder's name: raise it with every change that alters a picture or a label."""

LEVELS = ("make", "model", "type", "year", "weight")
CARS_PER_MODEL = 4
"""Fewest cars of a model with which every split has every class."""


def read(
    root: Path | None,
    *,
    levels: Iterable[str] = ("make", "model"),
    makes: int = 6,
    models_per_make: int = 4,
    images: int = 2400,
    images_per_car: int = 2,
    size: int = 96,
    difficulty: float = 0.5,
    draw_seed: int = 0,
) -> tuple[Annotations, TaskSet]:
    """The pictures under `root`, drawn there first if they are not there yet.

    Makes differ by style (grille, lamps, badge, rims, roof line), the models of a make by body type and proportions.
    The split is the publisher's: 70/10/20 by car, every class in each part. `groups` is the car, `boxes` are given.

    Args:
        root: folder for generated sets; each lies in a folder named after the digest of its options.
        levels: tasks in order, of make, model, type (of body), year and weight (kerb weight in kg, a regression).
            The parent of model is the make, or type or year where they come without it.
        makes, models_per_make: up to 24 and 12.
        images, images_per_car: pictures in all, and consecutive ones of the same car (same paint, trim and weight).
        size: side of the pictures in pixels.
        difficulty: 0 to 1; scales variation of view, light, background and noise, and shrinks the differences
            between models.
        draw_seed: of everything random, the fleet included.

    Raises:
        UserError: an option out of range, no room on the disk, or a folder that cannot be written.
    """
    names = check_levels(levels, LEVELS)
    cars = _checked(
        makes=makes,
        models_per_make=models_per_make,
        images=images,
        images_per_car=images_per_car,
        size=size,
        difficulty=difficulty,
        draw_seed=draw_seed,
    )
    if root is None:
        raise UserError("synthetic_cars: data.root should be a folder to draw into. Found null.")
    tasks, table = _tasks(names, cars)
    folder = drawn_folder("synthetic_cars", Path(root), cars, DRAWING_VERSION, write_pictures)
    with (folder / "labels.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    index = {model.name: i for i, model in enumerate(cars.models)}
    kind = np.array([index[row["model"]] for row in rows])
    targets: dict[str, np.ndarray] = {name: table[name][kind] for name in names if name != "weight"}
    if "weight" in names:
        targets["weight"] = np.array([row["weight"] for row in rows], dtype=np.float32)
    annotations = Annotations(
        root=folder,
        paths=tuple(row["file"] for row in rows),
        targets={name: targets[name] for name in names},
        split=np.array([row["split"] for row in rows]),
        boxes=np.array([[row[k] for k in ("x1", "y1", "x2", "y2")] for row in rows], dtype=np.float32),
        groups=np.array([row["car"] for row in rows]),
    )
    return annotations.check(tasks), tasks


def _tasks(names: tuple[str, ...], cars: CarSet) -> tuple[TaskSet, dict[str, np.ndarray]]:
    """The tasks in order, and level -> class index of each model of the fleet."""
    models = cars.models
    values: dict[str, list[str | None]] = {
        "make": [m.make for m in models],
        "model": [m.name for m in models],
        "type": [m.type for m in models],
        "year": [str(m.year) for m in models],
    }
    classes = {
        "make": list(dict.fromkeys(m.make for m in models)),
        "model": [m.name for m in models],
        "type": [kind for kind in TYPES if kind in values["type"]],
        "year": sorted({str(m.year) for m in models}),
    }
    weight = Task("weight", "regression", unit="kg")
    labels = [name for name in names if name != "weight"]
    if not labels:
        return TaskSet([weight]), {}
    named, table = level_tasks(labels, values, classes, parents=("make", "type", "year"))
    return TaskSet((weight if name == "weight" else named[name] for name in names), named.parent_of), table


def _checked(**options: Any) -> CarSet:
    """The options, each in range."""
    ranges = {
        "makes": (1, MAX_MAKES),
        "models_per_make": (1, MAX_MODELS),
        "images": (1, 999_999),
        "images_per_car": (1, 100),
        "size": (32, 512),
        "draw_seed": (0, 2**63 - 1),
    }
    for key, (low, high) in ranges.items():
        value = options[key]
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise UserError(
                f"synthetic_cars: data.{key} should be a whole number from {low} to {high}. Found {value!r}."
            )
    d = options["difficulty"]
    if isinstance(d, bool) or not isinstance(d, int | float) or not math.isfinite(d) or not 0 <= d <= 1:
        raise UserError(f"synthetic_cars: data.difficulty should be a number from 0 to 1. Found {d!r}.")
    cars = CarSet(**{**options, "difficulty": float(d)})
    fewest = cars.makes * cars.models_per_make * cars.images_per_car * CARS_PER_MODEL
    if cars.images < fewest:
        raise UserError(
            f"synthetic_cars: data.images should be at least {fewest} ({cars.makes} makes x {cars.models_per_make} "
            f"models x {CARS_PER_MODEL} cars x {cars.images_per_car} pictures), so that each split has every class. "
            f"Found {cars.images}."
        )
    return cars
