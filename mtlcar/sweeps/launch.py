"""`mtlcar train`: compose and check every cell first, then run each as a process of its own."""

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from mtlcar.config import compose_config, conf_dir, parse
from mtlcar.errors import UserError
from mtlcar.runs.cells import Cell, CellMaker
from mtlcar.runs.files import read_json

FAILED: list[str] = []
"""Cells that failed in this process, by their overrides, for sweepers that decide their cells as they go."""
MAKER = CellMaker()
"""One for the process: a sweep's cells share the annotations that were read to check them."""


def train(overrides: Sequence[str], *, multirun: bool = False, show_traceback: bool = False) -> int:
    """Exit status: 0 all finished, 2 a mistake found before any training, 1 some cell failed."""
    if not multirun:
        sweeping = [o.input_line for o in parse(overrides) if o.is_sweep_override()]
        if sweeping:
            raise UserError(f"{sweeping[0]!r} lists several values: use `mtlcar train -m` to run one cell for each.")
        cell = MAKER.make(overrides)
        return run_cell(cell, show_traceback=show_traceback)
    arguments = sweep_arguments(overrides)
    if arguments is None:  # a sweeper that decides its cells as it goes
        FAILED.clear()
        status = sweep(overrides)
        for cell_overrides in FAILED:
            print(f"did not finish: mtlcar train {cell_overrides}")
        return max(status, 1 if FAILED else 0)
    cells = [MAKER.make(o) for o in expand(arguments)]
    unique = list({cell.directory: cell for cell in cells}.values())
    check_all(unique)
    twins = f" ({len(cells) - len(unique)} more are the same runs)" if len(cells) > len(unique) else ""
    folder = cells[0].directory.parent
    print(f"{len(unique)} cells{twins} in {folder}")
    status = sweep([*arguments, "hydra.sweeper.params=null"])
    failed = [cell for cell in unique if not cell.done]
    if failed:
        print(
            f"\n{len(failed)} of {len(unique)} cells did not finish; the same command runs them again, or one by one:"
        )
        for cell in failed:
            print(f"  mtlcar train {shlex.join(cell.overrides)}")
        return max(status, 1)
    print(f"\nAll {len(unique)} cells are finished. Compare them: mtlcar report {folder}")
    return status


def check_all(cells: Sequence[Cell]) -> None:
    """Every part of every cell is built once without data, so that no cell fails on a mistake after hours of others.

    Raises:
        UserError: the first cell with a mistake, and the mistake.
    """
    from rich.progress import track

    from mtlcar.build import check_parts

    for cell in track(cells, description="Checking the cells", transient=True, disable=not sys.stdout.isatty()):
        try:
            check_parts(cell.cfg, cell.tasks)
        except UserError as error:
            raise UserError(f"{error}\nThis is the cell {shlex.join(cell.overrides)}; nothing was started.") from error


def sweep_arguments(overrides: Sequence[str]) -> list[str] | None:
    """The overrides, and what the configuration itself sweeps over (`hydra.sweeper.params`) where the command line does
    not say otherwise; Hydra would run both. None for a sweeper other than Hydra's basic one."""
    parsed = parse(overrides)
    cfg = compose_config([str(o.input_line) for o in parsed if not o.is_sweep_override()], with_hydra=True)
    if not cfg.hydra.sweeper._target_.endswith(".BasicSweeper"):
        return None
    given = {o.key_or_group for o in parsed}
    params = cfg.hydra.sweeper.get("params") or {}
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


def sweep(overrides: Sequence[str]) -> int:
    """Hydra's sweeper and launcher over `launch_cell`."""
    import hydra

    argv = sys.argv
    sys.argv = ["mtlcar", "--multirun", *overrides]
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")(launch_cell)()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    finally:
        sys.argv = argv
    return 0


def launch_cell(cfg: DictConfig) -> float:
    """What Hydra calls for one cell; never raises, so that one failing cell does not stop a sweep. Returns the best
    monitored value for sweepers that optimise it (NaN: the cell failed)."""
    from hydra.core.hydra_config import HydraConfig

    overrides = list(HydraConfig.get().overrides.task)
    own = OmegaConf.create(OmegaConf.to_container(cfg, resolve=False))  # Hydra's is read-only
    assert isinstance(own, DictConfig)
    try:
        cell = MAKER.from_config(own, overrides)
        run_cell(cell)
        value = read_json(cell.directory / "metrics.json")["best"]["value"] if cell.done else None
    except UserError as error:
        print(f"mtlcar: error: {error}", file=sys.stderr)
        value = None
    if value is None:
        FAILED.append(shlex.join(overrides))
    return float("nan") if value is None else float(value)


def run_cell(cell: Cell, *, show_traceback: bool = False) -> int:
    """One cell in a fresh process, unless it is finished already."""
    if cell.done:
        print(f"finished already: {cell.directory}  ({' '.join(cell.overrides)})")
        return 0
    mine = not cell.directory.exists()
    directory = cell.write()
    command = [sys.executable, "-m", "mtlcar.runs.job", str(directory), *(["--traceback"] if show_traceback else [])]
    print(f"{directory}  ({' '.join(cell.overrides) or 'defaults'})", flush=True)
    status = wait(subprocess.Popen(command, env={**os.environ, "PYTHONUNBUFFERED": "1"}))
    began = any((directory / name).exists() for name in ("checkpoints", "search.json"))
    if status == 2 and mine and not began:
        shutil.rmtree(directory)  # a mistake found before training leaves nothing behind
        for parent in (directory.parent, directory.parent.parent):
            with contextlib.suppress(OSError):  # other runs are in it
                parent.rmdir()
    return status


def wait(job: subprocess.Popen[bytes]) -> int:
    """The job's exit status. Ctrl-C reaches the job as well: it is given the time to end in order."""
    interrupted = False
    while True:
        try:
            status = job.wait()
        except KeyboardInterrupt:
            interrupted = True
            continue
        if interrupted:
            raise KeyboardInterrupt
        return status


def find_run(text: str) -> Path:
    """A run directory from what a user typed.

    Raises:
        UserError: no such run.
    """
    path = Path(text)
    if not (path / "config.yaml").is_file():
        inside = [str(p.parent) for p in sorted(path.glob("*/config.yaml"))][:5] if path.is_dir() else []
        hint = f" Runs below it: {', '.join(inside)}." if inside else ""
        raise UserError(f"{text} is no run directory (no config.yaml in it).{hint}")
    return path
