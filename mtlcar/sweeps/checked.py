"""All cells of a sweep, checked before the first one starts."""

import json
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from mtlcar.checks.found import Found
from mtlcar.sweeps.cell_task import MAKER
from mtlcar.sweeps.cells import Cell

if TYPE_CHECKING:  # it imports torch, and finished cells are not checked again
    from mtlcar.checks.networks import Networks


def checked_cells(wanted: Sequence[Sequence[str]], threads: int, *, here: bool) -> list[Cell]:
    """The cells that the given lists of overrides make, in their order.

    Args:
        wanted: overrides of each cell.
        here: they will run on this machine, which is looked at too.

    Raises:
        UserError: every mistake in any cell, and the cells that have it; nothing was started.
    """
    wrong = _Wrong(wanted)
    networks: Networks = {}
    cells: list[Cell] = []
    for overrides in wanted:
        with wrong.at(overrides):
            cells.append(MAKER.make(overrides, threads=threads, networks=networks))
    unique = {cell.directory: cell for cell in cells}
    pending = [cell for cell in unique.values() if not cell.done]
    _check_parts(pending, wrong, networks, here=here)
    wrong.refuse()
    return cells


def _check_parts(cells: Sequence[Cell], wrong: "_Wrong", networks: "Networks", *, here: bool) -> None:
    """Every part of every cell is built once without data."""
    if not cells:
        return
    from rich.progress import track

    from mtlcar.checks import machine
    from mtlcar.checks.parts import check_parts

    parameters = 0
    known: dict[str, tuple[int, list[str]]] = {}
    for cell in track(cells, description="Checking the cells", transient=True, disable=not sys.stdout.isatty()):
        key = parts_key(cell.cfg)
        if key not in known:
            found, count = Found(machine.devices(cell.cfg) if here else ()), 0
            with found.trying():
                count = check_parts(cell.cfg, cell.tasks, networks)
            known[key] = count, found.problems
        parameters += known[key][0] * (not (cell.directory / "checkpoints").exists())
        wrong.add(cell.overrides, known[key][1])
    if here and not wrong.cells:
        for cell in {(c.images, c.cfg.data.image_size): c for c in cells}.values():
            wrong.add(cell.overrides, machine.disk(cell.cfg, images=cell.images, checkpoints=parameters))


def parts_key(cfg: DictConfig) -> str:
    """The same for cells that differ in nothing but seed and name: what fits in one fits in all."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return json.dumps({k: v for k, v in plain.items() if k not in ("seed", "method", "sweep")}, default=str)


class _Wrong:
    """Mistakes and the cells that have them."""

    def __init__(self, wanted: Sequence[Sequence[str]]) -> None:
        self.wanted = wanted
        self.cells: dict[str, list[Sequence[str]]] = {}

    def add(self, overrides: Sequence[str], problems: Iterable[str]) -> None:
        for problem in problems:
            self.cells.setdefault(problem, []).append(overrides)

    @contextmanager
    def at(self, overrides: Sequence[str]) -> Iterator[None]:
        """Notes a UserError of the block as one of this cell."""
        found = Found()
        with found.trying():
            yield
        self.add(overrides, found.problems)

    def refuse(self) -> None:
        if not self.cells:
            return
        Found(f"{problem}{self._where(cells)}" for problem, cells in self.cells.items()).refuse("Nothing was started.")

    def _where(self, cells: Sequence[Sequence[str]]) -> str:
        """Which cells: nothing if all are meant, else how many and what is particular to the first."""
        if len(cells) == len(self.wanted):
            return ""
        common = set.intersection(*(set(o) for o in self.wanted))
        first = shlex.join(o for o in cells[0] if o not in common) or "the defaults"
        if len(cells) == 1:
            return f"\nThis is the cell {first}."
        return f"\nThis is in {len(cells)} of {len(self.wanted)} cells, the first: {first}."
