"""Optuna studies that survive: the same command goes on with the same study, and nothing in it is run twice."""

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mtlcar.config import parse
from mtlcar.errors import UserError
from mtlcar.listing.flat import outside_fingerprint
from mtlcar.listing.tables import number
from mtlcar.runs.lock import run_lock
from mtlcar.runs.secrets import without_password
from mtlcar.sweeps.cell_task import MAKER
from mtlcar.sweeps.launcher import quoted

PLUGIN = {"n_jobs": 2, "max_failure_rate": 0.0}
"""What the plugin's configuration says where nobody chose."""


class OptunaStudy:
    """A command's study, put in order before the plugin opens it. Its trials left running by a kill are enqueued again
    with their parameters, so that their half-trained runs go on.

    Args:
        overrides: of the command.
        cfg: the configuration without what is swept, Hydra's part included.
        folder: the sweep directory, where the study's file is unless `hydra.sweeper.storage` says otherwise.

    Attributes:
        total: trials that the study is to have finished in the end (`hydra.sweeper.n_trials`).
        left: how many of them are to come.

    Raises:
        UserError: several objectives, a direction against the monitored metric, a study of another direction.
    """

    def __init__(self, overrides: Sequence[str], cfg: DictConfig, folder: Path) -> None:
        self.sweeper, self.folder = cfg.hydra.sweeper, folder
        self.typed = {o.key_or_group for o in parse(overrides)}
        self.name = self.sweeper.study_name or study_name(overrides, folder if self.sweeper.storage else None)
        self.storage = self.sweeper.storage or f"sqlite:///{folder / 'optuna.db'}"
        self.shared = self.sweeper.study_name is not None and self.sweeper.storage is not None
        self.direction = self._direction(overrides, cfg)
        self.basic = cfg.hydra.launcher._target_.endswith(".BasicLauncher")
        self.total, self.left, self.tried = int(self.sweeper.n_trials), int(self.sweeper.n_trials), 0

    @contextmanager
    def held(self) -> Iterator[None]:
        """The study is this process's alone, unless it was given a storage and a name to share it with others.

        Raises:
            Busy: another process has it.
        """
        if self.shared:
            yield
            return
        place = self.folder / f".optuna-{hashlib.sha256(self.name.encode()).hexdigest()[:8]}"
        place.mkdir(parents=True, exist_ok=True)
        with run_lock(place):
            yield

    def open(self) -> Any:
        """The study, made where there is none."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SQLAlchemy says once that it is not its version 2
            import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = self.storage
        if OmegaConf.is_config(storage):
            from hydra.utils import instantiate

            storage = instantiate(storage)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            study = optuna.create_study(
                study_name=self.name, storage=storage, direction=self.direction, load_if_exists=True
            )
        begun = study.direction.name.lower()
        if begun != self.direction:
            raise UserError(
                f"The study {self.name} in {without_password(str(self.storage))} was begun with direction {begun}, and "
                f"this command asks for {self.direction}. Give it another name: hydra.sweeper.study_name=NAME."
            )
        return study

    def put_in_order(self) -> None:
        """Counts what is finished, and enqueues what a kill has left."""
        from optuna.trial import TrialState

        study = self.open()
        trials = study.get_trials(deepcopy=False)
        self.tried = len(trials)
        finished = sum(t.state == TrialState.COMPLETE for t in trials)
        self.left = max(0, self.total - finished)
        words = [f"{finished} of {self.total} trials are finished"] if trials else []
        running = [t for t in trials if t.state == TrialState.RUNNING]
        if running and self.shared:
            words.append(f"{len(running)} running ones may be other processes' and are left to them")
        elif running:
            waiting = [t.system_attrs.get("fixed_params") for t in trials if t.state == TrialState.WAITING]
            for trial in running:
                params = trial.params or trial.system_attrs.get("fixed_params")
                if params and params not in waiting:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")  # it is experimental, says this Optuna
                        study.enqueue_trial(params)
                study.tell(trial.number, state=TrialState.FAIL)
            words.append(f"{len(running)} that had been stopped go on")
        if words:
            print(f"Study {self.name}: {', '.join(words)}; {self.left} to go.", flush=True)

    @property
    def settings(self) -> list[str]:
        """Overrides for the plugin."""
        found = [
            f"hydra.sweeper.study_name={quoted(self.name)}",
            f"hydra.sweeper.n_trials={self.left}",
            f"hydra.sweeper.direction={self.direction}",
        ]
        if not OmegaConf.is_config(self.storage):
            found.append(f"hydra.sweeper.storage={quoted(self.storage)}")
        if self._untouched("max_failure_rate"):
            found.append("hydra.sweeper.max_failure_rate=1.0")  # a failed cell does not stop a sweep
        if self._untouched("n_jobs") and self.basic:
            found.append("hydra.sweeper.n_jobs=1")  # one after another: each is chosen with the earlier ones' results
        seed = self.sweeper.sampler.get("seed")
        if seed is not None and self.tried:
            found.append(f"hydra.sweeper.sampler.seed={seed + self.tried}")  # or it draws the first trials again
        return found

    def report(self) -> None:
        """Prints the best trial so far."""
        study = self.open()
        try:
            best = study.best_trial
        except ValueError:
            print(f"Study {self.name}: no trial has finished.")
            return
        words = " ".join(f"{key}={value}" for key, value in best.params.items())
        print(f"Study {self.name}: best of its trials {number(best.value)} ({words}).")

    def _untouched(self, key: str) -> bool:
        return f"hydra.sweeper.{key}" not in self.typed and self.sweeper[key] == PLUGIN[key]

    def _direction(self, overrides: Sequence[str], cfg: DictConfig) -> str:
        """minimize or maximize: what the monitored metric asks for."""
        from mtlcar.build import resolve_monitor

        if OmegaConf.is_list(self.sweeper.direction):
            raise UserError("hydra.sweeper.direction lists several; a run has one monitored value. Give one, or none.")
        given = getattr(self.sweeper.direction, "name", str(self.sweeper.direction))
        typed = "hydra.sweeper.direction" in self.typed
        fixed = [str(o.input_line) for o in parse(overrides) if not o.is_sweep_override()]
        try:
            cell = MAKER.make([o for o in fixed if not o.startswith(("hydra.", "hydra/"))])
        except UserError:
            if typed:
                return given
            raise
        monitor, mode = resolve_monitor(cell.cfg, cell.tasks, cell.tasks)
        direction = {"max": "maximize", "min": "minimize"}[mode]
        if typed and given != direction:
            better = "higher" if mode == "max" else "lower"
            raise UserError(
                f"hydra.sweeper.direction={given}, but {monitor} is better when {better}. Leave the direction out, or "
                "choose another monitor."
            )
        return direction


def study_name(overrides: Sequence[str], folder: Path | None) -> str:
    """From what the trials have in common and what is searched; how many and where they run does not count.

    Args:
        folder: the sweep directory, where the storage may have other sweeps' studies too, which are not this one's.
    """
    kept = [
        str(o.input_line)
        for o in parse(overrides)
        if (o.key_or_group.startswith("hydra.sweeper.params") or not o.key_or_group.startswith(("hydra.", "hydra/")))
        and not outside_fingerprint(o.key_or_group)
    ]
    text = chr(10).join([*sorted(kept), *([] if folder is None else [str(folder)])])
    return f"mtlcar-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
