"""Advanced Steel Property (Kini, Jansche, Bernthaler and Schneider): micrographs, steel class and hardness.

{trainset,validset,testset}/<class>/<specimen>____<a>_<b>.{tif,jpg}
{trainset,validset,testset}.xlsx    one sheet: Directory, Filename, Full path (relative to the root),
                                    class label (object), regression label (property hardness)
"""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd

from mtlcar.data.annotations import Annotations
from mtlcar.data.listed_files import check_unique, find_root, keep_present, present, safe_relative
from mtlcar.errors import UserError
from mtlcar.tasks import Task, TaskSet

HOW = (
    "It is published at github.com/fastcandr/Advanced-Steel-Property-Dataset; set data.root to the folder that holds "
    "trainset/, trainset.xlsx and so on."
)
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
        paths += [safe_relative(str(p), f"{file}, row {r}") for r, p in zip(sheet.index, sheet[PATH], strict=True)]
        label += [class_index(c, classes, f"{file}, row {r}") for r, c in zip(sheet.index, sheet[CLASS], strict=True)]
        value += [hardness(v, f"{file}, row {r}") for r, v in zip(sheet.index, sheet[PROPERTY], strict=True)]
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


def read_sheet(file: Path) -> pd.DataFrame:
    """The three columns of the first sheet, indexed by spreadsheet row (the header is row 1), phantom rows dropped.

    Raises:
        UserError: a missing file or column, or a file that is no spreadsheet.
    """
    if not file.is_file():
        raise UserError(f"Advanced Steel Property: no file {file}.\n{HOW}")
    try:
        sheet = pd.read_excel(file, sheet_name=0, dtype=object, engine="openpyxl")
    except Exception as e:  # openpyxl raises many kinds on damaged bytes; all of them mean the same to the user
        raise UserError(f"{file} cannot be read as a spreadsheet ({type(e).__name__}: {e}). Copy it again.") from e
    sheet.columns = pd.Index([" ".join(str(c).split()) for c in sheet.columns])
    missing = [c for c in (PATH, CLASS, PROPERTY) if c not in sheet.columns]
    if missing:
        raise UserError(f"{file}: no column {', '.join(map(repr, missing))}. Found {', '.join(sheet.columns)}.")
    sheet.index = sheet.index + 2
    sheet = sheet[[PATH, CLASS, PROPERTY]]
    empty = [all(is_empty(v) for v in row) for row in sheet.itertuples(index=False)]
    sheet = sheet[~np.array(empty, dtype=bool)]
    holes = [(row, column) for column in sheet.columns for row, v in sheet[column].items() if is_empty(v)]
    if holes:
        row, column = min(holes, key=lambda h: int(str(h[0])))
        raise UserError(
            f"{file}, row {row}: {column!r} is empty or NaN ({len(holes)} such cells). Fill it in or delete the row."
        )
    if sheet.empty:
        raise UserError(f"{file} lists no images.")
    return sheet


def is_empty(value: Any) -> bool:
    return bool(pd.isna(value)) or (isinstance(value, str) and value.strip().lower() in ("", "nan"))


def class_index(value: Any, classes: Sequence[str], where: str) -> int:
    """Index of a class label. Raises a UserError when no class folder has that name."""
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
    if text not in classes:
        raise UserError(f"{where}: label {text!r} is out of range; the class folders are {', '.join(classes)}.")
    return list(classes).index(text)


def hardness(value: Any, where: str) -> float:
    """A positive finite number. Raises a UserError otherwise."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not 0.0 < number < float("inf"):
        raise UserError(f"{where}: the hardness should be a positive number. Found {value!r}.")
    return number
