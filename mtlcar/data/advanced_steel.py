"""Advanced Steel Property (Kini, Jansche, Bernthaler and Schneider): micrographs, steel class and hardness.

{trainset,validset,testset}/<class>/<specimen>____<a>_<b>.{tif,jpg}
{trainset,validset,testset}.xlsx    one sheet: Directory, Filename, Full path (relative to the root),
                                    class label (object), regression label (property hardness)
"""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from mtlcar.data.annotations import Annotations
from mtlcar.data.listed_files import check_unique, find_root, keep_present, present, safe_relative
from mtlcar.data.spreadsheet import is_blank, read_columns
from mtlcar.errors import UserError
from mtlcar.tasks import Task, TaskSet

HOW = (
    "It is published at github.com/fastcandr/Advanced-Steel-Property-Dataset; set data.root to the folder that holds "
    "trainset/, trainset.xlsx and so on."
)
SHOWN_CLASSES = 20
SPLITS = {"trainset": "train", "validset": "val", "testset": "test"}
PATH, CLASS, PROPERTY = "Full path", "class label (object)", "regression label (property hardness)"


def read(root: Path | str | None, *, max_missing: float = 0.0) -> tuple[Annotations, TaskSet]:
    """Tasks `class` and `property` (the hardness; the publisher names no unit), groups = specimens, published split.

    Args:
        root: the folder of the data as published.
        max_missing: share of listed images that may be missing from the disk.

    Raises:
        UserError: for a missing or damaged copy.
    """
    base = find_root(root, [(".", f"{name}.xlsx") for name in SPLITS], "Advanced Steel Property", HOW)
    classes = class_names(base)
    paths: list[str] = []
    split: list[str] = []
    label: list[int] = []
    value: list[float] = []
    for name, part in SPLITS.items():
        file = base / f"{name}.xlsx"
        sheet = read_sheet(file)
        for row, (path, kind, number) in sheet.items():
            where = f"{file}, row {row}"
            paths.append(safe_relative(str(path), where))
            label.append(class_index(kind, classes, where))
            value.append(hardness(number, where))
        split += [part] * len(sheet)
    where = ", ".join(f"{name}.xlsx" for name in SPLITS)
    check_unique(paths, where)
    keep = keep_present(present(base, paths), paths, base, max_missing, where)
    tasks = TaskSet([Task("class", "classification", classes), Task("property", "regression")])
    annotations = Annotations(
        root=base,
        paths=tuple(paths[i] for i in keep),
        targets={"class": np.array(label, dtype=np.int64)[keep], "property": np.array(value, dtype=np.float32)[keep]},
        split=np.array(split, dtype="<U5")[keep],
        groups=np.array([f"{classes[label[i]]}/{specimen(paths[i])}" for i in keep]),
    )
    return annotations.check(tasks), tasks


def class_names(base: Path) -> tuple[str, ...]:
    """The class folders of the training set, numbers in numerical order."""
    folder = base / "trainset"
    names = [f.name for f in folder.iterdir() if f.is_dir() and not f.name.startswith(".")] if folder.is_dir() else []
    if not names:
        raise UserError(f"{folder} should hold one folder for each class. Found none.\n{HOW}")
    return tuple(sorted(names, key=lambda n: (not n.isdigit(), int(n) if n.isdigit() else 0, n)))


def specimen(path: str) -> str:
    """What comes before `____` in a tile's name; a picture that is not a tile is its own specimen."""
    return PurePosixPath(path).stem.split("____")[0]


def read_sheet(file: Path) -> dict[int, tuple[Any, Any, Any]]:
    """{spreadsheet row (the header is row 1): path, class label, hardness} of the first sheet, phantom rows dropped.

    Raises:
        UserError: a missing file or column, a hole, or a file that is no spreadsheet.
    """
    if not file.is_file():
        raise UserError(f"Advanced Steel Property: no file {file}.\n{HOW}")
    columns = (PATH, CLASS, PROPERTY)
    rows = read_columns(file, columns)
    holes = [(row, columns[i]) for row, values in rows.items() for i, v in enumerate(values) if is_blank(v)]
    if holes:
        row, column = holes[0]
        raise UserError(
            f"{file}, row {row}: {column!r} is empty or NaN ({len(holes)} such cells). Fill it in or delete the row. "
            "A formula needs a stored value (open and save the file), and of merged cells only the first has one."
        )
    if not rows:
        raise UserError(f"{file} lists no images.")
    return {row: (values[0], values[1], values[2]) for row, values in rows.items()}


def class_index(value: Any, classes: Sequence[str], where: str) -> int:
    """Index of a class label. Raises a UserError when no class folder has that name."""
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
    if text not in classes:
        more = ", ..." if len(classes) > SHOWN_CLASSES else ""
        raise UserError(
            f"{where}: label {text[:80]!r} is out of range; the class folders are "
            f"{', '.join(classes[:SHOWN_CLASSES])}{more}."
        )
    return list(classes).index(text)


def hardness(value: Any, where: str) -> float:
    """A positive finite number. Raises a UserError otherwise."""
    try:
        number = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not 0.0 < number < float("inf"):
        raise UserError(f"{where}: the hardness should be a positive number. Found {value!r}.")
    return number
