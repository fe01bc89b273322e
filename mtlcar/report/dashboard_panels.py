"""The panels of a W&B dashboard, as objects of W&B's own package wandb-workspaces. Making them asks no server."""

import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from mtlcar.errors import UserError
from mtlcar.metrics.direction import lower_is_better
from mtlcar.report.dashboard_spec import Part, Setting

ACROSS, WIDE = 3, 24
"""Panels in a row of a report, and the columns that W&B divides a row into."""
TALL, MEDIUM = 10, 7
"""Rows of a wide panel and of another one."""
MOST_RUNS = 500
"""W&B draws no more in one panel."""


def packages() -> tuple[ModuleType, ModuleType]:
    """`wandb_workspaces.workspaces` and `wandb_workspaces.reports.v2`.

    Raises:
        UserError: they are not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is written for an older pydantic, and says so in every class
            import wandb_workspaces.reports.v2 as reports
            import wandb_workspaces.workspaces as workspaces
    except ModuleNotFoundError as error:
        raise UserError(
            f"mtlcar report --wandb needs W&B's package wandb-workspaces ({error}): pip install 'mtlcar[dashboard]'."
        ) from error
    return workspaces, reports


def sections(part: Part) -> dict[str, list[Any]]:
    """Title -> panels; those over epochs show the mean over a group's runs, its seeds, and their range."""
    _, wr = packages()
    limit = limit_of(part)

    def curve(metric: str) -> Any:
        return wr.LinePlot(
            title=metric, x="epoch", y=[metric], groupby_aggfunc="mean", groupby_rangefunc="minmax",
            max_runs_to_show=limit, title_x="epoch (from 0)",
        )  # fmt: skip

    made: dict[str, list[Any]] = {"Settings and results": _settings_panels(wr, part)}
    made["Test results"] = [
        wr.BarPlot(
            title=metric, metrics=[metric], groupby_aggfunc="mean", groupby_rangefunc="minmax",
            max_runs_to_show=limit, max_bars_to_show=limit,
        )
        for metric in part.test
    ]  # fmt: skip
    made["Learning curves"] = [curve(metric) for metric in part.curves]
    made |= {title: [curve(metric) for metric in metrics] for title, metrics in part.tasks.items()}
    made["Runs side by side"] = [wr.RunComparer(diff_only="split")]
    return {title: panels for title, panels in made.items() if panels}


def _settings_panels(wr: ModuleType, part: Part) -> list[Any]:
    if not part.main:
        return []
    axes = [wr.ParallelCoordinatesPlotColumn(metric=wr.Config(_dotted(s)), display_name=s.title) for s in part.settings]
    axes.append(wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric(part.main), display_name=part.main))
    best = "min" if lower_is_better(part.main) else "max"
    scatter = [
        wr.ScatterPlot(title=f"{y} against {x}", x=wr.SummaryMetric(x), y=wr.SummaryMetric(y)) for x, y in part.scatter
    ]
    panels = [wr.ParallelCoordinatesPlot(title="Settings and the main metric", columns=axes)] if part.settings else []
    return [*panels, *scatter, wr.ScalarChart(title=f"{best} {part.main}", metric=part.main, groupby_aggfunc=best)]


def _dotted(setting: Setting) -> str:
    """The package puts `.value` in by itself for an axis."""
    return setting.path.replace(".value", "", 1)


def limit_of(part: Part) -> int:
    return min(max(10, part.runs), MOST_RUNS)


def place(panels: Sequence[Any]) -> None:
    """One after the other from the top left; what has many axes or rows takes a whole row."""
    _, wr = packages()
    x = y = 0
    for panel in panels:
        wide = isinstance(panel, wr.ParallelCoordinatesPlot | wr.RunComparer)
        width, height = (WIDE, TALL) if wide else (WIDE // ACROSS, MEDIUM)
        if x + width > WIDE:
            x, y = 0, y + MEDIUM
        panel.layout = wr.Layout(x=x, y=y, w=width, h=height)
        x, y = (0, y + height) if wide else (x + width, y)
