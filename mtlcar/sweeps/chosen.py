"""A sweep whose sweeper chooses its cells as it goes, from the results of earlier ones."""

import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from omegaconf import DictConfig

from mtlcar.config import parse
from mtlcar.runs.job import BUSY
from mtlcar.runs.lock import Busy
from mtlcar.sweeps.cell_task import HERE, CellTask
from mtlcar.sweeps.closing import print_closing
from mtlcar.sweeps.launcher import Hydra
from mtlcar.sweeps.optuna_study import OptunaStudy
from mtlcar.sweeps.outcomes import Journal, Outcome
from mtlcar.sweeps.progress import SweepProgress
from mtlcar.sweeps.record import fingerprints, make_record
from mtlcar.sweeps.spare import SPARE
from mtlcar.sweeps.stopping import Stop
from mtlcar.sweeps.sweep import ended_as, new_call, survived, wrap_up


def chosen_sweep(
    overrides: Sequence[str],
    typed: Sequence[str],
    cfg: DictConfig,
    threads: int,
    show_traceback: bool,
    resumed: bool = False,
) -> int:
    """Exit status 0, 1 some cell failed, 75 the same study is under way elsewhere, 128 + signal stopped.

    Args:
        cfg: the configuration without what is swept, Hydra's part included.
    """
    SPARE.expect(0)  # where cells run is not known yet
    folder = Path(cfg.paths.runs).expanduser().resolve() / str(cfg.sweep)
    optuna = cfg.hydra.sweeper._target_.endswith(".OptunaSweeper")
    study = OptunaStudy(overrides, cfg, folder) if optuna else None
    with ExitStack() as held:
        if study is not None:
            try:
                held.enter_context(study.held())
            except Busy as busy:
                print(f"{busy.holder} is making this sweep. Wait until it ends, or stop it.")
                return BUSY
            study.put_in_order()
        journal = make_record(typed, folder, [], threads).write(folder)
        task = CellTask(new_call(), journal, answers=True, show_traceback=show_traceback, threads=threads)
        return _sweep(overrides, folder, study, task, resumed)


def _sweep(overrides: Sequence[str], folder: Path, study: OptunaStudy | None, task: CellTask, resumed: bool) -> int:
    fixed = {str(o.input_line) for o in parse(overrides) if not o.is_sweep_override()}

    def label(outcome: Outcome) -> str:
        return " ".join(o for o in outcome.overrides if o not in fixed)

    total, left = (study.total, study.left) if study else (None, 1)
    progress = SweepProgress(Journal(task.journal, task.call), total, (total or 0) - left if total else 0, label)
    broken = False
    if left:
        arguments = [*overrides, *(study.settings if study else [])]
        with Stop(task.flag) as stop:
            HERE[task.call] = stop
            try:
                with progress, Hydra(arguments, folder) as hydra:
                    broken = not survived(lambda: hydra.sweep(task, stop))
            finally:
                del HERE[task.call]
        outcomes = [ended_as(o, progress) for o in progress.begun]
        labels = {o.key: label(o) for o in outcomes}
        print_closing(outcomes, labels, stopped=bool(stop.status), resumed=resumed, threads=task.threads)
    if study is not None:
        study.report()
    if left and stop.status:
        print(f"Stopped. The same command goes on, or: mtlcar resume {shlex.quote(str(folder))}")
        return stop.status
    cells = [folder / name for name in fingerprints(task.journal.with_suffix(".json"))]
    wrap_up([cell for cell in cells if cell.is_dir()], if_missing=not left)
    return 0 if not left or (not broken and all(o.ended_well for o in outcomes)) else 1
