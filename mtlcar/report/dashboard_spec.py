"""What a W&B dashboard shows of a comparison, by the names under which W&B has the settings and numbers of its runs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtlcar.logs.wandb_sink import shorten
from mtlcar.report.collect import Run
from mtlcar.report.comparison import Comparison
from mtlcar.report.figures import curve_metrics
from mtlcar.report.matching import unmatched
from mtlcar.report.ranking import main_metric
from mtlcar.report.render import Page, markdown
from mtlcar.report.section import Section, Sheet
from mtlcar.report.table import headings, rows
from mtlcar.report.varied import CONSTANTS, column_titles

NOTE = (
    "Test set, checkpoint with the best validation metric. ± is half the 95 % t interval of the mean over n seeds; "
    "[low, high] is the 95 % interval over test images of one seed; the best value of a column is bold."
)
KINDS = {
    "Losses of the tasks": ("loss",),
    "Weights of the tasks": ("weight",),
    "Gradients of the tasks": ("gradient_norm", "cosine", "conflict"),
}
"""Title -> last words of the metrics over epochs that belong to it."""


@dataclass(frozen=True)
class Setting:
    """A setting that varied: `path` is its place in W&B's copy of the configuration, `architecture.value.name`."""

    path: str
    title: str


@dataclass(frozen=True)
class Part:
    """What is shown of one comparison. All metrics are ones that at least one of its runs has logged.

    Attributes:
        name: the dataset, and the split where there are several.
        where: config path -> the value by which W&B tells these runs from others of the same sweeps.
        runs, cells: how many there are.
        settings: what tells the cells apart; seeds are left out, so that grouping by these gives means over seeds.
        main: the test metric that cells are ranked by; empty where none was logged.
        test: test metrics, `test/make/accuracy`.
        curves: validation metrics, main ones first.
        tasks: title -> metrics over epochs of single tasks and pairs of them.
        scatter: pairs (x, y) of test metrics: a coarse level against the level below, a class against a value.
        text: the report's table and what is not matched, Markdown.
    """

    name: str
    where: dict[str, str]
    runs: int
    cells: int
    settings: list[Setting]
    main: str
    test: list[str]
    curves: list[str]
    tasks: dict[str, list[str]]
    scatter: list[tuple[str, str]]
    text: str


@dataclass(frozen=True)
class Board:
    """What is shown of one W&B project: its runs are those of `groups` (the sweeps) that trained.

    Attributes:
        entity: user or team; None: the key's default.
    """

    entity: str | None
    project: str
    groups: list[str]
    runs: list[Run]
    parts: list[Part]

    @property
    def title(self) -> str:
        return "Comparison of " + ", ".join(self.groups)


def boards(runs: Sequence[Run], comparisons: Sequence[Comparison]) -> list[Board]:
    """One board for each W&B project that some of the runs were logged to; none where no run was."""
    places: dict[tuple[str | None, str], list[Run]] = {}
    for run in runs:
        if run.metrics.get("wandb"):
            places.setdefault(_place(run), []).append(run)
    several = len(comparisons) > 1
    found = []
    for (entity, project), logged in places.items():
        counted = [c for c in comparisons if any(_place(run) == (entity, project) for run in c.runs)]
        groups = dict.fromkeys(shorten(str(run.config["sweep"])) for run in logged)
        if counted:  # else newer runs elsewhere have the same settings
            found.append(Board(entity, project, list(groups), logged, [_part(c, several) for c in counted]))
    return found


def logger_of(run: Run) -> Mapping[str, Any]:
    found = run.config.get("logger")
    return found if isinstance(found, Mapping) else {}


def _place(run: Run) -> tuple[str | None, str]:
    settings = logger_of(run)
    entity = settings.get("entity")
    return str(entity) if entity else None, str(settings.get("project") or "mtlcar")


def _part(comparison: Comparison, several: bool) -> Part:
    runs = comparison.runs
    where = {config_path("data.name"): comparison.dataset} if several else {}
    if comparison.split is not None:
        where[config_path("data.split")] = comparison.split
    logged = {f"test/{name}" for run in runs for name in run.metrics.get("test", {})}
    test = [f"test/{metric}" for metric in comparison.metrics if f"test/{metric}" in logged]
    main = f"test/{main_metric(comparison)}"
    columns, moving = _logged_columns(runs)
    return Part(
        name=comparison.name,
        where=where,
        runs=len(runs),
        cells=len(comparison.cells),
        settings=swept(comparison.keys, [run.config for run in runs]),
        main=main if main in test else next(iter(test), ""),
        test=test,
        curves=_curves(comparison, columns),
        tasks=_by_task(moving),
        scatter=_scatter(comparison, test),
        text=_text(comparison),
    )


def config_path(key: str) -> str:
    """A dotted setting in W&B's copy of a configuration, where each top-level key has its content under `value`."""
    first, dot, rest = key.partition(".")
    return f"{first}.value{dot}{rest}"


def swept(keys: Sequence[str], configs: Sequence[Mapping[str, Any]]) -> list[Setting]:
    """The settings `keys`, a mapping (`weighting.weights`) as those of its entries that differ: W&B neither groups by a
    mapping nor has an axis for one. What no run has, or only a run itself has found, is left out."""
    dotted: list[str] = []
    for key in keys:
        values = [_entry(config, *key.split(".")) for config in configs]
        if key.startswith(CONSTANTS) or all(value is None for value in values):
            continue
        maps = [value for value in values if isinstance(value, Mapping)]
        entries = dict.fromkeys(str(name) for value in maps for name in value)
        dotted += [f"{key}.{name}" for name in entries if len({repr(_entry(v, name)) for v in values}) > 1]
        dotted += [] if maps else [key]
    dotted = list(dict.fromkeys(dotted))
    return [Setting(config_path(key), name) for key, name in zip(dotted, column_titles(dotted), strict=True)]


def _entry(node: Any, *words: str) -> Any:
    for word in words:
        node = node.get(word) if isinstance(node, Mapping) else None
    return node


def _logged_columns(runs: Iterable[Run]) -> tuple[list[str], list[str]]:
    """Columns of the histories that have a number (W&B gets the same rows), and those that have more than one."""
    values: dict[str, set[float]] = {}
    for run in runs:
        for column in run.history.columns:
            if str(column).startswith(("train/", "val/")):
                values.setdefault(str(column), set()).update(run.history[column].dropna().unique())
    return [c for c, found in values.items() if found], [c for c, found in values.items() if len(found) > 1]


def _curves(comparison: Comparison, columns: Sequence[str]) -> list[str]:
    monitors = [str(run.metrics.get("best", {}).get("monitor")) for run in comparison.runs]
    names = dict.fromkeys(task.name for run in comparison.runs for task in run.tasks)
    further = [f"val/{name}/{kind}" for name in names for kind in ("accuracy", "mae")]
    wanted = [*curve_metrics(comparison), *monitors, *further, "val/hierarchy/full_path_accuracy", "val/loss"]
    return [metric for metric in dict.fromkeys(wanted) if metric in columns]


def _by_task(columns: Sequence[str]) -> dict[str, list[str]]:
    """`<train or val>/<task or pair>/<kind>`; `train/loss` is of no task. Weights that are 1 throughout are not among
    the columns."""
    found = {
        title: [c for c in columns if c.count("/") == 2 and c.rpartition("/")[2] in kinds]
        for title, kinds in KINDS.items()
    }
    return {title: metrics for title, metrics in found.items() if metrics}


def _scatter(comparison: Comparison, test: Sequence[str]) -> list[tuple[str, str]]:
    levels = {task.name: task.parent for run in comparison.runs for task in run.tasks if task.parent}
    pairs = [(f"test/{parent}/accuracy", f"test/{child}/accuracy") for child, parent in levels.items()]
    if comparison.pair is not None:
        pairs.append((f"test/{comparison.pair[0]}/accuracy", f"test/{comparison.pair[1]}/mae"))
    return [(x, y) for x, y in pairs if x in test and y in test]


def _text(comparison: Comparison) -> str:
    table = Sheet("results", "Results", headings(comparison), list(rows(comparison)), note=NOTE)
    warnings = [*unmatched(comparison), *comparison.disagree]
    page = Page(comparison.name, [], warnings, [Section(table.title, sheets=[table])])
    lines = markdown("", [page]).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("## "))
    return "\n".join(lines[start + 1 :]).strip()
