"""Hydra's launchers and sweepers, over cells that were composed and checked here."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtlcar.config import conf_dir
from mtlcar.sweeps.cell_task import CellTask
from mtlcar.sweeps.stopping import Stop
from mtlcar.sweeps.worker import prepare_launcher


class Hydra:
    """Hydra's plugins as one sweep needs them. A context.

    Args:
        arguments: all overrides of the command line, and what the configuration sweeps over.
        folder: the sweep directory.
    """

    def __init__(self, arguments: Sequence[str], folder: Path) -> None:
        from hydra import initialize_config_dir
        from hydra._internal.callbacks import Callbacks
        from hydra.core.global_hydra import GlobalHydra
        from hydra.types import HydraContext, RunMode

        self._global = initialize_config_dir(str(conf_dir()), job_name="mtlcar", version_base="1.3")
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        self.cfg = hydra.compose_config(
            "train",
            [*arguments, "hydra.mode=MULTIRUN", f"hydra.sweep.dir={quoted(str(folder))}"],
            run_mode=RunMode.MULTIRUN,
            with_log_configuration=True,
        )
        self.callbacks = Callbacks(self.cfg)
        self.context = HydraContext(config_loader=hydra.config_loader, callbacks=self.callbacks)

    def __enter__(self) -> "Hydra":
        self._global.__enter__()
        prepare_launcher(several=not self.cfg.hydra.launcher._target_.endswith(".BasicLauncher"))
        self.callbacks.on_multirun_start(config=self.cfg, config_name="train")
        return self

    def __exit__(self, *error: Any) -> None:
        self.callbacks.on_multirun_end(config=self.cfg, config_name="train")
        self._global.__exit__(*error)

    def launch(self, cells: Sequence[Sequence[str]], task: CellTask, stop: Stop) -> None:
        """The cells through the launcher, in batches of `hydra.sweeper.max_batch_size`."""
        from hydra.core.plugins import Plugins

        launcher = Plugins.instance().instantiate_launcher(
            config=self.cfg, hydra_context=self.context, task_function=task
        )
        size = self.cfg.hydra.sweeper.get("max_batch_size") or len(cells)
        for begin in range(0, len(cells), size):
            stop.check()
            launcher.launch([list(cell) for cell in cells[begin : begin + size]], initial_job_idx=begin)

    def sweep(self, task: CellTask, stop: Stop) -> None:
        """The cells that the sweeper chooses."""
        from hydra.core.plugins import Plugins

        sweeper: Any = Plugins.instance().instantiate_sweeper(
            config=self.cfg, hydra_context=self.context, task_function=task
        )
        inner = getattr(sweeper, "sweeper", sweeper)  # plugins keep what works in an attribute
        if hasattr(inner, "launcher"):
            inner.launcher = Stopping(inner.launcher, stop)
        sweeper.sweep(arguments=list(self.cfg.hydra.overrides.task))


class Stopping:
    """A launcher that a sweeper cannot go on with after a stop, nor learn results from that a stop has spoilt."""

    def __init__(self, launcher: Any, stop: Stop) -> None:
        self.launcher = launcher
        self.stop = stop

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[Any]:
        self.stop.check()
        returns: Sequence[Any] = self.launcher.launch(job_overrides, initial_job_idx=initial_job_idx)
        self.stop.check()
        return returns


def quoted(text: str) -> str:
    """For Hydra's grammar."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
