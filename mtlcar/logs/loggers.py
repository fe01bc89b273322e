"""Where else a run's rows go: W&B, a CSV table, TensorBoard, or nowhere but the run directory.

A yaml of `conf/logger` names one of the factories below. All have one contract:
`instantiate(cfg.logger, _partial_=True)(run_dir=, run_name=, run_id=, group=, job_type=, config=, tags=)` gives a list
with the run's RunLog, as Lightning's trainer takes it.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.loggers import Logger

from mtlcar.errors import UserError
from mtlcar.logs.csv_sink import CsvSink
from mtlcar.logs.run_log import RunLog, Sink
from mtlcar.logs.tensorboard_sink import TensorBoardSink
from mtlcar.logs.wandb_mode import choose_mode
from mtlcar.logs.wandb_sink import TAG_LIMIT, WandbSink, shorten
from mtlcar.runs.ranks import is_main_process
from mtlcar.runs.secrets import masked

FILES: dict[str, Callable[[Path], Sink]] = {"csv": CsvSink, "tensorboard": TensorBoardSink}


def no_logger(run_dir: Path, run_id: str, name: str = "none", **_: Any) -> list[RunLog]:
    """rows.jsonl alone."""
    return [RunLog(run_dir, run_id)]


def csv_logger(run_dir: Path, run_id: str, name: str = "csv", **_: Any) -> list[RunLog]:
    """rows.jsonl and the same as a table, `<run_dir>/metrics.csv`."""
    return [RunLog(run_dir, run_id, [CsvSink(run_dir)])]


def tensorboard_logger(run_dir: Path, run_id: str, name: str = "tensorboard", **_: Any) -> list[RunLog]:
    """rows.jsonl and TensorBoard's event files, in `<run_dir>/tensorboard`.

    Raises:
        UserError: TensorBoard is not installed.
    """
    return [RunLog(run_dir, run_id, [TensorBoardSink(run_dir)])]


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
    artifact: Literal["none", "best"] = "none",
    also: Sequence[Literal["csv", "tensorboard"]] = (),
) -> list[RunLog]:
    """rows.jsonl and a W&B run, already started, so that whatever is wrong shows before training.

    Args:
        run_dir: its `wandb/` folder holds the run's files.
        run_name: shown name; shortened to what W&B takes.
        run_id: known beforehand, so that a resumed job goes on in the same W&B run.
        group: the sweep.
        config: the composed configuration as nested plain containers (W&B gets it without the passwords in its
            URLs). The yaml's own `tags` are read from its
            `logger` node, because this call's `tags` (which they join) replace the yaml's in the partial.
        artifact: `best` uploads the best checkpoint when the run has finished.
        also: further places for the rows.

    Raises:
        UserError: unknown `mode`, `artifact` or `also`; online asked for without an API key; a key that W&B refuses.
    """
    if artifact not in ("none", "best"):
        raise UserError(f"logger.artifact should be none or best. Found {artifact!r}.")
    if unknown := [place for place in also if place not in FILES]:
        raise UserError(f"logger.also should be some of {', '.join(FILES)}. Found {unknown[0]!r}.")
    own = config.get("logger")
    own_tags = own.get("tags") or [] if isinstance(own, Mapping) else []
    sinks = [FILES[place](run_dir) for place in also]
    chosen = choose_mode(mode)
    if chosen != "disabled" and is_main_process():
        sink = WandbSink(
            run_dir,
            run_id,
            chosen,
            artifact,
            name=shorten(run_name),
            project=project,
            entity=entity,
            group=shorten(group),
            job_type=shorten(job_type),
            config=masked(dict(config)),
            tags=list(dict.fromkeys(shorten(str(t), TAG_LIMIT) for t in (*tags, *own_tags) if str(t))),
            notes=notes,
        )
        sink.start()
        sinks.insert(0, sink)
    return [RunLog(run_dir, run_id, sinks)]


def run_logs(loggers: Sequence[Logger]) -> list[RunLog]:
    return [logger for logger in loggers if isinstance(logger, RunLog)]


def wandb_info(loggers: Sequence[Logger]) -> dict[str, str] | None:
    """`{"id", "mode"}` for metrics.json, or None without W&B."""
    return next((logger.wandb_info for logger in run_logs(loggers)), None)


def summarize(loggers: Sequence[Logger], values: Mapping[str, Any]) -> None:
    """Final values for W&B's run table; nested mappings become `a/b` keys."""
    for logger in run_logs(loggers):
        logger.summarize(values)


def update_config(loggers: Sequence[Logger], values: Mapping[str, Any]) -> None:
    """Top-level keys of the configuration that W&B shows, as they are now."""
    for logger in run_logs(loggers):
        logger.update_config(values)


def finish(loggers: Sequence[Logger], exit_code: int) -> None:
    """End the logs, for a `finally`; `exit_code` is the job's. Never raises."""
    for logger in run_logs(loggers):
        logger.finish(exit_code)
