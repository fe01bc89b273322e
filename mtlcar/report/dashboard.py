"""`mtlcar report --wandb`: a workspace and a report in W&B for the compared sweeps.

They are saved where W&B would go online; else their specification is written, and the same command saves it later.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtlcar.errors import UserError
from mtlcar.logs.wandb_mode import choose_mode, has_api_key
from mtlcar.report.collect import Found, Run
from mtlcar.report.comparison import Comparison
from mtlcar.report.dashboard_layout import make_report, make_workspace, run_sets
from mtlcar.report.dashboard_panels import packages
from mtlcar.report.dashboard_spec import Board, boards, logger_of
from mtlcar.runs.files import read_json, write_json

FOLDER = "wandb"
ANSWER_SECONDS = 15
"""How long the first question to the W&B server may take."""
NO_KEY = "no API key was found"


def dashboard(found: Found, comparisons: Sequence[Comparison], output: Path) -> tuple[Path, list[str]]:
    """Lay out and save one workspace and one report for each W&B project that the runs were logged to.

    Each shows the runs of the sweeps (W&B groups), also those that finish later. Where they were saved before from the
    same `output`, they are brought up to date and not made again.

    Args:
        output: the report's folder; `<output>/wandb/{workspace,report}.json` are written in any case, in a folder of
            each project where there are several.

    Returns:
        `<output>/wandb`, and sentences for the user: where they are, or why they are not in W&B yet.

    Raises:
        UserError: no run was logged to W&B, wandb-workspaces is missing, or W&B did not take them.
    """
    folder = output / FOLDER
    shown = boards(found.runs, comparisons)
    if not shown:
        raise UserError(
            f"None of these {len(found.runs)} finished runs was logged to W&B, so that it has nothing to show. "
            "Train with logger=wandb; the report itself needs no W&B."
        )
    packages()
    why_not = _why_not_online([run for board in shown for run in board.runs])
    sentences: list[str] = []
    for board in shown:
        own = folder if len(shown) == 1 else folder / _folder_name(board)
        made = {"report": make_report(board), "workspace": make_workspace(board)}
        for kind, thing in made.items():
            _write(own / f"{kind}.json", board, thing)
        if why_not is None:
            sentences += _save(board, made, own)
        else:
            again = (
                "`wandb login` and then the same command"
                if why_not == NO_KEY
                else "The same command with WANDB_MODE=online"
            )
            sentences.append(
                f"W&B: {why_not}; workspace.json and report.json for project {board.project} are in {own}. "
                f"{again} saves them in W&B."
            )
        sentences += _not_there(board.runs)
    return folder, sentences


def _why_not_online(runs: Sequence[Run]) -> str | None:
    """None: online. By the rule of the runs themselves, and runs kept offline on purpose have such a dashboard."""
    asked = os.environ.get("WANDB_MODE")
    if not asked and any(logger_of(run).get("mode") == "offline" for run in runs):
        return "the runs were logged with logger.mode=offline"
    if choose_mode("auto") == "online":
        return None
    if asked:
        return f"WANDB_MODE is {asked}"
    return "`wandb offline` was given here" if has_api_key() else NO_KEY


def _folder_name(board: Board) -> str:
    return re.sub(r"[^\w.]+", "-", f"{board.entity or ''} {board.project}").strip("-.")


def _not_there(runs: Sequence[Run]) -> list[str]:
    """A dashboard shows what W&B has; offline runs are not there before `wandb sync`."""
    kept = [
        run
        for run in runs
        if any(not Path(f"{file}.synced").exists() for file in run.directory.glob("wandb/offline-run-*/run-*.wandb"))
    ]
    if not kept:
        return []
    folders = dict.fromkeys(str(run.directory.parent / "wandb") for run in kept)
    commands = " and ".join(f"`wandb sync --include-online {folder}`" for folder in folders)
    return [f"W&B: {len(kept)} of these {len(runs)} runs are offline and not in W&B yet; upload them with {commands}."]


def _write(path: Path, board: Board, thing: Any, saved: Mapping[str, str] | None = None) -> None:
    """What the server is asked to save, readable; and `saved`, what it said of an earlier one."""
    spec = thing._to_model().spec.model_dump_json(by_alias=True, exclude_none=True)
    content = {
        "entityName": board.entity,
        "projectName": board.project,
        "displayName": getattr(thing, "title", None) or thing.name,
        "type": "runs" if path.stem == "report" else "project-view",
        "spec": json.loads(spec),
        "saved": dict(_saved(path, board) if saved is None else saved),
    }
    write_json(path, content)


def _saved(path: Path, board: Board) -> dict[str, str]:
    """Where the server has it, if it was saved before for this project."""
    try:
        found = read_json(path)
        same = (found["entityName"], found["projectName"]) == (board.entity, board.project)
        return {str(k): str(v) for k, v in found["saved"].items()} if same else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _save(board: Board, made: Mapping[str, Any], folder: Path) -> list[str]:
    """Save both, the report first: it says when the project is not there."""
    import wandb
    from wandb.errors.term import termsetup

    sentences = []
    try:
        api = wandb.Api(timeout=ANSWER_SECONDS)
        termsetup(wandb.Settings(show_info=False), None)  # the package would print where it saved them; so do we
        entity = board.entity or api.settings.get("entity") or api.default_entity
        for kind, thing in made.items():
            path = folder / f"{kind}.json"
            before = _saved(path, board)
            thing.entity = entity
            for runs in run_sets(thing):
                runs.entity, runs.project = entity, board.project
            try:
                saved = _upsert(kind, thing, before)
            except Exception:
                if not before:
                    raise
                saved = _upsert(kind, thing, {})  # it was deleted there
            content = read_json(path)
            write_json(path, {**content, "saved": saved})
            sentences.append(f"W&B {kind}: {saved['url']}")
    except Exception as error:
        words = (str(error).strip().splitlines() or [""])[0]
        raise UserError(
            f"W&B did not take the dashboard for project {board.project} ({type(error).__name__}: {words})\n"
            f"Its specification is in {folder}. The project is there once a run was uploaded; else look at the network "
            "and the key, and give the same command again."
        ) from error
    finally:
        termsetup(wandb.setup().settings, None)
    return sentences


def _upsert(kind: str, thing: Any, before: Mapping[str, str]) -> dict[str, str]:
    if kind == "report":
        thing.id = before.get("id", "")
        thing.save()
        return {"id": thing.id, "url": thing.url}
    thing._internal_name, thing._internal_id = before.get("name", ""), before.get("id", "")
    thing.save()
    return {"name": thing._internal_name, "id": thing._internal_id, "url": thing.url}
