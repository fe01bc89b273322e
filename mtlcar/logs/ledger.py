"""rows.jsonl: everything a run has logged, one JSON object a line, in the run directory whatever the logger.

`{"row": 12, "step": 240, "metrics": {"train/loss": 0.5}}`: index from 0, optimizer step, values. Values that are not
finite are the strings "nan", "inf" and "-inf", because JSON has no such numbers.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mtlcar.runs.files import replacing

LEDGER = "rows.jsonl"


class Row(NamedTuple):
    """What was logged at one moment: `number` counts rows from 0, `step` is the optimizer step."""

    number: int
    step: int
    metrics: dict[str, float]


def encode(row: Row) -> bytes:
    metrics = {name: value if math.isfinite(value) else str(float(value)) for name, value in row.metrics.items()}
    line = {"row": row.number, "step": row.step, "metrics": metrics}
    return json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def decode(line: bytes) -> Row | None:
    """The row of a line, None where the line is torn or damaged."""
    if not line.endswith(b"\n"):
        return None
    try:
        found = json.loads(line)
        metrics = {str(name): as_number(value) for name, value in found["metrics"].items()}
        return Row(int(found["row"]), int(found["step"]), metrics)
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        OverflowError,
        RecursionError,
    ):  # a damaged line may be any JSON
        return None


def as_number(value: Any) -> float:
    """A plain int or float: of a tensor or array with one element, a bool, or a number in letters."""
    if hasattr(value, "item"):
        value = value.item()
    return int(value) if isinstance(value, int) else float(value)


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """`metrics` with plain numbers."""
    return {str(name): as_number(value) for name, value in metrics.items()}


def read_rows(path: Path) -> Iterator[Row]:
    """The whole rows of a ledger, in order; an absent file has none."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            row = decode(line)
            if row is not None:
                yield row


class Ledger:
    """The file while a run writes it. A row is in the system's hands when `append` returns, on disk after `sync`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    def cut(self, count: int | None) -> int:
        """Keep the rows before row `count` (None: all), drop torn lines, and open the file for writing.

        Returns:
            The index that the next row has if none is missing: one past the last row kept.
        """
        self.close()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = self.path.read_bytes() if self.path.is_file() else b""
        lines = content.splitlines(keepends=True)
        rows = [decode(line) for line in lines]
        kept = [(line, row) for line, row in zip(lines, rows, strict=True) if row and (count is None or row[0] < count)]
        good = b"".join(line for line, _ in kept)
        if content.startswith(good):
            if good != content:
                os.truncate(self.path, len(good))  # works on a full disk too
        else:
            with replacing(self.path) as temporary:
                temporary.write_bytes(good)
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        return kept[-1][1].number + 1 if kept else 0

    def append(self, row: Row) -> None:
        """Write one row, whole or not at all.

        Raises:
            OSError: it cannot be written (a full disk).
        """
        assert self._file is not None, "cut() opens the file"
        line = encode(row)
        before = os.fstat(self._file).st_size
        try:
            while line:
                line = line[os.write(self._file, line) :]
        except OSError:
            os.ftruncate(self._file, before)
            raise

    def sync(self) -> None:
        """Return when all rows are on disk."""
        if self._file is not None:
            os.fsync(self._file)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
