"""Multi-task gain: each multi-task cell against networks of the same settings that were trained on one task each."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd

from mtlcar.metrics.gain import delta_m, relative_gain
from mtlcar.report.baselines import Baseline, baselines, task_metric
from mtlcar.report.collect import Run
from mtlcar.report.comparison import Cell, Comparison, replicate
from mtlcar.report.intervals import Estimate, over_seeds
from mtlcar.report.render import Row
from mtlcar.report.section import Section, Sheet
from mtlcar.report.table import best_of
from mtlcar.report.varied import NONE

SHOWN = 6
"""Most baselines that the note names."""

READ = (
    "Multi-task gain (delta m; Maninis et al. 2019): how much better, in % of its value, one network for all tasks is "
    "than a network for each task alone, with the other settings equal; mean over the tasks. Above 0: sharing helps. "
    "One metric a task: accuracy of a class, mean absolute error of a value. It is a mean of ratios, so a small change "
    "of an error near 0 weighs more than a large one elsewhere: look at each task too."
)
IMPLIED = (
    "With implied: the coarse levels that were not trained alone are compared with the class that the network trained "
    "on the finest level alone implies. That is another baseline than the definition's, and a harder one where fine "
    "labels teach more than coarse ones."
)


@dataclass
class Gain:
    """A multi-task cell against its baselines.

    Attributes:
        tasks: metric -> gain in % (over seeds), of those that have a baseline.
        baselines: metric -> what its gain is over.
        missing: the tasks without one.
        delta: delta m, None where a task has no baseline.
        implied: delta m with coarse levels against the implied class of the finest level's network; None where it is
            not needed or not known.
    """

    cell: Cell
    metrics: list[str]
    tasks: dict[str, Estimate] = field(default_factory=dict)
    baselines: dict[str, Baseline] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    delta: Estimate | None = None
    implied: Estimate | None = None


def section(comparison: Comparison) -> Section | None:
    """None where no run is of one task alone, or no other run has a value to compare with it."""
    found = gains(comparison)
    if not found:
        return None
    metrics = list(dict.fromkeys(metric for gain in found for metric in gain.metrics))
    implied = any(gain.implied for gain in found)
    heads = ["cell", "n", "delta m, %", *(["delta m with implied, %"] if implied else [])]
    heads += [f"{_words(metric)}, %" for metric in metrics]
    columns: list[list[Estimate | None]] = [[gain.delta for gain in found]]
    columns += [[gain.implied for gain in found]] if implied else []
    columns += [[gain.tasks.get(metric) for gain in found] for metric in metrics]
    winners = [best_of("delta/accuracy", {i: e.mean / 100 for i, e in enumerate(c) if e}) for c in columns]
    rows: list[Row] = []
    for i, gain in enumerate(found):
        n = max((e.n for column in columns if (e := column[i])), default=0)
        numbers = [(_text(column[i]), i in best) for column, best in zip(columns, winners, strict=True)]
        rows.append([(gain.cell.label, False), (str(n), False), *numbers])
    note = (
        "± is half the 95 % t interval over seeds, each against the baseline of its own seed. The best is bold. "
        f"Compared with {_named(found)}."
    )
    missing = list(dict.fromkeys(task for gain in found for task in gain.missing))
    if missing:
        note += (
            f" Where delta m is left out, no network of the same settings and seed was trained on "
            f"{' or '.join(missing)} alone (architecture=single architecture.task=...)."
        )
    sheet = Sheet("delta_m", "Multi-task gain over one network a task", heads, rows, _frame(comparison, found), note)
    return Section("Does sharing help?", [READ, *([IMPLIED] if implied else [])], sheets=[sheet])


def gains(comparison: Comparison) -> list[Gain]:
    """Every multi-task cell that has at least one baseline, in the comparison's order."""
    found = (_gain(cell, alone) for cell, alone in baselines(comparison))
    return [gain for gain in found if gain.tasks]


def _gain(cell: Cell, baseline_of: Mapping[str, Baseline]) -> Gain:
    tasks = cell.runs[0].tasks
    alone = {name: baseline.runs for name, baseline in baseline_of.items()}
    metric_of = {task.name: task_metric(task) for task in tasks}
    skipped = set().union(*(run.implied for run in cell.runs))
    wanted = {
        name: metric
        for name, metric in metric_of.items()
        if name not in skipped and all(metric in run.test for run in cell.runs)
    }
    gain = Gain(cell, list(wanted.values()))
    values = {name: {s: r.test[m] for s, r in alone.get(name, {}).items() if m in r.test} for name, m in wanted.items()}
    seeds = {replicate(run): run for run in cell.runs}
    for name, metric in wanted.items():
        pairs = [(run.test[metric], values[name][s]) for s, run in seeds.items() if s in values[name]]
        if pairs:
            gain.baselines[metric] = baseline_of[name]
            gain.tasks[metric] = over_seeds([relative_gain(metric, ours, theirs) for ours, theirs in pairs])
        else:
            gain.missing.append(name)
    gain.delta = _delta(seeds, wanted, values)
    finest = alone.get(tasks.finest().name, {}) if tasks.classification else {}
    above = tasks.ancestors(tasks.finest().name) if tasks.classification else ()
    lifted = {
        name: {s: r.test[key] for s, r in finest.items() if (key := f"{name}/implied_accuracy") in r.test}
        for name in gain.missing
        if name in above
    }
    if lifted:
        gain.implied = _delta(seeds, wanted, {**values, **lifted})
    return gain


def _delta(seeds: dict[str, Run], wanted: dict[str, str], alone: dict[str, dict[str, float]]) -> Estimate | None:
    """Over the seeds that all tasks have a baseline of."""
    values = [
        delta_m({m: run.test[m] for m in wanted.values()}, {m: alone[name][seed] for name, m in wanted.items()})
        for seed, run in seeds.items()
        if wanted and all(seed in alone[name] for name in wanted)
    ]
    return over_seeds(values) if values and not all(math.isnan(v) for v in values) else None


def _named(found: list[Gain]) -> str:
    """The baselines: `make: single · make; model: ...`."""
    pairs = [(metric, b) for gain in found for metric, b in gain.baselines.items()]
    texts = list(dict.fromkeys(f"{metric.rpartition('/')[0]}: {b.words}" for metric, b in pairs))
    more = f"; and {len(texts) - SHOWN} more, which the table's CSV names" if len(texts) > SHOWN else ""
    return "; ".join(texts[:SHOWN]) + more


def _words(metric: str) -> str:
    owner, _, kind = metric.rpartition("/")
    return f"{owner} {'accuracy' if kind == 'accuracy' else kind.upper()}"


def _text(e: Estimate | None) -> str:
    if e is None or math.isnan(e.mean):
        return NONE
    return f"{e.mean:+.1f}" + (f" ± {e.high - e.mean:.1f}" if e.has_interval else "")


def _frame(comparison: Comparison, found: list[Gain]) -> pd.DataFrame:
    """One row a cell and column: what is gained, its value in % and the seeds' values."""
    records = []
    for gain in found:
        named: dict[str, Estimate | None] = {"delta m": gain.delta, "delta m with implied": gain.implied, **gain.tasks}
        for what, e in named.items():
            if e is not None:
                record: dict[str, object] = {"data": comparison.name, "cell": gain.cell.label, "gain of": what}
                record |= {"percent": e.mean, "low": e.low, "high": e.high, "n": e.n}
                over = gain.baselines.values() if what not in gain.baselines else [gain.baselines[what]]
                record["baselines"] = "; ".join(dict.fromkeys(b.cell.label for b in over))
                records.append({**record, "per seed": " ".join(f"{v:.6g}" for v in e.values)})
    return pd.DataFrame(records)
