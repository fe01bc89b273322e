"""What both parts of CompCars share: split lists, class names from ids, classes unseen in training."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mtlcar.data.file_bytes import regular_bytes
from mtlcar.data.listed_files import check_unique, safe_relative
from mtlcar.errors import UserError

HOW = (
    "CompCars is given out by the Multimedia Laboratory of the Chinese University of Hong Kong (mmlab.ie.cuhk.edu.hk) "
    "to those who sign its form; unpack it and set data.root to the folder that holds data/ and sv_data/."
)
log = logging.getLogger(__name__)
MAX_BYTES = 100_000_000
"""Of a list; the longest published has 2 MB."""


def read_lists(files: Mapping[str, Path], parts: int) -> tuple[list[str], np.ndarray]:
    """Listed paths (relative to `image/`) and their split [N].

    Args:
        files: split -> text file with one path a line.
        parts: names in each path: all but the last are ids.

    Raises:
        UserError: a missing list, a line of another form, or an image listed twice.
    """
    paths: list[str] = []
    split: list[str] = []
    for name, file in files.items():
        if not file.is_file():
            raise UserError(f"CompCars: no list {file}.\n{HOW}")
        for number, line in enumerate(text_lines(file), start=1):
            if not line.strip():
                continue
            path = safe_relative(line, f"{file}, line {number}")
            if path.count("/") != parts - 1:
                raise UserError(
                    f"{file}, line {number}: expected {parts} names with slashes. Found {line.strip()[:80]!r}."
                )
            paths.append(path)
            split.append(name)
    where = " and ".join(str(f) for f in files.values())
    if not paths:
        raise UserError(f"CompCars: {where} list no images.")
    check_unique(paths, where)
    return paths, np.asarray(split, dtype="<U5")


def text_lines(file: Path) -> list[str]:
    """Lines of a text file, with or without a byte order mark, ended as on any system.

    Raises:
        UserError: it cannot be read, or is larger than any list of images.
    """
    try:
        return regular_bytes(file, MAX_BYTES).decode("utf-8-sig", errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"CompCars: {file} cannot be read ({error.strerror}).") from None


def parse_id(text: str, names: Sequence[str], what: str, path: str) -> int:
    """An id (counted from 1) of a listed path as an index into `names`.

    Raises:
        UserError: not a number, or out of range.
    """
    if not is_count(text) or not 1 <= int(text) <= len(names):
        raise UserError(
            f"CompCars: {path[:80]!r} has {what} id {text[:20]!r}; expected a number from 1 to {len(names)}."
        )
    return int(text) - 1


def is_count(text: str) -> bool:
    """A whole number, written as 0 to 9 and no longer than any in these files (Python refuses thousands of digits)."""
    return text.isascii() and text.isdigit() and len(text) <= 9


def unique_names(ids: Sequence[int], names: Sequence[str], what: str) -> dict[int, str]:
    """Class name of each id: its name, or `<what> <id>` for an empty one, with ` (<id>)` where two ids share a name."""
    unique = {i: names[i] or f"{what} {i + 1}" for i in ids}
    while len(count := Counter(unique.values())) < len(unique):  # again where `A (1)` was somebody's name already
        unique = {i: name if count[name] == 1 else f"{name} ({i + 1})" for i, name in unique.items()}
    return unique


def full_name(make: str, model: str) -> str:
    """`<make> <model>`, without saying the make twice."""
    return model if not make or model.lower().startswith(make.lower() + " ") else f"{make} {model}".strip()


def seen_in_training(labels: Mapping[str, Sequence[str | None]], split: np.ndarray) -> np.ndarray:
    """bool [N]: training images, and test images whose every known label some training image has.

    Args:
        labels: level -> label of each image (N), None where unknown.
        split: [N] strings.
    """
    keep = np.ones(len(split), dtype=bool)
    train = [int(i) for i in np.flatnonzero(split == "train")]
    for column in labels.values():
        seen = {column[i] for i in train} | {None}
        keep &= np.array([label in seen for label in column]) | (split == "train")
    if not keep.all():
        log.warning("CompCars: left out %d test images of classes that no training image has.", int((~keep).sum()))
    return keep
