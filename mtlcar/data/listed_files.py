"""Image files that a publisher's lists name: safe paths, none twice, all of them there."""

import difflib
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np

from mtlcar.data.file_bytes import shown
from mtlcar.errors import UserError

log = logging.getLogger(__name__)

MAX_NAME = 255
"""Bytes of a file's or folder's name, on all usual file systems."""
MOST_COMPARED = 2000
"""Names that one is compared with for likeness."""


def find_root(root: object, candidates: Iterable[tuple[str, str]], what: str, how: str) -> Path:
    """The first folder of `root / folder` that holds `marker`.

    Args:
        root: what the user gave as `data.root`.
        candidates: (folder, marker) pairs, both relative; the folder `.` is the root itself.
        what: name of the data set, for the message.
        how: how to get it, for the message.

    Raises:
        UserError: no root, no such folder, or none of the markers in it.
    """
    if root is None or str(root) == "":
        raise UserError(f"{what}: data.root is not set. Set it to the folder of the data as published.\n{how}")
    pairs = list(candidates)
    try:
        base = Path(str(root)).expanduser()
        for folder, marker in pairs:
            if (base / folder / marker).exists():
                return base / folder
    except (OSError, ValueError, RuntimeError) as error:  # too long, a zero in it, `~` of nobody, not allowed
        raise UserError(f"{what}: data.root={root} cannot be looked up ({error}).\n{how}") from None
    looked = ", ".join(dict.fromkeys((PurePosixPath(f) / m).as_posix() for f, m in pairs))
    state = f"No such folder: {base}." if not base.is_dir() else f"{base} does not hold it."
    raise UserError(f"{what} not found. {state}\nLooked there for {looked}.\n{how}")


def safe_relative(text: str, where: str) -> str:
    """A listed path with forward slashes, which cannot lead out of the data's folder.

    The list cannot; links in the folder may: people keep pictures on another disk.

    Raises:
        UserError: an empty or absolute path, one with `..`, or one that no file can have; `where` names the list.
    """
    path = PurePosixPath(text.strip().replace("\\", "/"))
    longest = max((len(part.encode("utf-8", "replace")) for part in path.parts), default=0)
    if longest > MAX_NAME or "\0" in text:
        raise UserError(f"{where}: no file can have the name {text[:60]!r}... Check that this file is the publisher's.")
    if path.is_absolute() or PureWindowsPath(path).drive or ".." in path.parts or not path.parts:
        raise UserError(
            f"{where}: {text!r} should be a path inside the data set's folder, without '..' or a drive. "
            "Check that this file is the publisher's."
        )
    return path.as_posix()


def check_unique(paths: Sequence[str], where: str) -> None:
    """Raises a UserError when an image is listed twice: it could be trained on and tested on."""
    twice = [p for p, n in Counter(paths).items() if n > 1]
    if twice:
        raise UserError(
            f"{where}: {len(twice)} images are listed more than once, the first: {', '.join(twice[:3])}. An image may "
            "be in one split only: copy the lists again, or take out what is listed twice."
        )


def names_in(folder: Path) -> set[str]:
    """Names in a folder, none where there is no such folder.

    Raises:
        UserError: a folder that may not be listed, or a path that is too long.
    """
    try:
        return {file.name for file in folder.iterdir()}
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as error:
        raise UserError(f"{shown(folder)}: this folder cannot be listed ({error.strerror}).") from None


def nearest(root: Path, path: str) -> str:
    """` There is 'x'.` where a file of nearly that name is there: with other letters' case, accents written otherwise
    (macOS takes letters apart), other zeros before a number, or a typo; a file of another number is no typo but the
    next in a series. Else an empty string."""
    parts = path.split("/")
    for depth, part in enumerate(parts):
        names = sorted(names_in(root.joinpath(*parts[:depth])))
        if part in names:
            continue
        same = [name for name in names if _plain(name) == _plain(part)]
        alike = [name for name in names if _numbers(name) == _numbers(part)][:MOST_COMPARED]
        close = same or difflib.get_close_matches(part, alike, n=1, cutoff=0.8)
        return f" There is {shown('/'.join([*parts[:depth], close[0]]))!r}." if close else ""
    return ""


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _numbers(part: str) -> list[str]:
    return [digits.lstrip("0") for digits in re.findall(r"[0-9]+", part)]


def present(root: Path, paths: Sequence[str]) -> np.ndarray:
    """bool [N]: which of `paths` are files under `root`; each folder is listed once, quick on network disks."""
    names: dict[Path, set[str]] = {}
    mask = np.zeros(len(paths), dtype=bool)
    for i, path in enumerate(paths):
        file = root / path
        if file.parent not in names:
            names[file.parent] = names_in(file.parent)
        mask[i] = file.name in names[file.parent]
    return mask


def keep_present(found: np.ndarray, paths: Sequence[str], root: Path, max_missing: float, where: str) -> np.ndarray:
    """Row indices [M] of the images that are there.

    Args:
        found: bool [N], which of `paths` are there.
        max_missing: share of the listed images (0 to 1) that may be missing; they are then left out with a warning.
        where: the list, for the message.

    Raises:
        UserError: more are missing, or all are.
    """
    if not 0.0 <= max_missing <= 1.0:
        raise UserError(f"data.max_missing should be a share from 0 to 1. Found {max_missing}.")
    gone = np.flatnonzero(~found)
    if len(gone) > max_missing * len(paths) or len(gone) == len(paths):
        if not len(gone):
            raise UserError(f"{where} lists no images.")
        first = ", ".join(paths[i] for i in gone[:3])
        raise UserError(
            f"{len(gone)} of the {len(paths)} images listed in {where} are not under {root}, the first: {first}."
            f"{nearest(root, paths[gone[0]])}\n"
            "Unpack the images again, or allow a share of missing ones with data.max_missing (0 to 1)."
        )
    if len(gone):
        log.warning("%s: left out %d of %d listed images that are not there.", where, len(gone), len(paths))
    return np.flatnonzero(found)


def check_boxes(boxes: np.ndarray, names: Sequence[str], where: str) -> None:
    """Raises a UserError when a box [N, 4] (x1, y1, x2, y2) is empty, inverted, negative or no number."""
    good = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]) & (boxes[:, :2] >= 0).all(axis=1)
    bad = ~(good & np.isfinite(boxes).all(axis=1))
    if bad.any():
        i = int(np.flatnonzero(bad)[0])
        raise UserError(
            f"{where}: {int(bad.sum())} boxes are inverted, empty or negative, or no numbers, the first for {names[i]}"
            f": (x1, y1, x2, y2) = {tuple(float(v) for v in boxes[i])}; expected 0 <= x1 < x2 and 0 <= y1 < y2."
        )
