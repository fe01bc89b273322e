"""Where runs lie: below folders, or by the beginning of a name."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mtlcar.errors import UserError
from mtlcar.listing.stored import FINGERPRINT, OURS, StoredRun, read

WANDB = re.compile(r"(offline-)?run-\d{8}_\d{6}-")
"""Folders of a W&B run. An online one has a config.yaml too."""


@dataclass
class Stored:
    """The runs below some folders, and those that cannot be read: (`<sweep>/<fingerprint>`, reason)."""

    runs: list[StoredRun] = field(default_factory=list)
    damaged: list[tuple[str, str]] = field(default_factory=list)


def find(directories: Iterable[Path]) -> Stored:
    """Every run at or below `directories`, in the order of their paths, each once; other folders are passed over.

    Raises:
        UserError: a folder does not exist.
    """
    found = Stored()
    for path in all_run_directories(directories):
        called = f"{path.parent.name}/{path.name}"
        run = read(path)
        if isinstance(run, str):
            found.damaged.append((called, run))
        elif run is not None:
            found.runs.append(run)
            found.damaged += [(called, problem) for problem in run.problems]
    return found


def all_run_directories(directories: Iterable[Path]) -> list[Path]:
    """`run_directories` of several folders, each once.

    Raises:
        UserError: a folder does not exist.
    """
    wanted = list(directories)
    for directory in wanted:
        if not directory.is_dir():
            raise UserError(
                f"{directory}: no such folder. Give run, sweep or runs folders; `mtlcar train` writes to `runs` unless "
                "paths.runs says otherwise."
            )
    return list(dict.fromkeys(path.resolve() for directory in wanted for path in run_directories(directory)))


def run_directories(folder: Path) -> Iterator[Path]:
    """Folders with a config.yaml, or named as a run and with some of its files. Nothing inside one is looked at, nor
    hidden folders, links and W&B's own."""
    try:
        if (folder / "config.yaml").is_file() or (
            FINGERPRINT.fullmatch(folder.name) and any((folder / name).exists() for name in OURS)
        ):
            yield folder
            return
        children = sorted(folder.iterdir())
    except OSError:
        if FINGERPRINT.fullmatch(folder.name):
            yield folder  # the reader says what is wrong with it
        return
    for child in children:
        if child.is_dir() and not child.is_symlink() and not child.name.startswith(".") and not WANDB.match(child.name):
            yield from run_directories(child)


def find_run(text: str, folder: Path = Path("runs")) -> StoredRun:
    """The run that a user means: a directory, the beginning of one's path, or of `<fingerprint>` or
    `<sweep>/<fingerprint>` in `folder`.

    Raises:
        UserError: no run, several, or one that cannot be read.
    """
    path = Path(text)
    candidates = [path] if path.is_dir() else _beginning_with(path) or _named(text, folder)
    if len(candidates) > 1:
        listed = "\n".join(f"  {candidate}" for candidate in candidates[:10])
        more = f"\n  and {len(candidates) - 10} more" if len(candidates) > 10 else ""
        raise UserError(f"{text!r} may be any of {len(candidates)} runs; say more of it:\n{listed}{more}")
    if not candidates:
        raise UserError(
            f"There is no run {text!r}: neither a directory, nor the beginning of a fingerprint in {folder}/*/*.\n"
            "`mtlcar runs list` prints the runs there are; --runs names another folder."
        )
    run = read(candidates[0].resolve())
    if isinstance(run, StoredRun):
        return run
    below = [str(p) for p in run_directories(path) if p != path][:5] if path.is_dir() else []
    if below:
        raise UserError(f"{candidates[0]} is no run directory. Runs below it: {', '.join(below)}.")
    raise UserError(f"{candidates[0]} is no run directory that can be read: {run or 'no config.yaml of a run in it'}.")


def _beginning_with(path: Path) -> list[Path]:
    if not path.name or len(path.parts) < 2 or not path.parent.is_dir():
        return []
    return [p for p in sorted(path.parent.iterdir()) if p.name.startswith(path.name) and (p / "config.yaml").is_file()]


def _named(text: str, folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    runs = list(run_directories(folder))
    return [p for p in runs if p.name.startswith(text) or f"{p.parent.name}/{p.name}".startswith(text)]
