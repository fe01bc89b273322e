"""`mtlcar train`: compose and check every cell first, then run each as a process of its own."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from mtlcar.config import compose_config, conf_dir, parse
from mtlcar.errors import UserError
from mtlcar.runs.cells import Cell, CellMaker
from mtlcar.runs.files import read_json

PLUGIN_SWITCHES = ("hydra/", "hydra.")


def train(overrides: Sequence[str], *, multirun: bool = False, show_traceback: bool = False) -> int:
    """Exit status: 0 all finished, 2 a mistake found before any training, 1 some cell failed."""
    maker = CellMaker()
    if not multirun:
        sweeping = [o.input_line for o in parse(overrides) if o.is_sweep_override()]
        if sweeping:
            raise UserError(f"{sweeping[0]!r} lists several values: use `mtlcar train -m` to run one cell for each.")
        cell = maker.make(overrides)
        return run_cell(cell, show_traceback=show_traceback)
    cells = [maker.make(o) for o in expand(overrides)]
    unique = list({cell.id: cell for cell in cells}.values())
    twins = len(cells) - len(unique)
    print(
        f"{len(unique)} cells"
        + (f" ({twins} more are the same runs)" if twins else "")
        + f" in {cells[0].directory.parent}"
    )
    status = sweep(overrides)
    failed = [cell for cell in unique if not cell.done]
    if failed:
        print(
            f"\n{len(failed)} of {len(unique)} cells did not finish; the same command runs them again, or one by one:"
        )
        for cell in failed:
            print(f"  {sys.executable} -m mtlcar.runs.job {cell.directory}    # {' '.join(cell.overrides)}")
        return max(status, 1)
    print(f"\nAll {len(unique)} cells are finished. Compare them: mtlcar report {cells[0].directory.parent}")
    return status


def expand(overrides: Sequence[str]) -> list[list[str]]:
    """The cells of a multirun, by Hydra's own rules, the configuration's `hydra.sweeper.params` included."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    fixed = [str(o.input_line) for o in parse(overrides) if not o.is_sweep_override()]
    cfg = compose_config(fixed, with_hydra=True)
    params = cfg.hydra.sweeper.get("params") or {}
    given = {o.key_or_group for o in parse(overrides)}
    asked = [f"{k}={v}" for k, v in params.items() if k not in given]
    batches = BasicSweeper.split_arguments(parse([*asked, *overrides]), max_batch_size=None)
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
        cell = CellMaker().from_config(own, overrides)
        run_cell(cell)
        value = read_json(cell.directory / "metrics.json")["best"]["value"] if cell.done else None
    except UserError as error:
        print(f"mtlcar: error: {error}", file=sys.stderr)
        value = None
    return float("nan") if value is None else float(value)


def run_cell(cell: Cell, *, show_traceback: bool = False) -> int:
    """One cell in a fresh process, unless it is finished already."""
    if cell.done:
        print(f"finished already: {cell.directory}  ({' '.join(cell.overrides)})")
        return 0
    directory = cell.write()
    command = [sys.executable, "-m", "mtlcar.runs.job", str(directory), *(["--traceback"] if show_traceback else [])]
    print(f"{directory}  ({' '.join(cell.overrides) or 'defaults'})", flush=True)
    return subprocess.run(command, env={**os.environ, "PYTHONUNBUFFERED": "1"}, check=False).returncode


def find_run(text: str) -> Path:
    """A run directory from what a user typed.

    Raises:
        UserError: no such run, or an unfinished one.
    """
    path = Path(text)
    if not (path / "config.yaml").is_file():
        inside = [str(p.parent) for p in sorted(path.glob("*/config.yaml"))][:5] if path.is_dir() else []
        hint = f" Runs below it: {', '.join(inside)}." if inside else ""
        raise UserError(f"{text} is no run directory (no config.yaml in it).{hint}")
    return path
