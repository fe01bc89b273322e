"""Where metrics go while a run trains: Weights & Biases, CSV files, or nowhere else than the run directory.

A yaml of `conf/logger` names one of the factories below. All have one contract:
`instantiate(cfg.logger, _partial_=True)(run_dir=, run_name=, run_id=, group=, job_type=, config=, tags=)` gives a list
of Lightning loggers (empty: none).
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from mtlcar.errors import UserError
from mtlcar.runs.wandb_mode import choose_mode

log = logging.getLogger(__name__)

NAME_LIMIT = 128
"""Longest run name, group or project that W&B takes, characters."""
TAG_LIMIT = 64
INIT_SECONDS = 30
"""How long an unreachable W&B server may hold up a run before it goes on offline."""


def no_logger(name: str = "none", **_: Any) -> list[Logger]:
    """No logger at all."""
    return []


def csv_logger(run_dir: Path, name: str = "csv", **_: Any) -> list[Logger]:
    """Lightning's CSV logger in `<run_dir>/csv/version_N`; a resumed run starts the next version, so no row is lost."""
    return [CSVLogger(save_dir=run_dir, name=name)]


def wandb_logger(
    run_dir: Path,
    run_name: str,
    run_id: str,
    group: str,
    job_type: str,
    config: Mapping[str, Any],
    tags: Sequence[str] = (),
    name: str = "wandb",
    project: str = "mtlcar",
    entity: str | None = None,
    mode: Literal["auto", "online", "offline"] = "auto",
    notes: str | None = None,
) -> list[Logger]:
    """One W&B run, already started, so that whatever is wrong shows before training.

    Args:
        run_dir: its `wandb/` folder holds the run's files.
        run_name: shown name; shortened to what W&B takes.
        run_id: known beforehand, so that a resumed job goes on in the same W&B run.
        group: the sweep.
        config: the composed configuration as nested plain containers. The yaml's own `tags` are read from its
            `logger` node, because this call's `tags` (which they join) replace the yaml's in the partial.

    Raises:
        UserError: unknown `mode`; online asked for without an API key; a key that W&B refuses.
    """
    own = config.get("logger")
    own_tags = own.get("tags") or [] if isinstance(own, Mapping) else []
    chosen = choose_mode(mode)
    if chosen == "disabled":
        return []
    logger = RunLogger(
        mode=chosen,
        name=shorten(run_name),
        save_dir=run_dir,
        id=run_id,
        project=project,
        entity=entity,
        group=shorten(group),
        job_type=shorten(job_type),
        config=dict(config),
        tags=list(dict.fromkeys(shorten(str(t), TAG_LIMIT) for t in (*tags, *own_tags) if str(t))),
        notes=notes,
    )
    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        run_dir.mkdir(parents=True, exist_ok=True)
        logger.start()
    return [logger]


def shorten(text: str, limit: int = NAME_LIMIT) -> str:
    """`text` in at most `limit` characters; a shortened one ends in a digest, so that two long names stay two."""
    if len(text) <= limit:
        return text
    return f"{text[: limit - 9]}~{hashlib.sha256(text.encode()).hexdigest()[:8]}"


class RunLogger(WandbLogger):
    """Lightning's W&B logger with an explicit step, and rows that a resumed run has already logged left out.

    W&B drops rows whose step goes back; an offline run starts at step 0 again by itself.
    """

    def __init__(self, mode: str, **options: Any) -> None:
        # Not `offline=True`: that makes Lightning set WANDB_MODE for the whole process.
        super().__init__(**options)
        self.mode = mode
        self._last_step = 0

    def start(self) -> None:
        """Start the W&B run; online falls back to offline when the server cannot be reached.

        Raises:
            UserError: W&B refuses the key or the run's settings.
        """
        import wandb
        from wandb.errors import AuthenticationError, CommError, UsageError

        # Console capture is off: train.log has the output, and redrawn progress bars make it unreadable there.
        settings = wandb.Settings(silent=True, console="off", init_timeout=INIT_SECONDS)
        options = {k: v for k, v in self._wandb_init.items() if k != "anonymous"}  # newer versions warn about it
        options |= {"settings": settings, "reinit": "finish_previous"}
        try:
            try:
                run = wandb.init(mode=self.mode, **options)  # type: ignore[arg-type]
            except AuthenticationError:
                raise
            except CommError as error:
                log.warning("W&B cannot be reached, this run is logged offline: %s", str(error).splitlines()[0])
                self.mode = "offline"
                wandb.teardown()  # its service holds on to the run id that it could not register
                run = wandb.init(mode="offline", **options)
        except (AuthenticationError, UsageError) as error:
            raise UserError(
                f"W&B refused to start the run: {error}\nCheck the key (`wandb login --relogin`) and the logger.* "
                "settings, or use logger.mode=offline."
            ) from error
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        self._experiment = run
        where = run.url if self.mode == "online" else f"offline; upload later with `wandb sync {run.settings.sync_dir}`"
        log.info("W&B run %s: %s", run.id, where)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The `wandb.Run`."""
        if self._experiment is None and getattr(self, "_attach_id", None) is None:
            self.start()
        return super().experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        run = self.experiment
        if step is None:
            run.log(dict(metrics))
            return
        row = dict(metrics)
        if any(name.startswith("test/") for name in row):
            # A trainer that only tests, or a test after a restart, may carry a smaller step (and epoch 0) than the last
            # row. It is about the trained network, so it belongs there, and is never a row that was logged before.
            row.pop("epoch", None)
            step = max(step, self._last_step, self._logged_before(run))
        elif run.resumed and step < run.starting_step:
            return
        self._last_step = max(step, self._last_step)
        run.log({**row, "trainer/global_step": step}, step=max(step, run.step))

    @staticmethod
    def _logged_before(run: Any) -> int:
        """The last `trainer/global_step` that a resumed run had when it stopped, 0 if it is new."""
        value = run.summary.get("trainer/global_step") if run.resumed else None
        return int(value) if isinstance(value, int | float) else 0


def wandb_loggers(loggers: Sequence[Logger]) -> list[RunLogger]:
    """Those of `loggers` that have a started W&B run."""
    return [logger for logger in loggers if isinstance(logger, RunLogger) and logger._experiment is not None]


def wandb_info(loggers: Sequence[Logger]) -> dict[str, str] | None:
    """`{"id", "mode"}` for metrics.json, or None without W&B."""
    for logger in wandb_loggers(loggers):
        return {"id": str(logger.version), "mode": logger.mode}
    return None


def summarize(loggers: Sequence[Logger], values: Mapping[str, Any]) -> None:
    """Final values for W&B's run table (`run.summary`); nested mappings become `a/b` keys."""
    flat = _flatten(values)
    for logger in wandb_loggers(loggers):
        logger.experiment.summary.update(flat)


def update_config(loggers: Sequence[Logger], values: Mapping[str, Any]) -> None:
    """Top-level keys of the configuration that W&B shows, as they are now."""
    for logger in wandb_loggers(loggers):
        logger.experiment.config.update(dict(values), allow_val_change=True)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}/") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def finish(loggers: Sequence[Logger], exit_code: int) -> None:
    """End the W&B run, for a `finally`: else the next job of a sweep would write into it. Never raises."""
    for logger in wandb_loggers(loggers):
        try:
            logger.experiment.finish(exit_code=exit_code)
        except Exception as error:  # the run's own error, if any, is the one to show
            log.warning("W&B could not end the run cleanly: %s", error)
        logger._experiment = None
