"""Which differences between the cells are more than chance: paired tests against the best cell, and of all pairs."""

import itertools
import math
from collections.abc import Sequence

import pandas as pd

from mtlcar.metrics.direction import lower_is_better
from mtlcar.report.comparison import Cell, Comparison
from mtlcar.report.corrections import holm
from mtlcar.report.paired import Difference, Paired, Scores, cell_scores, compare_cells
from mtlcar.report.ranking import known, task_metrics
from mtlcar.report.render import Row
from mtlcar.report.section import Section, Sheet
from mtlcar.report.table import digits, percent, plain
from mtlcar.report.varied import NONE

MOST_CELLS = 40
"""With more, the correction for so many pairs leaves nothing to be found."""

Pairs = dict[tuple[int, int], Paired]

READ = (
    "Each row compares a cell with the one that has the best mean, seed by seed and image by image. The difference is "
    "this cell's value less the best cell's. p is how often chance alone would give a difference at least as large if "
    "there were none; p, Holm is corrected for testing all pairs of cells at once (the best cell was picked from the "
    "same results, so the comparisons with it alone would be too few to count): call a difference real where it is "
    "below 0.05. A larger value is no evidence that two cells are equal: see how far the interval reaches."
)
SEVERAL = (
    "Where a pair has several seeds, difference, interval and p are over seeds (paired t test): what to expect of the "
    "methods with other seeds, on this test set. With two or three seeds only large and steady differences can be "
    "seen. p of images is about the networks trained here, not about the methods: it is small also between two seeds "
    "of one method."
)
ONE = (
    "Where a pair has one seed, or differs by the same in each, interval and p are over test images: about the two "
    "networks trained here. They know nothing of the spread between seeds, which alone can make such a difference."
)


def section(comparison: Comparison) -> Section | None:
    """Paired tests of each class level (the finest first) and of each value's mean error.

    None for one cell, for more than `MOST_CELLS`, or where no two cells have predictions of the same images.
    """
    if not 2 <= len(comparison.cells) <= MOST_CELLS:
        return None
    made = (_sheet(comparison, metric) for metric in task_metrics(comparison))
    found = [sheet_and_pairs for sheet_and_pairs in made if sheet_and_pairs is not None]
    if not found:
        return None
    some = [pair for _, pairs in found for pair in pairs.values()]
    paragraphs = [READ]
    if any(pair.methods for pair in some):
        paragraphs.append(SEVERAL)
    if any(not pair.methods for pair in some):
        paragraphs.append(ONE)
    return Section("Which differences are more than chance", paragraphs, sheets=[sheet for sheet, _ in found])


def pairs_of(cells: Sequence[Cell], metric: str) -> Pairs:
    """(i, j) -> the comparison of cell i with cell j, for i < j; those without common images are left out."""
    found: list[dict[str, Scores]] = [cell_scores(cell, metric) for cell in cells]
    compared = {(i, j): compare_cells(found[i], found[j]) for i, j in itertools.combinations(range(len(cells)), 2)}
    return {key: pair for key, pair in compared.items() if pair is not None}


def _sheet(comparison: Comparison, metric: str) -> tuple[Sheet, Pairs] | None:
    owner = metric.rpartition("/")[0]
    cells = [
        cell for cell in comparison.cells if known(cell, metric) and not any(owner in run.implied for run in cell.runs)
    ]
    pairs = pairs_of(cells, metric)
    if not pairs:
        return None
    data = _frame(comparison, metric, cells, pairs)
    pick = min if lower_is_better(metric) else max
    best = pick(range(len(cells)), key=lambda i: cells[i].numbers[metric].mean)
    seeds = any(pair.methods for pair in pairs.values())
    share = percent(metric)
    unit = "points" if share else comparison.units.get(owner, "")
    heads = ["cell", "difference" + (f", {unit}" if unit else "") + " [95 %]", "p", "p, Holm"]
    heads += ["p of images", "p of images, Holm"] if seeds else []
    heads += ["only this right, images", "only the best right, images"] if share else []
    heads += ["n seeds", "images"]
    records = dict(zip(pairs, data.to_dict("records"), strict=True))
    rows: list[Row] = []
    for i, cell in enumerate(cells):
        if i == best:
            continue
        first, second = min(i, best), max(i, best)
        pair = pairs.get((first, second))
        if pair is None:
            rows.append([(cell.label, False), *[(NONE, False)] * (len(heads) - 1)])
            continue
        record = records[first, second]
        texts = [_difference(metric, pair.main, 1 if i < best else -1, cells[best].numbers[metric].mean)]
        texts += [_p(record["p"]), _p(record["p/holm"])]
        texts += [_p(record["images/p"]), _p(record["images/p/holm"])] if seeds else []
        alone = (pair.a_alone, pair.b_alone) if i < best else (pair.b_alone, pair.a_alone)
        texts += [f"{count:.0f}" if count == round(count) else f"{count:.1f}" for count in alone] if share else []
        rows.append([(text, False) for text in (cell.label, *texts, str(len(pair.seeds)), str(pair.images))])
    value = plain(metric, cells[best].numbers[metric].mean)
    title = f"{metric}: difference from {cells[best].label} ({value}{' %' if share else f' {unit}'.rstrip()})"
    note = _note(comparison, metric, cells, pairs)
    return Sheet(f"pairs_{metric.replace('/', '_')}", title, heads, rows, data, note), pairs


def _frame(comparison: Comparison, metric: str, cells: Sequence[Cell], pairs: Pairs) -> pd.DataFrame:
    """One row a pair of cells in full precision: differences are a - b, shares as fractions."""
    corrected = zip(
        pairs.items(),
        holm([pair.main.p for pair in pairs.values()]),
        holm([pair.networks.p for pair in pairs.values()]),
        strict=True,
    )
    records = []
    for ((i, j), pair), p, image_p in corrected:
        over = "seeds" if pair.methods else "groups" if pair.groups else "images"
        record: dict[str, object] = {"data": comparison.name, "metric": metric, "a": cells[i].label}
        record |= {"b": cells[j].label, "over": over}
        record |= {"difference": pair.main.mean, "low": pair.main.low, "high": pair.main.high}
        record |= {"p": pair.main.p, "p/holm": p}
        record |= {"images/difference": pair.networks.mean, "images/low": pair.networks.low}
        record |= {"images/high": pair.networks.high, "images/p": pair.networks.p, "images/p/holm": image_p}
        record |= {"only a right": pair.a_alone, "only b right": pair.b_alone, "n": len(pair.seeds)}
        record |= {"seeds": "; ".join(pair.seeds), "images": pair.images, "groups": pair.groups}
        records.append(record)
    return pd.DataFrame(records)


def _note(comparison: Comparison, metric: str, cells: Sequence[Cell], pairs: Pairs) -> str:
    total = len(cells) * (len(cells) - 1) // 2
    parts = [
        f"Holm's correction is over all {len(pairs)} pairs of this table's cells; its CSV has each."
        if len(pairs) > 1
        else "One pair alone needs no correction."
    ]
    if total > len(pairs):
        parts.append(f"{total - len(pairs)} pairs have no common seed and image, or a prediction that is no number.")
    groups = sorted({pair.groups for pair in pairs.values() if pair.groups is not None})
    if groups:
        parts.append(
            f"Test images of one group are not independent: whole groups ({' or '.join(map(str, groups))}) are the "
            "units of the tests over images."
        )
    elif percent(metric) and any(len(pair.seeds) == 1 for pair in pairs.values()):
        parts.append("For one seed p is McNemar's exact test of the images that only one of the two got right.")
    if percent(metric) and any(len(pair.seeds) > 1 for pair in pairs.values()):
        parts.append("Images that only one got right: mean per seed.")
    out = [cell.label for cell in comparison.cells if cell not in cells and metric in cell.numbers]
    if out:
        parts.append(f"Not compared, because implied by a finer level or no number: {', '.join(out)}.")
    return " ".join(parts)


def _difference(metric: str, d: Difference, sign: int, near: float) -> str:
    scale = sign * (100.0 if percent(metric) else 1.0)
    places = digits(metric, near)
    # Rounded before it is written, and + 0.0: no "-0.0".
    mean, *ends = (f"{round(scale * v, places) + 0.0:+.{places}f}" for v in (d.mean, d.low, d.high))
    return mean if math.isnan(d.low) else f"{mean} [{', '.join(ends[::sign])}]"


def _p(p: float) -> str:
    if math.isnan(p):
        return NONE
    return f"{p:.3f}" if p >= 0.001 else f"{p:.0e}"
