"""Pictures of test images, found again by a run's configuration; one that cannot be had is None, never an error."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mtlcar.data.decode import RESIZE, ImageDecoder
from mtlcar.data.drawn import drawn_sets, is_complete
from mtlcar.data.listed_files import safe_relative
from mtlcar.errors import UserError
from mtlcar.report.collect import Run

SIDE = 160
"""Pixels of a picture's side."""
READERS = re.compile(r"mtlcar\.data\.[a-z0-9_]+\.read")
"""Only readers of ours are called: a run directory may come from anywhere, and its `data.read` names a function."""


class Pictures:
    """Reads test images as the network was shown them: cut to their box, resized as `data.resize` says.

    Args:
        size: side of a picture, pixels.
    """

    def __init__(self, size: int = SIDE) -> None:
        self.size = size
        self.whole = False
        """Whether a picture was given whole although the network was shown the part in its box."""
        self._places: dict[str, _Place] = {}

    def __call__(self, run: Run, path: str) -> np.ndarray | None:
        """uint8 [size, size, 3] of a `path` of predictions.parquet.

        None where it is missing, damaged, or outside the folder of the data.
        """
        data, paths = _node(run.config, "data"), _node(run.config, "paths")
        key = json.dumps([data, paths.get("cache")], default=str)
        if key not in self._places:
            self._places[key] = _Place(data, paths)
        place, margin, resize = self._places[key], data.get("box_margin"), data.get("resize")
        try:
            file, box = place.find(safe_relative(path, run.name), boxes=margin is not None)
            if file is None:
                return None
            image = ImageDecoder(self.size, resize if resize in RESIZE else RESIZE[0], margin)(file, box)
        except (UserError, OSError, ValueError, TypeError):  # of a damaged picture, or of a configuration of no use
            return None
        self.whole |= box is None and margin is not None
        return image


class _Place:
    """Where the pictures of one data configuration lie, and their boxes.

    Attributes:
        root: the folder that paths are relative to, as far as it is known without the dataset's reader.
        drawn: whether the dataset draws its own pictures; then `images`, how many, where its folder says so.
    """

    def __init__(self, data: Mapping[str, Any], paths: Mapping[str, Any]) -> None:
        self.data, self.paths = data, paths
        root = Path(str(data["root"])) if data.get("root") else Path(str(paths.get("cache")), str(data.get("name")))
        options = drawn_sets(root)
        self.drawn = bool(options)
        self.root = root if not options else _matching(options, data)
        images = options.get(self.root, {}).get("images") if self.root is not None else None
        self.images = images if isinstance(images, int) else None
        self._read: tuple[Path | None, dict[str, np.ndarray]] | None = None

    def find(self, path: str, *, boxes: bool) -> tuple[Path | None, np.ndarray | None]:
        """The file and its box (float32 [4], pixels), each None where it cannot be had."""
        file = None if self.root is None else self.root / path
        there = file is not None and file.is_file()
        if there and not boxes:  # the reader may take seconds
            return file, None
        if self._read is None and (there or self._nested(path)):
            self._read = self._annotations()
        folder, boxes_of = self._read or (None, {})
        if folder is not None and (folder / path).is_file():
            return folder / path, boxes_of.get(path)
        return (file, None) if there else (None, None)

    def _nested(self, path: str) -> bool:
        """Whether a folder in `root` holds the data, as when a publisher's archive was unpacked there."""
        if self.root is None or self.drawn or not self.root.is_dir():
            return False
        return any((folder / path).is_file() for folder in self.root.iterdir())

    def _annotations(self) -> tuple[Path | None, dict[str, np.ndarray]]:
        """Folder and boxes by path, from the dataset's reader; (None, {}) where it cannot be asked."""
        read = _node(self.data, "read")
        ours = set(read) <= {"_target_", "_partial_"} and READERS.fullmatch(str(read.get("_target_"))) is not None
        if not ours:
            return None, {}
        if self.drawn and (self.root is None or self.images is None or not is_complete(self.root, self.images)):
            return None, {}  # the reader would draw them again
        from omegaconf import DictConfig

        from mtlcar.data.options import read_annotations

        try:
            found, _ = read_annotations(DictConfig(dict(self.data)), Path(str(self.paths.get("cache"))))
        except Exception:  # whatever is wrong with the data now, a report does without its boxes
            return None, {}
        if found.boxes is None:
            return found.root, {}
        return found.root, dict(zip(found.paths, found.boxes, strict=True))


def _node(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = config.get(key)
    return found if isinstance(found, Mapping) else {}


def _matching(sets: Mapping[Path, Mapping[str, Any]], data: Mapping[str, Any]) -> Path | None:
    """The folder drawn with these options, the newest version of it."""
    same = [
        folder
        for folder, options in sets.items()
        if (shared := set(options) & set(data)) and all(options[key] == data[key] for key in shared)
    ]
    return max(same, key=lambda folder: sets[folder].get("version", 0), default=None)
