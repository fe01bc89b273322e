"""Multi-task gain: each multi-task cell against networks of the same settings that were trained on one task each."""

import math
from dataclasses import dataclass, field

import pandas as pd

from mtlcar.metrics.gain import delta_m, relative_gain
from mtlcar.report.collect import Run
from mtlcar.report.comparison import Cell, Comparison, flat, replicate
from mtlcar.report.intervals import Estimate, over_seeds
from mtlcar.report.render import Row
from mtlcar.report.section import Section, Sheet
from mtlcar.report.table import best_of
from mtlcar.report.varied import METHOD, NONE, Settings, by_content, is_seed

SINGLE = "single"

OF_SHARING = (
    *("architecture", "weighting", "label_transform", "loss.matching", "loss.matching_kind"),
    *(METHOD, "monitor", "monitor_mode"),
)
"""Settings, and groups of them, that a baseline need not share: they say how tasks are joined and balanced, which one
task alone is not, and which task's metric picks the checkpoint."""

Baselines = dict[str, dict[str, Run]]
"""Task -> seed -> the run that was trained on it alone."""

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
        missing: the tasks without one.
        delta: delta m, None where a task has no baseline.
        implied: delta m with coarse levels against the implied class of the finest level's network; None where it is
            not needed or not known.
    """

    cell: Cell
    metrics: list[str]
    tasks: dict[str, Estimate] = field(default_factory=dict)
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
    note = "± is half the 95 % t interval over seeds, each against the baseline of its own seed. The best is bold."
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
    flats = by_content([flat(run) for run in comparison.runs], [run.digests for run in comparison.runs])
    matched = {id(run): _to_match(found) for run, found in zip(comparison.runs, flats, strict=True)}
    singles = [run for run in comparison.runs if _is_single(run)]
    found = []
    for cell in comparison.cells:
        if any(_is_single(run) for run in cell.runs):
            continue
        alone: Baselines = {}
        for run in singles:
            if matched[id(run)] == matched[id(cell.runs[0])]:
                alone.setdefault(trained_alone(run), {}).setdefault(replicate(run), run)
        gain = _gain(cell, alone)
        if gain.tasks:
            found.append(gain)
    return found


def trained_alone(run: Run) -> str:
    """The task that a run of one task was trained on."""
    return str((run.config.get("architecture") or {}).get("task") or run.tasks.finest().name)


def _is_single(run: Run) -> bool:
    return bool((run.config.get("architecture") or {}).get("name") == SINGLE)


def _to_match(settings: Settings) -> Settings:
    return {
        key: value
        for key, value in settings.items()
        if key not in OF_SHARING and key.split(".", 1)[0] not in OF_SHARING and not is_seed(key)
    }


def _gain(cell: Cell, alone: Baselines) -> Gain:
    tasks = cell.runs[0].tasks
    metric_of = {task.name: f"{task.name}/{'accuracy' if task.kind == 'classification' else 'mae'}" for task in tasks}
    skipped = set().union(*(run.implied for run in cell.runs))
    wanted = {
        name: metric
        for name, metric in metric_of.items()
        if name not in skipped and all(metric in run.test for run in cell.runs)
    }
    gain = Gain(cell, list(wanted.values()))
    baselines = {
        name: {s: r.test[m] for s, r in alone.get(name, {}).items() if m in r.test} for name, m in wanted.items()
    }
    seeds = {replicate(run): run for run in cell.runs}
    for name, metric in wanted.items():
        pairs = [(run.test[metric], baselines[name][s]) for s, run in seeds.items() if s in baselines[name]]
        if pairs:
            gain.tasks[metric] = over_seeds([relative_gain(metric, ours, theirs) for ours, theirs in pairs])
        else:
            gain.missing.append(name)
    gain.delta = _delta(seeds, wanted, baselines)
    finest = alone.get(tasks.finest().name, {}) if tasks.classification else {}
    above = tasks.ancestors(tasks.finest().name) if tasks.classification else ()
    lifted = {
        name: {s: r.test[key] for s, r in finest.items() if (key := f"{name}/implied_accuracy") in r.test}
        for name in gain.missing
        if name in above
    }
    if lifted:
        gain.implied = _delta(seeds, wanted, {**baselines, **lifted})
    return gain


def _delta(seeds: dict[str, Run], wanted: dict[str, str], baselines: dict[str, dict[str, float]]) -> Estimate | None:
    """Over the seeds that all tasks have a baseline of."""
    values = [
        delta_m({m: run.test[m] for m in wanted.values()}, {m: baselines[name][seed] for name, m in wanted.items()})
        for seed, run in seeds.items()
        if wanted and all(seed in baselines[name] for name in wanted)
    ]
    return over_seeds(values) if values and not all(math.isnan(v) for v in values) else None


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
                records.append({**record, "per seed": " ".join(f"{v:.6g}" for v in e.values)})
    return pd.DataFrame(records)
