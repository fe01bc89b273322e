"""`<sweep directory>/sweep-<8 hex digits>.json`: one command that was given there, so that it can be given again."""

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

from mtlcar.errors import UserError
from mtlcar.runs.files import read_json, write_json
from mtlcar.runs.secrets import without_password
from mtlcar.sweeps.outcomes import entries

SCHEMA = 1


@dataclass(frozen=True)
class RecordedCell:
    """A cell as its command made it: `name` is what tables call the run."""

    fingerprint: str
    overrides: tuple[str, ...]
    name: str


@dataclass(frozen=True)
class SweepRecord:
    """A command.

    Attributes:
        folder: the sweep directory that the overrides lead to. The file may be elsewhere by now.
        overrides: as typed, but for passwords in URLs, which are `***`.
        cwd: from where relative paths in them count.
        threads: what `threads: null` meant on the machine of its first call.
        cells: empty for a sweeper that chooses them as it goes; `fingerprints` knows them all.
    """

    folder: str
    overrides: tuple[str, ...]
    cwd: str
    threads: int | None
    cells: tuple[RecordedCell, ...]
    first_started: str
    last_started: str
    schema: int = SCHEMA

    @property
    def name(self) -> str:
        """A hash of the overrides and the cells."""
        text = json.dumps([self.overrides, sorted(cell.fingerprint for cell in self.cells)])
        return f"sweep-{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def write(self, folder: Path) -> Path:
        """Its file there. Where the command was given before, only the time of the last call changes. Returns the path
        of the journal beside it."""
        path = folder / f"{self.name}.json"
        content = asdict(self)
        with suppress(UserError, FileNotFoundError):
            content = {**asdict(read_record(path)), "last_started": self.last_started}
        write_json(path, content)
        return path.with_suffix(".jsonl")


def make_record(
    overrides: Sequence[str], folder: Path, cells: Sequence[RecordedCell], threads: int | None
) -> SweepRecord:
    """Of a command given now and here."""
    overrides = tuple(without_password(text) for text in overrides)
    cells = [replace(c, overrides=tuple(without_password(text) for text in c.overrides)) for c in cells]
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    return SweepRecord(str(folder), overrides, os.getcwd(), threads, tuple(cells), now, now)  # noqa: PTH109


def read_record(path: Path) -> SweepRecord:
    """Raises UserError for a file that is none, FileNotFoundError where there is none."""
    try:
        found = read_json(path)
        cells = tuple(RecordedCell(c["fingerprint"], tuple(c["overrides"]), c["name"]) for c in found["cells"])
        known = {key: value for key, value in found.items() if key in SweepRecord.__dataclass_fields__}
        words = (*found["overrides"], *(o for cell in cells for o in cell.overrides), *(c.name for c in cells))
        if not all(isinstance(word, str) for word in (*words, found["folder"], found["cwd"])):
            raise TypeError("it holds a value that is no text")
        if any(Path(cell.fingerprint).name != cell.fingerprint or cell.fingerprint == ".." for cell in cells):
            raise ValueError("a cell's fingerprint is a path")
        return SweepRecord(**{**known, "overrides": tuple(found["overrides"]), "cells": cells})
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is no record of a sweep ({error}). Give its command again by hand.") from error


def records(folder: Path) -> list[Path]:
    """Of all commands given there, oldest call first."""
    return sorted(folder.glob("sweep-????????.json"), key=lambda path: path.stat().st_mtime)


def fingerprints(path: Path) -> set[str]:
    """The cells of a record: those it names, and those that its journal tells of."""
    named = {cell.fingerprint for cell in read_record(path).cells}
    journal = path.with_suffix(".jsonl")
    told = entries(journal.read_bytes()) if journal.is_file() else []
    names = {str(entry["cell"]) for entry in told if "cell" in entry}
    return named | {name for name in names if Path(name).name == name != ".."}  # a path would lead out of the sweep
