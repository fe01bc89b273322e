"""The main table of a comparison and its figure, the learning curves, and the list of runs."""

import numpy as np

from mtlcar.report.comparison import Comparison
from mtlcar.report.figures import SHOWN_CELLS, curve_metrics, curves_figure, test_figure
from mtlcar.report.matching import test_sets
from mtlcar.report.ranking import main_metric
from mtlcar.report.section import Drawing, Section, Sheet
from mtlcar.report.table import frame, headings, rows, run_headings, run_rows


def results_section(comparison: Comparison) -> Section:
    """Each cell's test results with intervals, as a table and drawn."""
    sheet = Sheet("results", "Results", headings(comparison), rows(comparison), frame(comparison), _note(comparison))
    section = Section(sheet.title, sheets=[sheet])
    figure = test_figure(comparison)
    if figure is not None:
        caption = f"{comparison.name}: test results per cell. Filled: mean; line: 95 % interval; hollow: single seeds."
        if len(comparison.cells) > SHOWN_CELLS:
            caption += (
                f" Only the best {SHOWN_CELLS} of {len(comparison.cells)} cells by test {main_metric(comparison)}; "
                "the table has all."
            )
        section.drawings.append(Drawing("test", caption, figure))
    return section


def curves_section(comparison: Comparison) -> Section | None:
    """Validation metrics by epoch."""
    section = Section("Learning curves")
    for metric in curve_metrics(comparison):
        figure = curves_figure(comparison, metric)
        if figure is not None:
            caption = f"{comparison.name}: {metric} by epoch. Line: mean over seeds; band: their range."
            section.drawings.append(Drawing(f"curves_{metric.replace('/', '_')}", caption, figure))
    return section if section.drawings else None


def runs_section(comparison: Comparison) -> Section:
    """One row a run, so that each number can be traced to its directory."""
    sheet = Sheet("runs", f"All {len(comparison.runs)} runs", run_headings(), run_rows(comparison))
    return Section(sheet.title, sheets=[sheet], folded=True)


def _note(comparison: Comparison) -> str:
    sizes = {len(cell.runs) for cell in comparison.cells}
    parts = ["Test set, checkpoint with the best validation metric; the best value of a column is bold."]
    if max(sizes) > 1:
        sets = test_sets(comparison)
        spread = {
            None: "not every run says what its test images are",
            1: "same test set",
        }.get(sets, f"{sets} different test sets, whose spread is in it too")
        parts.append(f"± is half the 95 % t interval of the mean over n seeds ({spread}).")
    if 1 in sizes:
        parts.append(
            "[low, high] is the 95 % interval over test images of the one seed (Wilson's for accuracies, else a "
            "studentized bootstrap); it knows nothing of the spread between seeds."
        )
        alone = [cell.runs[0].groups for cell in comparison.cells if len(cell.runs) == 1]
        counts = sorted({len(np.unique(groups)) for groups in alone if groups is not None})
        if counts:
            parts.append(
                "Test images of one group are not independent: there the interval is a studentized bootstrap over "
                f"whole groups ({' or '.join(map(str, counts))} groups), for shares Wilson's with the number of "
                "independent images that the groups' spread implies."
            )
    if any(run.implied for run in comparison.runs):
        parts.append(
            "Where a network does not predict a coarse level itself, its class is the implied one: that has no "
            "consistency, and is compared under implied alone."
        )
    if comparison.pair is not None:
        parts.append(
            "within 8 %: images whose error is at most 8 % of the label; MAPE if class right: over the images whose "
            "class a cell got right, so each cell has its own images there."
        )
    parts.append("fit, min: minutes of training, mean over seeds; comparable only on one machine under one load.")
    return " ".join(parts)
