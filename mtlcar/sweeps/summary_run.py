"""One W&B run for a whole sweep: its table, its report and figures, its best run and how many finished."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from mtlcar.errors import UserError
from mtlcar.listing.columns import Listing
from mtlcar.listing.finding import find
from mtlcar.listing.life import STATES
from mtlcar.listing.stored import StoredRun, read
from mtlcar.report.varied import title
from mtlcar.runs import flock
from mtlcar.runs.lock import Busy, holder, run_lock
from mtlcar.runs.names import run_name, wandb_id
from mtlcar.sweeps.outcomes import is_done

log = logging.getLogger("mtlcar")

FOLDER = "summary"
"""Below the sweep's folder: W&B's files and the report."""
TABLE_ROWS = 10_000
"""Most rows of one of the report's tables: W&B shows no more of a table."""
WRITTEN = ".written"
"""In that folder: touched when all was logged."""


def summarize_sweep(sweep_dir: Path, cells: Sequence[Path]) -> None:
    """Log the sweep to W&B where its cells do; the same run each time, so that a resumed sweep brings it up to date.

    All runs in the sweep's folder are in it, for a sweep may be several commands. Never raises: what goes wrong here is
    a warning, the cells are what counts. Two processes that end at once: one of them writes.

    Args:
        sweep_dir: `<paths.runs>/<sweep>`.
        cells: run directories of the command that has ended; those without files yet count as unstarted.
    """
    try:
        chosen = [run for run in map(_read, cells) if run is not None and _logger(run).get("name") == "wandb"]
        if not chosen:
            return
        folder = sweep_dir / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        lock = flock.take(folder / ".lock")
        if lock is None:
            return
        try:
            for cell in cells:
                mend_cell(cell)
            _log(chosen[0], sweep_dir, folder, len([cell for cell in cells if not cell.exists()]))
            (folder / WRITTEN).touch()
        finally:
            flock.give(lock)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        log.warning("W&B has no summary of this sweep (%s: %s); its runs are complete.", type(error).__name__, reason)


def is_current(sweep_dir: Path, cells: Sequence[Path]) -> bool:
    """Whether there is a summary, and no cell was finished after it."""
    written = sweep_dir / FOLDER / WRITTEN
    done = [cell / "DONE" for cell in cells]
    last = max((path.stat().st_mtime for path in done if path.exists()), default=0.0)
    return written.exists() and written.stat().st_mtime >= last


def mend_cell(cell: Path) -> None:
    """`wandb sync` would stop at a file that is torn, of a run that was killed and that nobody goes on with."""
    from mtlcar.logs.wandb_files import mend, run_files

    if (cell / "wandb").is_dir() and not is_done(cell) and holder(cell) is None:
        with suppress(Busy), run_lock(cell):
            mend(run_files(cell))


def _read(cell: Path) -> StoredRun | None:
    run = read(cell) if cell.is_dir() else None
    return run if isinstance(run, StoredRun) else None


def _logger(run: StoredRun) -> Mapping[str, Any]:
    found = run.config.get("logger")
    return found if isinstance(found, Mapping) else {}


def _log(like: StoredRun, sweep_dir: Path, folder: Path, absent: int) -> None:
    """Start the W&B run with the logger settings of the cell `like`, and log everything in one row."""
    from mtlcar.logs.wandb_mode import choose_mode
    from mtlcar.logs.wandb_sink import TAG_LIMIT, WandbSink, shorten

    settings = _logger(like)
    mode = choose_mode(str(settings.get("mode", "auto")))
    if mode == "disabled":
        return
    import wandb

    listing = Listing(find([sweep_dir]).runs)
    listing.sort(None)
    sweep = str(like.config["sweep"])
    report = _report(listing.runs, folder / "report")
    sink = WandbSink(
        folder,
        wandb_id(OmegaConf.create({"sweep": sweep}), Path(FOLDER)),
        mode,
        name=shorten(f"{sweep} summary"),
        project=settings.get("project", "mtlcar"),
        entity=settings.get("entity"),
        group=shorten(sweep),
        job_type="sweep",
        config={**shared([run.config for run in listing.runs]), "varied": [title(key) for key in listing.keys]},
        tags=[shorten(str(tag), TAG_LIMIT) for tag in settings.get("tags") or [] if str(tag)],
        notes=settings.get("notes"),
    )
    code = 1
    try:
        sink.start()
        run = sink.experiment
        sink.summarize(totals(listing.runs, absent))
        if report is not None:
            pictures = {f"figures/{file.stem}": wandb.Image(str(file)) for file in figures(report)}
            html = wandb.Html(report.read_text(encoding="utf-8"), inject=False)
            sheets = {f"tables/{name}": table for name, table in tables(report).items()}
            run.log({"report": html, **pictures, **sheets}, commit=False)  # one row with the table
        columns, rows = results(listing)
        run.log({"results": wandb.Table(columns=columns, data=rows, allow_mixed_types=True)})
        code = 0
    finally:
        sink.finish(code)
    print(f"W&B has a summary of the sweep: run {sink.run_id}" + _upload(sink.mode, folder))


def _upload(mode: str, folder: Path) -> str:
    return f", offline; upload it with `wandb sync --include-online {folder / 'wandb'}`" if mode == "offline" else ""


def _report(runs: Sequence[StoredRun], output: Path) -> Path | None:
    """report.html of the finished runs, None where there is none."""
    from mtlcar.report import build_report

    finished = [run.directory for run in runs if run.state == "finished"]
    try:
        return build_report(finished, output) if finished else None
    except UserError:  # their files are damaged
        return None


def figures(report: Path) -> list[Path]:
    """The figures beside `report.html`, PNG."""
    return sorted((report.parent / "figures").glob("*.png"))


def tables(report: Path) -> dict[str, Any]:
    """The tables beside `report.html` as W&B's: name -> `wandb.Table` of the first `TABLE_ROWS` rows. What was cut, and
    a file that cannot be read, is a warning."""
    import pandas as pd
    import wandb

    found = {}
    for file in sorted((report.parent / "tables").glob("*.csv")):
        try:
            df = pd.read_csv(file)
        except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
            log.warning("W&B gets no table %s (%s).", file, (str(error).splitlines() or [""])[0])
            continue
        if len(df) > TABLE_ROWS:
            log.warning("W&B gets the first %d of the %d rows of %s.", TABLE_ROWS, len(df), file)
        kept = df.head(TABLE_ROWS).astype(object)
        rows: list[Any] = kept.where(kept.notna(), None).to_numpy().tolist()
        found[file.stem] = wandb.Table(columns=[str(c) for c in df.columns], data=rows, allow_mixed_types=True)
    return found


def results(listing: Listing) -> tuple[list[Any], list[Any]]:
    """Columns and rows, one a run: what it is called, what varied, and its numbers."""
    settings = [title(key) for key in listing.keys]
    metrics = list(dict.fromkeys(name for run in listing.runs for name in run.numbers if not name.startswith("val/")))
    columns = ["name", "run", "id", "state", "epochs", *settings, "best", "monitor", *metrics]
    rows: list[Any] = []
    for run in listing.runs:
        cfg = OmegaConf.create(run.config)
        own = listing.settings[run.directory]
        rows.append(
            [
                *(_name(run), run.directory.name, wandb_id(cfg, run.directory), run.state, run.epochs_done),
                *(own.get(key) for key in listing.keys),
                *(run.best, run.monitor, *(run.numbers.get(name) for name in metrics)),
            ]
        )
    return columns, rows


def _name(run: StoredRun) -> str:
    return run_name(OmegaConf.create(run.config))


def totals(runs: Sequence[StoredRun], absent: int = 0) -> dict[str, Any]:
    """Counts of runs by state, and the best one by the monitored metric where all monitor the same.

    Args:
        absent: cells of which there is no directory.
    """
    states = Counter(run.state for run in runs)
    states["unstarted"] += absent
    found: dict[str, Any] = {"runs": len(runs) + absent, **{state: states[state] for state in STATES}}
    finished = [run for run in runs if run.state == "finished" and run.best is not None]
    monitors = {run.monitor for run in finished}
    if len(monitors) == 1:
        best = (min if finished[0].minimized else max)(finished, key=lambda run: float(run.best or 0.0))
        found["best"] = {"name": _name(best), "run": best.directory.name, "monitor": best.monitor, "value": best.best}
        found["best"] |= {key: value for key, value in best.numbers.items() if key.startswith("test/")}
    return found


def shared(configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all configurations have, with one value."""
    found: dict[str, Any] = {}
    for key, value in configs[0].items() if configs else ():
        others = [config.get(key) for config in configs[1:]]
        if all(isinstance(other, Mapping) for other in others) and isinstance(value, Mapping):
            inside = shared([value, *others])  # type: ignore[list-item]
            found |= {key: inside} if inside else {}
        elif all(key in config for config in configs) and all(other == value for other in others):
            found[key] = value
    return found
