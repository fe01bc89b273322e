"""What is worth a column in a list of runs: their state, and the settings that tell them apart."""

import datetime
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtlcar.errors import UserError, did_you_mean
from mtlcar.listing.life import STATES
from mtlcar.listing.stored import StoredRun
from mtlcar.listing.tables import number, seconds_text
from mtlcar.metrics.direction import lower_is_better
from mtlcar.report.varied import (
    METHOD,
    NONE,
    Settings,
    by_content,
    column_titles,
    is_seed,
    settings,
    show,
    title,
    varied,
)

DATA = "data.name"
"""Never folded into a method's name: numbers of other data are other numbers."""
FOLDED = 24
"""Characters at which a long text may be folded on a terminal."""


@dataclass
class Column:
    """A column: its head, what it says of a run, and what it is sorted by (None: last)."""

    names: tuple[str, ...]
    head: str
    text: Callable[[StoredRun], str]
    key: Callable[[StoredRun], Any]
    right: bool = False
    whole: bool = False


class Listing:
    """Runs, and the columns that are worth showing of them."""

    def __init__(self, runs: Sequence[StoredRun]) -> None:
        self.runs = list(runs)
        flats = by_content([settings(r.config, r.task_names) for r in runs], [r.digests for r in runs])
        self.settings: dict[Path, Settings] = {run.directory: values for run, values in zip(runs, flats, strict=True)}
        keys = varied(flats) if flats else []
        seeds = dict.fromkeys(key for values in flats for key in values if is_seed(key))
        always = [key for key in (DATA, *seeds) if len({str(values.get(key, NONE)) for values in flats}) > 1]
        self.keys = list(dict.fromkeys([*always[: DATA in always], *keys, *always]))
        self.metric: str | None = None
        self.now = time.time()

    def sort(self, key: str | None) -> None:
        """By a column's name, a configuration key or a metric; numbers by size, the best metric first, what has no
        value last. By default the newest are last.

        Raises:
            UserError: neither.
        """
        if key is None:
            self.runs.sort(key=lambda run: run.updated)
            return
        metrics = sorted({name for run in self.runs for name in run.numbers})
        if key in metrics:
            self.metric = key
        columns = {name: column for column in (*self.columns(), *self._further()) for name in column.names}
        if key not in columns and self.runs:
            known = [*columns, *metrics]
            raise UserError(f"--sort {key}: no such column, setting or metric.{did_you_mean(key, known)}")
        if self.runs:
            of = columns[key].key
            self.runs.sort(key=lambda run: _rank(of(run)))

    def columns(
        self, keys: Sequence[str] | None = None, shared: Mapping[str, str] | None = None, *, short: bool = False
    ) -> list[Column]:
        """All columns, or those of some settings.

        Args:
            shared: settings of one column, and the value of each that is not worth a word.
            short: heads of words that can be folded.
        """
        keys = self.keys if keys is None else keys
        monitors = {run.monitor for run in self.runs}
        head = "best"
        if len(monitors) == 1:
            monitor = str(monitors.pop())
            head += " " + (" ".join(monitor.removeprefix("val/").split("/")) if short else monitor)
        columns = [
            Column(("run", "sweep"), "run", lambda r: r.name, lambda r: r.name, whole=True),
            Column(("state",), "state", lambda r: r.state, lambda r: STATES.index(r.state), whole=True),
            Column(("age",), "age", lambda r: seconds_text(self.now - r.updated), lambda r: -r.updated, True, True),
            Column(("epoch",), "epoch", _epoch, lambda r: r.epochs_done, True, True),
            *(self._setting(key, called) for key, called in zip(keys, column_titles(keys), strict=True)),
            *([self._several(shared)] if shared else []),
            Column(("best",), head, lambda r: number(r.best), _best_first, True),
        ]
        if monitors:
            columns.append(Column(("monitor",), "of", lambda r: r.monitor or NONE, lambda r: r.monitor))
        if self.metric:
            columns.append(self._metric(self.metric, " ".join(self.metric.split("/")) if short else self.metric))
        return columns

    def narrowed(self, width: int) -> list[Column]:
        """Columns for a terminal of so many characters: the settings whose commonest value most runs have share one
        column, which names them only where a run has another."""
        keys = list(self.keys)
        common = {key: Counter(self._shown(run, key) for run in self.runs).most_common(1)[0] for key in keys}
        shared: dict[str, str] = {}
        dropped: list[str] = []
        while True:
            columns = [c for c in self.columns(keys, shared, short=True) if c.names[0] not in dropped]
            if sum(map(self._width, columns)) <= width:
                return columns
            if keys:
                rarest = max(keys, key=lambda key: common[key][1])
                keys.remove(rarest)
                shared = {key: common[key][0] for key in self.keys if key in (*shared, rarest)}
            elif len(dropped) < len(self._dispensable()):
                dropped.append(self._dispensable()[len(dropped)])
            else:
                return columns

    def _dispensable(self) -> list[str]:
        """Columns that a narrow terminal does without; where all runs are finished, the line below says so too."""
        said = ("state", "epoch") if {run.state for run in self.runs} == {"finished"} else ()
        return [*said, "age", "monitor"]

    def _width(self, column: Column) -> int:
        """What a column needs, with the blanks beside it: its longest word of the head, and its longest text, folded
        where it may be."""
        text = max((len(column.text(run)) for run in self.runs), default=0)
        return 2 + max(*(len(word) for word in column.head.split()), text if column.whole else min(text, FOLDED))

    def _further(self) -> list[Column]:
        """Settings that are the same in all runs, or folded into a name."""
        keys = dict.fromkeys(key for values in self.settings.values() for key in values if key not in self.keys)
        return [self._setting(key, key) for key in keys]

    def _value(self, run: StoredRun, key: str) -> Any:
        return self.settings[run.directory].get(key, NONE)

    def _shown(self, run: StoredRun, key: str) -> str:
        return show(self._value(run, key))

    def _setting(self, key: str, short: str) -> Column:
        values = [self._value(run, key) for run in self.runs]
        numeric = all(isinstance(value, int | float) or value in (NONE, None) for value in values)
        return Column(
            (key, title(key)), short, lambda r: self._shown(r, key), lambda r: self._value(r, key), right=numeric
        )

    def _several(self, common: Mapping[str, str]) -> Column:
        short = dict(zip(common, column_titles(list(common)), strict=True))
        named = (METHOD, "data.name", "backbone.name", "architecture.name")

        def text(run: StoredRun) -> str:
            shown = {key: self._shown(run, key) for key in common}
            told = [key for key in common if shown[key] not in (common[key], NONE)]
            return ", ".join(shown[key] if key in named else f"{short[key]} {shown[key]}" for key in told)

        return Column(("further",), "further", text, text)

    def _metric(self, name: str, head: str) -> Column:
        sign = 1 if lower_is_better(name) else -1
        return Column(
            (name,),
            head,
            lambda r: number(r.numbers.get(name)),
            lambda r: None if name not in r.numbers else sign * r.numbers[name],
            right=True,
        )

    def record(self, run: StoredRun) -> dict[str, Any]:
        """A run for `--json`; `settings` are those that differ between the runs listed."""
        own = self.settings[run.directory]
        return {
            "run": run.name,
            "directory": str(run.directory),
            "sweep": run.config["sweep"],
            "state": run.state,
            "updated": datetime.datetime.fromtimestamp(run.updated, datetime.UTC).isoformat(timespec="seconds"),
            "epoch": run.epochs_done,
            "epochs": run.epochs,
            "monitor": run.monitor,
            "best": run.best,
            "seed": run.config.get("seed"),
            "parts": run.parts,
            "settings": {title(key): own[key] for key in self.keys if key in own},
            "metrics": {key: value for key, value in run.numbers.items() if math.isfinite(value)},
        }


def _epoch(run: StoredRun) -> str:
    return f"{run.epochs_done or 0}/{'?' if run.epochs is None else run.epochs}"


def _best_first(run: StoredRun) -> float | None:
    if run.best is None:
        return None
    return run.best if run.minimized else -run.best


def _rank(value: Any) -> tuple[int, float, str]:
    if value is None or value == NONE:
        return 3, 0.0, ""
    if isinstance(value, int | float):
        return (2, 0.0, "") if math.isnan(value) else (0, float(value), "")
    return 1, 0.0, str(value)
