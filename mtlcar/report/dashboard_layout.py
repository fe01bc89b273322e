"""A W&B workspace and a report, as objects of W&B's own package wandb-workspaces.

Making them asks no server: the package does so only for a report without an entity and for a run set that names its
project. The first gets one here, the second is named just before it is saved (in `dashboard`).
"""

import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import fields
from types import ModuleType
from typing import Any

from mtlcar.logs.wandb_sink import shorten
from mtlcar.metrics.direction import lower_is_better
from mtlcar.report.dashboard_panels import limit_of, packages, place, sections
from mtlcar.report.dashboard_spec import Board, Part, Setting, config_path

SYMBOLS = ("So", "Sk", "Sm", "Sc", "Cs")
"""Categories of Unicode that W&B refuses in the name of a view; `~` and `=` are among them."""


def make_workspace(board: Board) -> Any:
    """The saved view of a project: all comparisons together, grouped by what varied in any of them."""
    ws, _ = packages()
    part = together(board.parts)
    best = [ws.Ordering(ws.Summary(part.main), ascending=lower_is_better(part.main))] if part.main else []
    pinned = [f"config:{s.path}" for s in part.settings] + [f"summary:{metric}" for metric in part.test]
    where = _filters(ws, board, part)
    made = ws.Workspace(
        entity=board.entity or "",
        project=board.project,
        name=plain_name(board.title),
        sections=[
            ws.Section(name=title, panels=panels, is_open=True, pinned=i == 0)
            for i, (title, panels) in enumerate(sections(part).items())
        ],
        settings=ws.WorkspaceSettings(x_axis="epoch", max_runs=limit_of(part)),
        runset_settings=ws.RunsetSettings(
            filters=where,
            groupby=[ws.Config(s.path) for s in part.settings] or [ws.Metric("Group")],
            pinned_columns=pinned,
            **({"order": best} if best else {}),
        ),
    )
    # As text, as the package would send it, a value with a quote, `=` or `<` in it is another value.
    made._stashed_filters_v2, made._stashed_filter_string = _exact(where), made.runset_settings.filters
    made._internal_runset_id = _identity(board, "workspace")
    _name([panel for section in made.sections for panel in section.panels], board, "workspace")
    return made


def make_report(board: Board) -> Any:
    """The report of a project: for each comparison its table, what is not matched, and panels of its runs alone."""
    ws, wr = packages()
    introduction = (
        "Laid out by `mtlcar report --wandb`. Tables are as of that command. Panels show what W&B has of the sweeps "
        f"{', '.join(board.groups)} now, runs that finished later included: means over seeds, and their range."
    )
    blocks: list[Any] = [wr.MarkdownBlock(text=introduction)]
    if len(board.parts) > 1:
        blocks.append(wr.TableOfContents())
    for part in board.parts:
        blocks += [wr.H2(text=part.name), wr.MarkdownBlock(text=part.text)]
        for title, panels in sections(part).items():
            name = f"{part.name} {title}"
            _name(panels, board, name)
            place(panels)
            runs = _runset(ws, wr, board, part, name)
            blocks += [wr.H3(text=title), wr.PanelGrid(runsets=[runs], panels=panels)]
    return wr.Report(
        entity=board.entity or "",
        project=board.project,
        title=shorten(board.title),
        description=f"{sum(part.runs for part in board.parts)} runs, {sum(part.cells for part in board.parts)} cells",
        blocks=blocks,
        width="fluid",
    )


def run_sets(made: Any) -> Iterator[Any]:
    """Those that have to name their project: a report's. A workspace's one set is its project's."""
    for block in getattr(made, "blocks", ()):
        yield from getattr(block, "runsets", ())


def together(parts: Sequence[Part]) -> Part:
    """Several comparisons as one, for a view that has one set of runs: dataset and split are settings like others."""
    if len(parts) == 1:
        return parts[0]
    words = {config_path("data.name"): "data", config_path("data.split"): "split"}
    further = [Setting(path, words[path]) for path in dict.fromkeys(path for part in parts for path in part.where)]
    settings = {s.path: s for s in [*further, *(s for part in parts for s in part.settings)]}
    tasks: dict[str, list[str]] = {}
    for part in parts:
        for title, metrics in part.tasks.items():
            tasks[title] = list(dict.fromkeys([*tasks.get(title, []), *metrics]))
    merged = {
        name: list(dict.fromkeys(value for part in parts for value in getattr(part, name)))
        for name in (f.name for f in fields(Part))
        if name in ("test", "curves", "scatter")
    }
    return Part(
        name="",
        where={},
        runs=sum(part.runs for part in parts),
        cells=sum(part.cells for part in parts),
        settings=list(settings.values()),
        main=parts[0].main,
        tasks=tasks,
        text="",
        **merged,
    )


def _runset(ws: ModuleType, wr: ModuleType, board: Board, part: Part, name: str) -> Any:
    where = _filters(ws, board, part)
    order = [wr.OrderBy(wr.SummaryMetric(part.main), ascending=lower_is_better(part.main))] if part.main else []
    made = wr.Runset(
        name=f"{part.name}, by {', '.join(s.title for s in part.settings) or 'sweep'}",
        filters=where,
        groupby=[f"config.{s.path}" for s in part.settings] or ["run.group"],
        **({"order": order} if order else {}),
    )
    made._stashed_filters_v2, made._stashed_filter_string = _exact(where), made.filters
    made._id = _identity(board, f"{name} runs")
    return made


def _filters(ws: ModuleType, board: Board, part: Part) -> Any:
    """The sweeps' runs without the run that sums up each sweep; of a comparison, where it is one of several."""
    own = [ws.Config(path) == value for path, value in part.where.items()]
    return ws.And(ws.Metric("Group").isin(board.groups), ws.Metric("JobType") == "train", *own)


def _exact(filters: Any) -> dict[str, Any]:
    from wandb_workspaces.expr import filters_tree_to_v2

    found: dict[str, Any] = filters_tree_to_v2(filters.to_model())
    return found


def _name(panels: Sequence[Any], board: Board, where: str) -> None:
    """Identities that the next call gives again; the package's own are random."""
    for i, panel in enumerate(panels):
        panel._id = _identity(board, f"{where} {i}")


def _identity(board: Board, what: str) -> str:
    return hashlib.sha256(f"{board.entity}/{board.project}/{board.title}/{what}".encode()).hexdigest()[:12]


def plain_name(text: str) -> str:
    """`text` as W&B takes it for the name of a view."""
    return "".join("-" if unicodedata.category(char) in SYMBOLS else char for char in shorten(text))
