"""`mtlcar resume DIR... [overrides]`: what was begun in a sweep or run directory goes on."""

import contextlib
import os
import shlex
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from omegaconf import OmegaConf

from mtlcar.config import compose_config, finish, groups, parse
from mtlcar.errors import UserError
from mtlcar.runs.files import write_text
from mtlcar.runs.fingerprint import WITHOUT
from mtlcar.runs.lock import Busy, run_lock
from mtlcar.runs.secrets import without_password
from mtlcar.runs.trust import load_config, refuse_code, refuse_foreign
from mtlcar.sweeps.cell_task import CellTask
from mtlcar.sweeps.launch import train
from mtlcar.sweeps.launcher import quoted
from mtlcar.sweeps.one_run import run_directory
from mtlcar.sweeps.outcomes import Journal, Outcome, is_done, overrides_in
from mtlcar.sweeps.record import SweepRecord, fingerprints, read_record, records
from mtlcar.sweeps.recorded_words import refuse_foreign_words, with_storage
from mtlcar.sweeps.stopping import Stop
from mtlcar.sweeps.sweep import Planned, carry_out, new_call, wrap_up

PLACE = ("sweep", "paths.runs")
"""Where runs are: said by the directory that is given."""


def resume(words: Sequence[str], *, show_traceback: bool = False) -> int:
    """Go on in every directory: the commands recorded there, then the runs that belong to none of them.

    Args:
        words: sweep or run directories, and overrides that cannot change a result.

    Returns:
        Exit status: 0 all is finished, 1 something is not, 2 a recorded command or a directory was refused, 128 +
        signal stopped.
    """
    extra = [word for word in words if "=" in word and not os.path.exists(word)]  # noqa: PTH110 - Path's raises for long ones
    places = [Path(word).resolve() for word in words if word not in extra]
    if not places:
        raise UserError("mtlcar resume needs a sweep directory (runs/NAME) or a run directory (runs/NAME/RUN).")
    refuse(extra)
    given = set[Hashable]()
    parts = [part for place in places for part in parts_of(place, extra, show_traceback, given)]
    status = 0
    for part in parts:
        try:
            found = part()
        except UserError as error:
            if len(parts) == 1:
                raise
            print(f"mtlcar: error: {error}", flush=True)
            found = 2
        if found > 128:
            return found
        status = max(status, found)
    return status


def refuse(overrides: Sequence[str]) -> None:
    """Raises UserError for what could change a result: a run is finished as it was begun."""
    for override in parse(overrides):
        key = override.key_or_group
        if override.is_sweep_override():
            raise UserError(
                f"{override.input_line!r} lists several values; mtlcar resume goes on with runs as they are."
            )
        if key in PLACE:
            raise UserError(f"{override.input_line!r}: the directory that is given says where the runs are.")
        if not any(key == name or key.startswith((f"{name}.", f"{name}/")) for name in WITHOUT):
            raise UserError(
                f"{override.input_line!r} could change the result, so that it would be another run: "
                f"mtlcar train ... {override.input_line}. What mtlcar resume may change: {', '.join(WITHOUT)}."
            )


def parts_of(place: Path, extra: Sequence[str], show_traceback: bool, given: set[Hashable]) -> list[Callable[[], int]]:
    """What there is to do in a directory, in order.

    Args:
        given: commands of other directories (`identity`), which are not given twice; those of this one are added.

    Raises:
        UserError: it is neither a sweep's nor a run's.
    """
    if (place / "config.yaml").is_file():
        return [lambda: go_on([place], extra, show_traceback)]
    found = records(place) if place.is_dir() else []
    runs = sorted(path.parent for path in place.glob("*/config.yaml"))
    if not found and not runs:
        inside = sorted({str(path.parent.parent) for path in place.glob("*/*/config.yaml")})[:5]
        hint = f" Sweeps below it: {', '.join(inside)}." if inside else ""
        raise UserError(f"{place} holds neither runs nor the record of a sweep.{hint}")
    known, theirs = dict[Hashable, SweepRecord](), set[str]()
    for path in found:
        try:
            record = read_record(path)
            known[identity(record, place)] = record
            theirs |= fingerprints(path)
        except UserError as error:
            print(f"mtlcar: {error}", flush=True)
    parts: list[Callable[[], int]] = [
        lambda record=record: give_again(record, place, extra, show_traceback)  # type: ignore[misc]
        for key, record in known.items()
        if key not in given
    ]
    given.update(known)
    alone = [run for run in runs if run.name not in theirs]
    if alone or not known:
        parts.append(lambda: go_on(alone, extra, show_traceback))
    return parts


def identity(record: SweepRecord, place: Path) -> Hashable:
    """Equal for records of one command: in another order, or in each of the folders that it names."""
    cells = frozenset((cell.fingerprint, frozenset(cell.overrides)) for cell in record.cells)
    return record.cwd if several_folders(record) else place, cells, () if cells else tuple(sorted(record.overrides))


def several_folders(record: SweepRecord) -> bool:
    return any(o.key_or_group in PLACE and o.is_sweep_override() for o in parse(record.overrides))


def not_below(recorded: Sequence[str], extra: Sequence[str]) -> list[str]:
    """Recorded overrides without the keys of groups that are chosen anew, which may not have them."""
    names = groups()
    chosen = [o.key_or_group for o in parse(extra)]
    gone = tuple(f"{key.replace('/', '.')}." for key in chosen if key in names or key.startswith("hydra/"))
    return [str(o.input_line) for o in parse(recorded) if not gone or not o.key_or_group.startswith(gone)]


def give_again(record: SweepRecord, place: Path, extra: Sequence[str], show_traceback: bool) -> int:
    """A recorded command, from where it was given.

    Raises:
        UserError: it would call code from outside mtlcar (`refuse_foreign_words`), or lacks the password of a storage
            (hydra.sweeper.storage=URL or MTLCAR_STORAGE brings it).
    """
    cells = [place / cell.fingerprint for cell in record.cells]
    if cells and not several_folders(record) and all(map(is_done, cells)):  # needs neither data nor weights
        print(f"All {len(cells)} cells were finished before.")
        wrap_up(cells, if_missing=True)
        return 0
    moved = []
    if Path(record.folder) != place:
        if several_folders(record):
            raise UserError(
                f"{place} was {record.folder} when its sweep began, which names several folders. Move it back, or give "
                f"the command with the new paths.runs: mtlcar train -m {without_password(shlex.join(record.overrides))}"
            )
        print(f"{record.folder} has become {place}.")
        moved = [f"paths.runs={quoted(str(place.parent))}", f"sweep={quoted(place.name)}"]
    refuse_foreign_words(record.overrides, place / f"{record.name}.json")
    recorded = with_storage(not_below(record.overrides, extra), extra, os.environ.get("MTLCAR_STORAGE"))
    overrides = [*recorded, *moved, *extra]
    print(f"mtlcar train -m {without_password(shlex.join(overrides))}", flush=True)
    with inside(record.cwd):
        return train(
            overrides,
            multirun=True,
            show_traceback=show_traceback,
            typed=record.overrides,
            threads=record.threads,
        )


@contextlib.contextmanager
def inside(cwd: str) -> Iterator[None]:
    """The working directory of a command; where it is gone, this one."""
    if not Path(cwd).is_dir():
        print(f"{cwd}, where the command was given, is gone: relative paths in it count from here.")
        yield
        return
    with contextlib.chdir(cwd):
        yield


def go_on(directories: Sequence[Path], extra: Sequence[str], show_traceback: bool) -> int:
    """Runs from their own config.yaml, one after another, in this process's order. No launcher takes part."""
    planned = [Planned(path.name, path, overrides_in(path)) for path in directories if not is_done(path)]
    if not planned:
        print("Nothing to do: " + (f"{directories[0]} is finished." if len(directories) == 1 else "all is finished."))
        return 0

    def work(todo: Sequence[Planned], task: CellTask, stop: Stop) -> None:
        journal = Journal(task.journal, task.call)
        for cell in todo:
            outcome = cell.outcome("unstarted")
            if not stop.requested:
                outcome = one(cell, extra, stop, journal, show_traceback)
            journal.add("ended", outcome)

    folder = planned[0].directory.parent
    task = CellTask(new_call(), folder / "resumed.jsonl", show_traceback=show_traceback)
    return carry_out(planned, work, task, go_on=f"mtlcar resume {shlex.join(map(str, directories))}", resumed=True)


def one(cell: Planned, extra: Sequence[str], stop: Stop, journal: Journal, show_traceback: bool) -> Outcome:
    try:
        with run_lock(cell.directory):
            if cell.done:
                return cell.outcome("joined").with_result()
            if extra:
                change(cell.directory / "config.yaml", extra)
    except Busy as busy:
        print(f"{busy.holder} works in {cell.directory}.", flush=True)
        return cell.outcome("elsewhere")
    except Exception as error:  # one bad run does not stop the others
        return replace(cell.outcome("failed"), error=(str(error).splitlines() or [type(error).__name__])[0])
    print(f"{cell.directory}  ({' '.join(cell.overrides)})", flush=True)
    return run_directory(
        cell.outcome("unstarted"),
        stop,
        show_traceback=show_traceback,
        started=lambda blank: journal.add("started", blank),
    )


def change(path: Path, overrides: Sequence[str]) -> None:
    """Overrides of a run's config.yaml; those of Hydra say nothing to a run alone.

    Raises:
        UserError: a key that it has not, or code from outside (`mtlcar.runs.trust`).
    """
    cfg, names = load_config(path.parent), groups()
    refuse_foreign(cfg, path.parent)
    refuse_code(cfg, path.parent)
    for override in parse(overrides):
        key = override.key_or_group
        top, _, below = key.partition(".")
        if top == "hydra" or key.startswith("hydra/"):
            continue
        if key in names:
            cfg[key] = compose_config([str(override.input_line)])[key]
            continue
        if top not in cfg:  # younger than this run
            cfg[top] = compose_config([])[top]
        node = OmegaConf.select(cfg, key.rpartition(".")[0]) if below else cfg
        if not OmegaConf.is_dict(node) or key.rpartition(".")[2] not in node:
            raise UserError(f"{override.input_line!r}: there is no {key!r} in {path}.")
        OmegaConf.update(cfg, key, override.value(), merge=False)
    write_text(path, OmegaConf.to_yaml(finish(cfg), resolve=True))
