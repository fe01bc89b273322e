"""Weights & Biases as a place that rows go to: one W&B run for life, over interruptions, online and offline."""

import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtlcar.errors import UserError
from mtlcar.logs.ledger import Row
from mtlcar.logs.wandb_files import ROW, ROW_STEP, Logged, mark_synced, mend, run_files, what_is_logged

log = logging.getLogger("mtlcar")

NAME_LIMIT = 128
"""Longest run name, group or project that W&B takes, characters."""
TAG_LIMIT = 64
INIT_SECONDS = 30
"""How long an unreachable W&B server may hold up a run before it goes on offline."""
FINISH_SECONDS = 300
"""How long a finished run waits for a server that takes nothing more."""
STEP = "trainer/global_step"


def shorten(text: str, limit: int = NAME_LIMIT) -> str:
    """`text` in at most `limit` characters; a shortened one ends in a digest, so that two long names stay two."""
    if len(text) <= limit:
        return text
    return f"{text[: limit - 9]}~{hashlib.sha256(text.encode()).hexdigest()[:8]}"


class WandbSink:
    """A W&B run that goes on where W&B's own record of it ends.

    Every row carries its number and its W&B step, so what W&B has is known exactly: rows it lacks are logged from
    rows.jsonl, rows it has are not logged again. The W&B step is the row's number, or the next free one where a
    callback has logged into the W&B run directly.

    Args:
        run_dir: its `wandb/` folder holds the files.
        mode: `online` or `offline`.
        artifact: `best`: checkpoints/best.ckpt goes to W&B when the run has finished. `none`.
        options: further arguments of `wandb.init`.
    """

    title = "W&B"

    def __init__(self, run_dir: Path, run_id: str, mode: str, artifact: str = "none", **options: Any) -> None:
        self.run_dir, self.run_id, self.mode, self.artifact = run_dir, run_id, mode, artifact
        self.experiment: Any = None
        """The `wandb.Run`, None before `start` and after `finish`."""
        self.logged = Logged()
        self._options = options

    def start(self) -> None:
        """Start the W&B run; online falls back to offline when the server cannot be reached.

        Raises:
            UserError: W&B refuses the key or the run's settings.
        """
        import wandb
        from wandb.errors import AuthenticationError, CommError, UsageError

        self.run_dir.mkdir(parents=True, exist_ok=True)
        before = mend(run_files(self.run_dir, self.run_id))
        # Console capture is off: train.log has the output, and redrawn progress bars make it unreadable there.
        settings = wandb.Settings(silent=True, console="off", init_timeout=INIT_SECONDS, finish_timeout=FINISH_SECONDS)
        options = {
            **self._options, "id": self.run_id, "dir": str(self.run_dir), "resume": "allow",
            "reinit": "finish_previous", "settings": settings,
        }  # fmt: skip
        try:
            try:
                run = wandb.init(mode=self.mode, **options)  # type: ignore[arg-type]
            except AuthenticationError:
                raise
            except CommError as error:
                log.warning("W&B cannot be reached, this run is logged offline: %s", str(error).splitlines()[0])
                self.mode = "offline"
                wandb.teardown()  # its service holds on to the run id that it could not register
                before = mend(run_files(self.run_dir, self.run_id))  # the attempt has left a file
                run = wandb.init(mode="offline", **options)
        except (AuthenticationError, UsageError) as error:
            raise UserError(
                f"W&B refused to start the run: {error}\nCheck the key (`wandb login --relogin`) and the logger.* "
                "settings, or use logger.mode=offline."
            ) from error
        gather_links(self.run_dir, Path(run.settings.sync_dir))
        self._earlier = before
        self.logged = on_the_server(run) if self.mode == "online" else what_is_logged(before)
        if self.logged.next_step > run.step:  # an offline run begins at 0 again by itself
            run.log({}, step=self.logged.next_step)
        run.define_metric(STEP)
        run.define_metric(ROW, hidden=True)
        run.define_metric(ROW_STEP, hidden=True)
        run.define_metric("*", step_metric=STEP, step_sync=True)
        self.experiment = run
        where = (
            run.url
            if self.mode == "online"
            else f"offline; upload later with `wandb sync --include-online {self.run_dir}/wandb`"
        )
        log.info("W&B run %s: %s", self.run_id, where)

    def resume(self, rows: Iterable[Row]) -> None:
        """Log the rows that W&B lacks: its process may have died with the job, before it wrote them."""
        for row in rows:
            self.log(row)
        if self.mode == "online":
            mark_synced(self._earlier)

    def log(self, row: Row) -> None:
        if row.number < self.logged.rows:
            return
        # Complete at once (commit): else W&B would hold the row back until the next one comes.
        step = max(row.number, self.experiment.step)
        values = {**row.metrics, STEP: row.step, ROW: row.number, ROW_STEP: step}
        self.experiment.log(values, step=step, commit=True)
        self.logged.rows = row.number + 1

    def sync(self) -> None:
        """Nothing: what W&B loses is logged again from rows.jsonl."""

    def summarize(self, values: Mapping[str, Any]) -> None:
        self.experiment.summary.update(flatten(values))

    def update_config(self, values: Mapping[str, Any]) -> None:
        self.experiment.config.update(dict(values), allow_val_change=True)

    def log_figures(self, files: Sequence[Path]) -> None:
        import wandb

        figures = {f"figures/{file.stem}": file for file in files}
        new = {name: wandb.Image(str(file)) for name, file in figures.items() if name not in self.logged.keys}
        if new:
            self.experiment.log(new)

    def finish(self, exit_code: int) -> None:
        """End the W&B run: finished, failed, or (after a signal) preempted."""
        if self.experiment is None:
            return
        run, self.experiment = self.experiment, None
        try:
            best = self.run_dir / "checkpoints" / "best.ckpt"
            if exit_code == 0 and self.artifact == "best" and best.is_file():
                log_model(run, best)
            if exit_code > 128:
                run.mark_preempting()
        finally:
            began = time.monotonic()
            run.finish(exit_code=exit_code)
            if self.mode == "online" and time.monotonic() - began >= FINISH_SECONDS:
                log.warning(
                    "W&B's server has not taken everything within %d seconds. All of it is in %s; upload it later with "
                    "`wandb sync %s`.",
                    FINISH_SECONDS,
                    run.settings.sync_dir,
                    run.settings.sync_dir,
                )


def gather_links(run_dir: Path, session: Path) -> None:
    """A link to a session's W&B folder in `<sweep>/wandb`, where W&B's own tools find all runs of a sweep together."""
    link = run_dir.parent / "wandb" / session.name
    with contextlib.suppress(OSError):  # a file system without links
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(Path(os.path.relpath(session, link.parent)), target_is_directory=True)


def on_the_server(run: Any) -> Logged:
    """What the server has of a run that was just started, by what it answered."""
    if not run.resumed:
        return Logged()
    keys = set(run.summary.keys())
    if ROW not in keys:
        return Logged(0, run.starting_step, keys)
    # W&B sends a row's summary before the row itself, so a killed run's summary may be ahead of its history.
    ahead = max(int(run.summary[ROW_STEP]) + 1 - run.starting_step, 0)
    return Logged(int(run.summary[ROW]) + 1 - ahead, run.starting_step, keys)


def log_model(run: Any, checkpoint: Path) -> None:
    """Upload a checkpoint as an artifact of type "model", alias "best"; offline it is noted for `wandb sync`."""
    import wandb

    artifact = wandb.Artifact(f"model-{run.id}", type="model")
    # It will not change any more, so it needs no copy in W&B's cache.
    artifact.add_file(str(checkpoint), policy="immutable", skip_cache=True)
    run.log_artifact(artifact, aliases=["best"])


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}/") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
