"""Stanford Cars (Krause, Stark, Deng and Fei-Fei 2013): 16,185 images of 196 classes (make, model, year).

Both published layouts are read. Newer:

    cars_train/NNNNN.jpg  cars_test/NNNNN.jpg
    devkit/cars_meta.mat  devkit/cars_train_annos.mat
    cars_test_annos_withlabels.mat   (beside devkit/ or in it; without it the test images have no labels and stay out)

Older: `cars_annos.mat` and `car_ims/NNNNNN.jpg`.
"""

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mtlcar.data.annotations import Annotations
from mtlcar.data.car_levels import check_levels, level_tasks
from mtlcar.data.listed_files import check_boxes, check_unique, find_root, keep_present, present, safe_relative
from mtlcar.data.matfile import field, integers, load_variable, strings
from mtlcar.errors import UserError
from mtlcar.tasks import TaskSet

HOW = (
    "The automatic download of this data set is dead (torchvision has dropped it too). Copies are on Kaggle under "
    "'Stanford Cars Dataset'; unpack one so that cars_train/ and devkit/ (or car_ims/ and cars_annos.mat) lie "
    "directly under data.root."
)
log = logging.getLogger(__name__)

LEVELS = ("make", "model", "year", "type")
TWO_WORD_MAKES = ("AM General", "Aston Martin", "Land Rover")

TYPE_WORDS = {
    "Convertible": "Convertible",
    "Coupe": "Coupe",
    "Hatchback": "Hatchback",
    "Minivan": "Minivan",
    "Cab": "Pickup",
    "SuperCab": "Pickup",
    "Pickup": "Pickup",
    "SUV": "SUV",
    "Sedan": "Sedan",
    "Van": "Van",
    "Wagon": "Wagon",
}
"""The last of these words in a class name gives its body type, one of 9 (`Ram C/V Cargo Van Minivan` is a minivan)."""

TYPES_WITHOUT_WORD = {
    "Acura TL Type-S 2008": "Sedan",
    "Acura Integra Type R 2001": "Coupe",
    "Buick Regal GS 2012": "Sedan",
    "Chevrolet Corvette ZR1 2012": "Coupe",
    "Chevrolet Corvette Ron Fellows Edition Z06 2007": "Coupe",
    "Chevrolet HHR SS 2010": "Wagon",
    "Chevrolet Cobalt SS 2010": "Coupe",
    "Chevrolet TrailBlazer SS 2009": "SUV",
    "Chrysler 300 SRT-8 2010": "Sedan",
    "Dodge Challenger SRT8 2011": "Coupe",
    "Dodge Charger SRT-8 2009": "Sedan",
    "FIAT 500 Abarth 2012": "Hatchback",
    "Jaguar XK XKR 2012": "Coupe",
    "Lamborghini Gallardo LP 570-4 Superleggera 2012": "Coupe",
}
"""The classes whose name says no body type, by the car's catalogue."""


@dataclass(frozen=True)
class CarName:
    """A class name's parts: `Land Rover LR2 SUV 2012` is make `Land Rover`, pair `Land Rover LR2 SUV`, year `2012`."""

    name: str
    make: str
    pair: str
    year: str


def parse_name(name: str) -> CarName:
    """The parts of `<make> <model> <year>`: the year is the last four characters, the make the first word except
    for `TWO_WORD_MAKES`.

    Raises:
        UserError: a name of another form.
    """
    match = re.fullmatch(r"(.+) ((?:19|20)\d\d)", name)
    pair, year = match.groups() if match else ("", "")
    make = next((m for m in TWO_WORD_MAKES if f"{pair} ".startswith(m + " ")), pair.split(" ")[0])
    if not match or pair == make:
        raise UserError(f"Class name {name!r} should be '<make> <model> <year>', such as 'Acura RL Sedan 2012'.")
    return CarName(name, make, pair, year)


def body_type(name: str) -> str | None:
    """Body type of a class, or None where neither its name nor `TYPES_WITHOUT_WORD` says it."""
    for word in reversed(name.split(" ")):
        if word in TYPE_WORDS:
            return TYPE_WORDS[word]
    return TYPES_WITHOUT_WORD.get(name)


def read(
    root: Path | str | None,
    *,
    levels: Iterable[str] = ("make", "model"),
    model_class: str = "triple",
    subset: str = "all",
    max_missing: float = 0.0,
) -> tuple[Annotations, TaskSet]:
    """The labelled images with boxes in pixels.

    Args:
        root: the folder of the data, or one that holds it as `stanford_cars/`.
        levels: tasks in order, any of make (49 classes), model, year (16) and type (9 body types). The model's
            parent is the make, else the type, else (triples only) the year.
        model_class: `triple`: the publisher's 196 (make, model, year) classes in the publisher's order;
            `pair`: the 189 (make, model) pairs, each at its first triple's place.
        subset: `all` labelled images, or only the publisher's `train` images (the 8,144 that arXiv 2603.01746 splits).
        max_missing: share of listed images that may be missing from the disk.

    Raises:
        UserError: for a missing or damaged copy.
    """
    names_of_levels = check_levels(levels, LEVELS)
    if model_class not in ("triple", "pair"):
        raise UserError(f"data.model_class should be triple or pair. Found {model_class!r}.")
    if subset not in ("all", "train"):
        raise UserError(f"data.subset should be all or train. Found {subset!r}.")
    folder, meta, lists = _find_lists(root)
    cars = [parse_name(n) for n in strings(load_variable(meta, "class_names"), "class_names", meta)]

    if subset == "all" and [part for *_, part in lists] == ["train"] and (folder / "cars_test").is_dir():
        log.warning(
            "%s has cars_test/ but no cars_test_annos_withlabels.mat: the test images have no labels and stay out.",
            folder,
        )

    rows = [_read_list(folder, file, images, split, len(cars)) for file, images, split in lists]
    paths = [p for r in rows for p in r[0]]
    label = np.concatenate([r[1] for r in rows])
    boxes = np.concatenate([r[2] for r in rows])
    split = np.concatenate([r[3] for r in rows])
    where = " and ".join(file.name for file, _, _ in lists)
    check_unique(paths, where)
    wanted = np.flatnonzero(split == "train") if subset == "train" else np.arange(len(paths))
    listed = [paths[i] for i in wanted]
    keep = wanted[keep_present(present(folder, listed), listed, folder, max_missing, where)]

    tasks, table = _tasks(cars, names_of_levels, model_class)
    annotations = Annotations(
        root=folder,
        paths=tuple(paths[i] for i in keep),
        targets={level: table[level][label[keep]] for level in names_of_levels},
        split=split[keep],
        boxes=boxes[keep],
    )
    return annotations.check(tasks), tasks


def _find_lists(root: Path | str | None) -> tuple[Path, Path, list[tuple[Path, str, str]]]:
    """The data's folder, the file with the class names, and (annotation file, image folder, split) for each list;
    an empty split is told by the annotations themselves."""
    # Kaggle's copies nest the archives once more: cars_train/cars_train/, car_devkit/devkit/
    markers = ("devkit/cars_train_annos.mat", "car_devkit/devkit/cars_train_annos.mat", "cars_annos.mat")
    folder = find_root(root, [(f, m) for f in (".", "stanford_cars") for m in markers], "Stanford Cars", HOW)
    marker = next(m for m in markers if (folder / m).exists())
    if marker == "cars_annos.mat":
        return folder, folder / marker, [(folder / marker, "", "")]
    devkit = (folder / marker).parent
    lists = [(devkit / "cars_train_annos.mat", _image_folder(folder, "cars_train"), "train")]
    for place in (folder, devkit.parent, devkit):
        if (place / "cars_test_annos_withlabels.mat").is_file():
            lists.append((place / "cars_test_annos_withlabels.mat", _image_folder(folder, "cars_test"), "test"))
            break
    return folder, devkit / "cars_meta.mat", lists


def _image_folder(folder: Path, name: str) -> str:
    return f"{name}/{name}" if (folder / name / name).is_dir() else name


def _read_list(
    root: Path, file: Path, folder: str, split: str, n_classes: int
) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """Paths, class [N] from 0, boxes float32 [N, 4] and split [N] of one annotation file."""
    annos = load_variable(file, "annotations")
    old = split == ""
    names = strings(field(annos, "relative_im_path" if old else "fname", file), "file name", file)
    paths = [safe_relative(f"{folder}/{n}" if folder else n, str(file)) for n in names]
    label = integers(field(annos, "class", file), "class", file)
    bad = (label < 1) | (label > n_classes)
    if bad.any():
        i = int(np.flatnonzero(bad)[0])
        raise UserError(
            f"{file}: {int(bad.sum())} labels are out of range, the first for {names[i]}: "
            f"found class {label[i]}, expected 1 to {n_classes}."
        )
    corners = [integers(field(annos, f"bbox_{c}", file), f"bbox_{c}", file) for c in ("x1", "y1", "x2", "y2")]
    # MATLAB counts pixels from 1 and includes the last one; a 0 is taken as the first pixel too
    x1, y1 = (np.where(c == 0, 0, c - 1) for c in corners[:2])
    boxes = np.stack([x1, y1, corners[2], corners[3]], axis=1).astype(np.float32)
    check_boxes(boxes, names, str(file))
    if old:
        splits = np.where(integers(field(annos, "test", file), "test", file) == 1, "test", "train")
    else:
        splits = np.full(len(paths), split)
    return paths, label - 1, boxes, splits.astype("<U5")


def _tasks(cars: list[CarName], levels: tuple[str, ...], model_class: str) -> tuple[TaskSet, dict[str, np.ndarray]]:
    models = [c.name if model_class == "triple" else c.pair for c in cars]
    values: dict[str, list[str | None]] = {
        "make": [c.make for c in cars],
        "model": list(models),
        "year": [c.year for c in cars],
        "type": [body_type(c.name) for c in cars],
    }
    unknown = [c.name for c, kind in zip(cars, values["type"], strict=True) if kind is None]
    if "type" in levels and unknown:
        raise UserError(
            f"Level 'type': no body type is known for {', '.join(unknown[:5])}. Leave it out of data.levels."
        )
    classes = {
        "make": list(dict.fromkeys(c.make for c in cars)),
        "model": list(dict.fromkeys(models)),
        "year": sorted({c.year for c in cars}),
        "type": sorted({kind for kind in values["type"] if kind}),
    }
    parents = ("make", "type", "year") if model_class == "triple" else ("make", "type")
    return level_tasks(levels, values, classes, parents)
