"""The one table that every dataset becomes."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mtlcar.errors import UserError
from mtlcar.tasks import TaskSet

MISSING_CLASS = -1
"""Index of a missing class label; a missing value is NaN."""


@dataclass(frozen=True)
class Annotations:
    """Images and their labels; N rows in the publisher's order.

    Attributes:
        root: folder that `paths` are relative to.
        paths: N image files, relative to `root`, with forward slashes.
        targets: task name -> int64 [N] class indices (-1: missing) or float32 [N] values (NaN: missing).
        split: [N] strings, the publisher's split: `train`, `val`, `test`, or `""` where there is none.
        boxes: None or float32 [N, 4] pixels (x1, y1, x2, y2), x2 and y2 exclusive, origin at the upper left;
            a row of NaN means the whole picture.
        groups: None or [N] strings: images that must stay on one side of a leak-free split (specimen, car).
    """

    root: Path
    paths: tuple[str, ...]
    targets: dict[str, np.ndarray]
    split: np.ndarray
    boxes: np.ndarray | None = None
    groups: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def file(self, index: int) -> Path:
        return self.root / self.paths[index]

    def select(self, index: np.ndarray) -> "Annotations":
        """The rows `index` (integers or a mask [N])."""
        rows = np.arange(len(self))[index]
        return replace(
            self,
            paths=tuple(self.paths[i] for i in rows),
            targets={k: v[rows] for k, v in self.targets.items()},
            split=self.split[rows],
            boxes=None if self.boxes is None else self.boxes[rows],
            groups=None if self.groups is None else self.groups[rows],
        )

    def check(self, tasks: TaskSet) -> "Annotations":
        """Itself, once every label was found in range and consistent with the hierarchy.

        Raises:
            UserError: naming the first rows at fault.
        """
        n = len(self)
        if n == 0:
            raise UserError(f"No images found under {self.root}.")
        for task in tasks:
            y = self.targets.get(task.name)
            if y is None or len(y) != n:
                raise UserError(f"{self.root}: task {task.name!r} should have one label for each of {n} images.")
            if task.kind == "classification":
                bad = (y < MISSING_CLASS) | (y >= len(task.classes))
                expected = f"0 to {len(task.classes) - 1}, or -1 for a missing label"
            else:
                bad, expected = np.isinf(y), "a finite number, or NaN for a missing label"
            if bad.any():
                i = int(np.flatnonzero(bad)[0])
                raise UserError(
                    f"{int(bad.sum())} labels of task {task.name!r} are out of range, the first for {self.paths[i]}: "
                    f"found {y[i]}, expected {expected}."
                )
            if task.parent in tasks.names:
                assert task.parent is not None
                up = self.targets[task.parent]
                both = (y >= 0) & (up >= 0)
                wrong = both & (np.asarray(tasks.parent_of[task.name])[np.maximum(y, 0)] != up)
                if wrong.any():
                    i = int(np.flatnonzero(wrong)[0])
                    raise UserError(
                        f"{int(wrong.sum())} images have a {task.parent} that is not their {task.name}'s, "
                        f"the first: {self.paths[i]}."
                    )
        return self

    def digest(self) -> str:
        """16 hex digits that change with any path, label, box, group or split."""
        h = hashlib.sha256("\n".join(self.paths).encode("utf-8", "surrogateescape"))
        for name in sorted(self.targets):
            h.update(name.encode())
            h.update(np.ascontiguousarray(self.targets[name]).tobytes())
        for column in (self.split, self.groups):
            h.update("\n".join(map(str, column)).encode() if column is not None else b"-")
        h.update(np.ascontiguousarray(self.boxes).tobytes() if self.boxes is not None else b"-")
        return h.hexdigest()[:16]
