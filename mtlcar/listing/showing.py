"""`mtlcar runs show`: all there is to know of one run."""

import json
import shlex
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console

from mtlcar.listing.defaults import changed
from mtlcar.listing.finding import find_run
from mtlcar.listing.stored import StoredRun
from mtlcar.listing.tables import STYLES, aligned, notice, number, plain_lines, seconds_text
from mtlcar.report.varied import NONE, show
from mtlcar.runs.lock import holder
from mtlcar.runs.names import run_name, wandb_id

Section = tuple[str, list[str]]
GROUPS = (
    *("method", "data", "backbone", "architecture", "head", "weighting", "label_transform", "loss"),
    *("optimizer", "scheduler", "trainer"),
)


def command(text: str, *, runs: str = "runs", as_json: bool = False) -> int:
    """Print one run, found by its directory or the beginning of its fingerprint.

    Raises:
        UserError: no such run, or several.
    """
    run = find_run(text, Path(runs))
    if as_json:
        print(json.dumps(record(run), indent=1))
        return 0
    console = Console()
    console.print(run.name, style="bold", end="  ", highlight=False, markup=False)
    console.print(run.state, style=STYLES[run.state], highlight=False)
    for title, lines in sections(run):
        console.print(f"\n{title}", style="bold", highlight=False, markup=False)
        for line in lines:
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    for problem in run.problems:
        notice(f"Damaged: {problem}")
    return 0


def sections(run: StoredRun) -> list[Section]:
    """(heading, lines) of what there is to say."""
    found = [
        ("What it is", aligned(parts(run))),
        ("Its life", aligned(life(run))),
        ("Results", results(run)),
        ("Other than the defaults of these groups", differences(run)),
        ("Files", files(run)),
        ("W&B", aligned(wandb(run))),
        ("Commands", aligned(commands(run))),
    ]
    return [(title, lines) for title, lines in found if lines]


def parts(run: StoredRun) -> dict[str, str]:
    found = {group: run.parts[group] for group in GROUPS if group in run.parts}
    found["seed"] = str(run.config.get("seed"))
    found["directory"] = str(run.directory)
    return found


def life(run: StoredRun) -> dict[str, str]:
    """Sessions, where the last one went on, how long, how far."""
    status, found = run.status, {}
    if (working := holder(run.directory)) is not None:
        found["worked on by"] = str(working)
    if status.get("sessions"):
        step = status.get("resumed_step")
        found["sessions"] = f"{status['sessions']}" + ("" if step is None else f", the last went on at step {step}")
    for key in ("started", "ended"):
        if status.get(key):
            found[key] = str(status[key])
    if isinstance(status.get("seconds"), int | float):
        found["last session"] = seconds_text(status["seconds"])
    done = run.epochs_done
    if done is not None or run.epochs is not None:
        steps = status.get("step") or _last_step(run)
        found["trained"] = f"{done or 0} of {run.epochs or '?'} epochs" + (f", {steps} steps" if steps else "")
    if "fit_seconds" in run.numbers:
        found["trained"] = f"{found.get('trained', '')} in {seconds_text(run.numbers['fit_seconds'])}".strip()
    if status.get("error"):
        found["error"] = str(status["error"])
    return found


def _last_step(run: StoredRun) -> str | None:
    return run.history[-1].get("step") if run.history else None


def results(run: StoredRun) -> list[str]:
    """The best epoch, the metrics of validation and test, the cost."""
    if run.best is None:
        return []
    best = run.metrics.get("best", {})
    at = f" at epoch {best['epoch']} (from 0), step {best['step']}" if "epoch" in best and "step" in best else " so far"
    lines = [f"  best {run.monitor} {number(run.best)}{at}"]
    names = dict.fromkeys(key.partition("/")[2] for key in run.numbers if key.startswith(("val/", "test/")))
    rows = [(name, number(run.numbers.get(f"val/{name}")), number(run.numbers.get(f"test/{name}"))) for name in names]
    if rows:
        lines += ["", *(f"  {line}" for line in plain_lines(("metric", "val", "test"), rows, right=(1, 2)))]
    if "parameters" in run.numbers:
        lines += ["", f"  {run.numbers['parameters'] / 1e6:.4g} M parameters"]
    return lines


def differences(run: StoredRun) -> list[str]:
    return aligned({key: f"{show(own)}  (default: {show(default)})" for key, (own, default) in changed(run).items()})


def files(run: StoredRun) -> list[str]:
    """Path within the directory and size of each file; those of folders with many are summed."""
    rows: list[tuple[str, str]] = []
    for path in sorted(run.directory.iterdir()):
        if path.name.startswith("."):
            continue
        inside = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        if path.is_dir() and (len(inside) > 8 or path.name == "wandb"):
            rows.append((f"{path.name}/ ({len(inside)} files)", size_text(sum(p.stat().st_size for p in inside))))
        else:
            rows += [(str(p.relative_to(run.directory)), size_text(p.stat().st_size)) for p in inside]
    return [f"  {line}" for line in plain_lines(("file", "size"), rows, right=(1,))[1:]]


def size_text(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def wandb(run: StoredRun) -> dict[str, str]:
    """Id and mode, and what uploads the files of an offline run."""
    logger = run.config.get("logger")
    if not isinstance(logger, dict) or logger.get("name") != "wandb":
        return {}
    cfg = OmegaConf.create(run.config)
    known = run.metrics.get("wandb") or {}
    entity = f"{logger['entity']}/" if logger.get("entity") else ""
    found = {
        "run": f"{entity}{logger.get('project', NONE)}/{known.get('id', wandb_id(cfg, run.directory))}",
        "name": run_name(cfg),
    }
    if known.get("mode"):
        found["mode"] = str(known["mode"])
    if any(run.directory.glob("wandb/offline-run-*")):
        found["upload"] = shlex.join(["wandb", "sync", "--include-online", str(run.directory / "wandb")])
    return found


def commands(run: StoredRun) -> dict[str, str]:
    """What made the run; what goes on with it or evaluates it."""
    directory = shlex.quote(str(run.directory))
    found = {"made by": shlex.join(["mtlcar", "train", *run.overrides])} if run.overrides else {}
    if run.state == "finished":
        found["evaluate"] = f"mtlcar evaluate {directory}"
    elif run.state != "running":
        found["go on"] = f"mtlcar resume {directory}"
    return found


def record(run: StoredRun) -> dict[str, Any]:
    """The same for `--json`."""
    return {
        "run": run.name,
        "directory": str(run.directory),
        "state": run.state,
        "parts": run.parts,
        "seed": run.config.get("seed"),
        "status": run.status,
        "epoch": run.epochs_done,
        "epochs": run.epochs,
        "monitor": run.monitor,
        "best": run.best,
        "metrics": run.numbers,
        "changed": {key: {"value": own, "default": default} for key, (own, default) in changed(run).items()},
        "wandb": wandb(run),
        "commands": commands(run),
        "problems": run.problems,
    }
