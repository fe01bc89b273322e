"""Pictures to rows of predictions, as `mtlcar predict` prints them."""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mtlcar.inference.consistent import level_probabilities
from mtlcar.inference.intervals import COVERAGE, Interval, read_intervals

if TYPE_CHECKING:
    from torch import Tensor

    from mtlcar.inference.network import Said, TrainedNetwork
    from mtlcar.inference.unlike import Reference


class Predictor:
    """Pictures to rows.

    Args:
        network: of a run.
        decoding: see `decode_levels`.
        top: classes listed for each task, at most.
        reference: of the training images; None: whether a picture is like these is not checked.
        intervals: {value: its intervals}; None: as the run's test errors say.
    """

    def __init__(
        self,
        network: "TrainedNetwork",
        decoding: str = "joint",
        top: int = 3,
        reference: "Reference | None" = None,
        intervals: dict[str, Interval] | None = None,
    ) -> None:
        self.network, self.decoding, self.top, self.reference = network, decoding, top, reference
        self.intervals = read_intervals(network.directory, decoding) if intervals is None else intervals

    def rows(self, files: Sequence[Path], batch_size: int = 32) -> Iterator[dict[str, Any]]:
        """One row a file, in order. Pictures are decoded by threads, and at most `batch_size` are in memory.

        A row has `file`, and either `error` (why the picture cannot be read), or `tasks` {task: what is said},
        `columns` (what the label transform adds) and `unlike` (`score`, `threshold`, `flag`; None: not checked).
        A classification says `class` and `index` (None where there is none), their `probability` (`score` where scores
        are no probabilities) and `top`, a list of the same three. A value says `value`, `unit` and `interval`
        [low, high] with its `coverage`, or None.
        """
        import torch

        from mtlcar.data.parallel import cpus

        with ThreadPoolExecutor(cpus(), thread_name_prefix="mtlcar") as pool:
            for start in range(0, len(files), batch_size):
                own = files[start : start + batch_size]
                read = list(pool.map(self._read, own))
                pixels = [x for x in read if not isinstance(x, str)]
                said = iter(self._say(torch.stack(pixels)) if pixels else [])
                for file, x in zip(own, read, strict=True):
                    yield {"file": str(file), "error": x} if isinstance(x, str) else {"file": str(file), **next(said)}

    def _read(self, file: Path) -> "Tensor | str":
        from mtlcar.data.picture import DamagedImageError

        try:
            return self.network.read(file)
        except DamagedImageError as error:
            return error.reason

    def _say(self, pixels: "Tensor") -> Iterator[dict[str, Any]]:
        """uint8 images [B, 3, S, S] -> a row for each."""
        batch = _on_the_host(self.network(pixels, self.decoding))
        scores = batch.scores
        if self.network.probabilities:
            scores = level_probabilities(scores, self.network.tasks, self.decoding)
        unlike = None if self.reference is None else self.reference.scores(batch.features)
        for i in range(len(pixels)):
            row: dict[str, Any] = {"tasks": {}, "columns": {k: _number(v[i].item()) for k, v in batch.columns.items()}}
            labels: dict[str, int | None] = {}
            for task in self.network.tasks.classification:
                if task.name in batch.predictions:
                    found = int(batch.predictions[task.name][i])
                    labels[task.name] = found if found >= 0 else None
                    own = scores[task.name][i] if task.name in scores else None
                    row["tasks"][task.name] = self._class(task.classes, labels[task.name], own)
            for task in self.network.tasks.regression:
                if task.name in batch.predictions:
                    value = float(batch.predictions[task.name][i])
                    row["tasks"][task.name] = self._value(task.name, task.unit, value, labels)
            row["tasks"] = {name: row["tasks"][name] for name in self.network.tasks.names if name in row["tasks"]}
            row["unlike"] = None
            if self.reference is not None and unlike is not None:
                row["unlike"] = {
                    "score": _number(float(unlike[i])),
                    "threshold": self.reference.threshold,
                    "flag": not unlike[i] <= self.reference.threshold,
                }
            yield row

    def _class(self, names: Sequence[str], label: int | None, scores: np.ndarray | None) -> dict[str, Any]:
        key = "probability" if self.network.probabilities else "score"
        said: dict[str, Any] = {"class": None if label is None else names[label], "index": label}
        if scores is None or not np.isfinite(scores).all():
            return said
        if label is not None:
            said[key] = float(scores[label]) + 0.0  # not -0.0
        best = np.argsort(-scores, kind="stable")[: self.top].tolist()
        said["top"] = [{"class": names[c], "index": c, key: float(scores[c]) + 0.0} for c in best]
        return said

    def _value(self, name: str, unit: str, value: float, labels: dict[str, int | None]) -> dict[str, Any]:
        interval = self.intervals.get(name)
        around = None if interval is None else interval.around(value, labels.get(interval.by or ""))
        said: dict[str, Any] = {
            "value": _number(value),
            "unit": unit,
            "interval": None if around is None else list(around),
        }
        return said | ({} if around is None else {"coverage": COVERAGE})


class _Host(NamedTuple):
    """`Said` as arrays."""

    predictions: dict[str, np.ndarray]
    scores: dict[str, np.ndarray]
    columns: dict[str, np.ndarray]
    features: np.ndarray


def _on_the_host(said: "Said") -> _Host:
    first, scores, columns = ({k: x.cpu().numpy() for k, x in part.items()} for part in said[:3])
    return _Host(first, scores, columns, said.features.cpu().numpy())


def _number(value: float) -> float | None:
    """A JSON number; what is not finite has none."""
    return value + 0 if math.isfinite(value) else None
