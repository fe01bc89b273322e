"""`mtlcar train`: compose and check every cell first, then run each as a process of its own."""

import shlex
import shutil
from collections.abc import Sequence
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig

from mtlcar.checks import machine
from mtlcar.checks.found import Found
from mtlcar.config import compose_config, cores, parse
from mtlcar.data.writing import must_be_writable
from mtlcar.errors import UserError
from mtlcar.runs.job import BUSY
from mtlcar.sweeps.cell_task import MAKER, CellTask
from mtlcar.sweeps.cells import Cell
from mtlcar.sweeps.checked import checked_cells
from mtlcar.sweeps.launcher import Hydra
from mtlcar.sweeps.one_run import run_cell
from mtlcar.sweeps.record import RecordedCell, make_record
from mtlcar.sweeps.spare import SPARE
from mtlcar.sweeps.stopping import Stop
from mtlcar.sweeps.sweep import Planned, carry_out, new_call


def train(
    overrides: Sequence[str],
    *,
    multirun: bool = False,
    show_traceback: bool = False,
    typed: Sequence[str] | None = None,
    threads: int | None = None,
) -> int:
    """One run or a sweep.

    Args:
        typed: what the sweep's record keeps, if that is not `overrides`.
        threads: what `threads: null` means; None: this machine's number.

    Returns:
        Exit status: 0 all finished, 2 a mistake found before any training, 1 some cell failed, 128 + signal stopped, 75
        (one run alone) another process works on it.
    """
    if multirun:
        return train_sweep(overrides, overrides if typed is None else typed, threads, show_traceback)
    sweeping = [o.input_line for o in parse(overrides) if o.is_sweep_override()]
    if sweeping:
        raise UserError(f"{sweeping[0]!r} lists several values: use `mtlcar train -m` to run one cell for each.")
    launcher = [o for o in overrides if o.startswith("hydra/launcher=")]
    if launcher:
        raise UserError(f"{launcher[0]} is for sweeps: use `mtlcar train -m`, also for one cell.")
    cell = MAKER.make(overrides, threads=threads)
    if not cell.done:
        Found(machine.disk(cell.cfg, images=cell.images)).refuse()
    with Stop() as stop:
        outcome = run_cell(cell, stop, show_traceback=show_traceback)
    if outcome.state == "skipped":
        print(f"finished already: {cell.directory}  ({' '.join(cell.overrides)})")
        return 0
    if outcome.exit is None:
        return stop.status or BUSY
    if outcome.exit < 0:
        return stop.status or 128 - outcome.exit
    return stop.status or outcome.exit or (0 if outcome.ended_well else 1)


def train_sweep(
    overrides: Sequence[str], typed: Sequence[str], threads: int | None = None, show_traceback: bool = False
) -> int:
    """The cells that the overrides list, or those that a sweeper chooses as it goes."""
    resumed = threads is not None  # from where it was begun
    threads = threads or cores()  # of this machine, on whichever the cells will run
    cfg = whole_config(overrides, threads)
    if not is_basic(cfg):
        from mtlcar.sweeps.chosen import chosen_sweep

        return chosen_sweep(overrides, typed, cfg, threads, show_traceback, resumed)
    arguments = with_params(overrides, cfg)
    here = bool(cfg.hydra.launcher._target_.endswith(".BasicLauncher"))
    cells = checked_cells([without_hydra(o) for o in expand(arguments)], threads, here=here or not is_remote(cfg))
    unique = list({cell.directory: cell for cell in cells}.values())
    twins = f" ({len(cells) - len(unique)} more are the same runs)" if len(cells) > len(unique) else ""
    folders = list(dict.fromkeys(cell.directory.parent for cell in unique))
    print(f"{len(unique)} cells{twins} in {', '.join(map(str, folders))}")
    planned = [Planned(cell.id, cell.directory, cell.overrides) for cell in unique]
    journals = []
    for folder in folders:
        with must_be_writable("Runs", folder, "Choose another folder with paths.runs=..."):
            journals.append(make_record(typed, folder, recorded(unique), threads).write(folder))
    task = CellTask(new_call(), journals[0], show_traceback=show_traceback, threads=threads)

    idle = all(leaves_cores_idle(cell.cfg) for cell in unique)

    def work(todo: Sequence[Planned], task: CellTask, stop: Stop) -> None:
        SPARE.expect(len(todo) if here else 0, ahead=idle)
        try:
            with Hydra(arguments, folders[0]) as hydra:
                hydra.launch([cell.overrides for cell in todo], task, stop)
        finally:
            SPARE.expect(0)  # cells that others ran, or that a stop left out

    where = shlex.join(map(str, folders))
    status = carry_out(planned, work, task, go_on=f"mtlcar resume {where}", queued=is_queue(cfg), resumed=resumed)
    if status == 0:
        print(f"Compare them: mtlcar report {where}")
    return status


def leaves_cores_idle(cfg: DictConfig) -> bool:
    """Whether a training of this configuration leaves some of this machine's cores to others."""
    on_gpu = cfg.trainer.accelerator in ("auto", "gpu", "cuda") and shutil.which("nvidia-smi") is not None
    return on_gpu or bool(cfg.threads < cores())


def recorded(cells: Sequence[Cell]) -> list[RecordedCell]:
    from mtlcar.runs.names import run_name

    return [RecordedCell(cell.id, cell.overrides, run_name(cell.cfg)) for cell in cells]


def whole_config(overrides: Sequence[str], threads: int) -> DictConfig:
    """`hydra_config`; if that refuses something, what is wrong with the cells is told too."""
    found = Found()
    with found.trying():
        return hydra_config(overrides)
    with found.trying():
        first = expand(overrides)[:1]  # the others have the same mistake, and to look at each takes its time
        checked_cells([without_hydra(o) for o in first], threads, here=False)
    found.refuse()
    raise AssertionError


def hydra_config(overrides: Sequence[str]) -> DictConfig:
    """The configuration without what is swept, Hydra's own part included."""
    fixed = [str(o.input_line) for o in parse(overrides) if not o.is_sweep_override()]
    return compose_config(fixed, with_hydra=True)


def is_basic(cfg: DictConfig) -> bool:
    return bool(cfg.hydra.sweeper._target_.endswith(".BasicSweeper"))


def is_remote(cfg: DictConfig) -> bool:
    """Whether the launcher's jobs may run on machines with other devices than this."""
    return not cfg.hydra.launcher._target_.endswith((".BasicLauncher", ".JoblibLauncher", ".LocalLauncher"))


def is_queue(cfg: DictConfig) -> bool:
    """Whether the launcher's jobs go on when the command that queued them ends."""
    return bool(cfg.hydra.launcher._target_.endswith(".SlurmLauncher"))


def with_params(overrides: Sequence[str], cfg: DictConfig) -> list[str]:
    """The overrides, and what the configuration itself sweeps over (`hydra.sweeper.params`) where the command line does
    not say otherwise."""
    given = {o.key_or_group for o in parse(overrides)}
    params: dict[str, Any] = cfg.hydra.sweeper.get("params") or {}
    return [*(f"{k}={v}" for k, v in params.items() if k not in given), *overrides]


def expand(arguments: Sequence[str]) -> list[list[str]]:
    """The cells of a multirun, by Hydra's own rules."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    try:
        batches = BasicSweeper.split_arguments(parse(arguments), max_batch_size=None)
    except HydraException as error:
        raise UserError(
            f"Hydra's basic sweeper cannot list these values: {str(error).splitlines()[0]} Write them out: key=a,b,c."
        ) from error
    return [list(cell) for batch in batches for cell in batch]


def without_hydra(overrides: Sequence[str]) -> list[str]:
    """What is of the run: no launcher, no sweeper."""
    return [o for o in overrides if not o.lstrip("+~").startswith(("hydra.", "hydra/"))]
