"""The report of a set of runs, from their directories to files."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mtlcar.report.collect import Found, collect
from mtlcar.report.comparison import Comparison, compare
from mtlcar.report.figures import PANELS, SHOWN_CELLS, curve_metrics, curves_figure, main_metric, test_figure
from mtlcar.report.matching import main_fixed, other_fixed, test_sets, unmatched
from mtlcar.report.per_class import class_table
from mtlcar.report.published import table_1
from mtlcar.report.render import Page, Table, markdown, page_html
from mtlcar.report.specimen_figure import drawn, specimen_figure
from mtlcar.report.specimens import specimen_table, worst_table
from mtlcar.report.table import frame, headings, rows, run_headings, run_rows
from mtlcar.runs.files import replacing, write_text


def build(directories: Sequence[Path], output: Path) -> tuple[Path, list[Comparison], Found]:
    """Write `report.html`, `report.md`, `table.csv` and `figures/*.png` to `output`, each by renaming.

    Returns:
        The path of report.html, the comparisons (one per dataset and split) and what was found.

    Raises:
        UserError: there is no finished run below `directories`.
    """
    found = collect(directories)
    comparisons = compare(found.runs)
    several = len(comparisons) > 1
    pages = [_page(comparison, several) for comparison in comparisons]
    if found.left_out:
        pages[-1].lists.append(
            (f"Left out: {len(found.left_out)}", [f"{name}: {reason}" for name, reason in found.left_out])
        )
    for page in pages:
        for name, _, png in page.figures:
            with replacing(output / "figures" / name) as temporary:
                temporary.write_bytes(png)
    write_text(output / "table.csv", pd.concat([frame(c) for c in comparisons]).to_csv(index=False))
    title = "Comparison of " + ", ".join(dict.fromkeys(run.directory.parent.name for run in found.runs))
    write_text(output / "report.md", markdown(title, pages))
    write_text(output / "report.html", page_html(title, pages))
    return output / "report.html", comparisons, found


def _page(comparison: Comparison, several: bool) -> Page:
    seeds = comparison.seeds
    count = f"{len(comparison.runs)} runs: {len(comparison.cells)} cells, seeds {'; '.join(seeds)}."
    varied = ", ".join(comparison.titles) if comparison.titles else "nothing but the seed"
    page = Page(
        title=comparison.name,
        paragraphs=[count, f"Varied: {varied}.", f"Fixed: {', '.join(main_fixed(comparison)) or 'nothing'}."],
        warnings=[*unmatched(comparison), *comparison.disagree],
        heads=headings(comparison),
        rows=rows(comparison),
        notes=[_note(comparison)],
    )
    page.sections += [table for table in (table_1(comparison), specimen_table(comparison)) if table is not None]
    _add_figures(page, comparison, several)
    page.tables += [table for table in (class_table(comparison), worst_table(comparison)) if table is not None]
    page.tables.append(Table(f"All {len(comparison.runs)} runs", run_headings(), run_rows(comparison)))
    page.lists.append(("All fixed settings", other_fixed(comparison)))
    if comparison.repeats:
        page.lists.append(("Older runs of the same settings and seed, not counted", comparison.repeats))
    return page


def _add_figures(page: Page, comparison: Comparison, several: bool) -> None:
    names = [comparison.dataset, *([] if comparison.split is None else [comparison.split])]
    prefix = "".join(f"{name}_" for name in names) if several else ""
    figure = test_figure(comparison)
    if figure is not None:
        caption = f"{comparison.name}: test results per cell. Filled: mean; line: 95 % interval; hollow: single seeds."
        if len(comparison.cells) > SHOWN_CELLS:
            caption += (
                f" Only the best {SHOWN_CELLS} of {len(comparison.cells)} cells by test {main_metric(comparison)}; "
                "the table has all."
            )
        page.figures.append((f"{prefix}test.png", caption, _png(figure)))
    panels = drawn(comparison)
    figure = specimen_figure(comparison, panels)
    if figure is not None:
        caption = (
            f"{comparison.name}: each dot is a specimen, its true value against the mean prediction over its tiles "
            "of all seeds; bar: 10-90 % of them; grey band: within 8 %, a dot outside it is hollow."
        )
        if len(panels) == PANELS < len(comparison.cells):
            caption += f" Only the {PANELS} of {len(comparison.cells)} cells with the least mean error of a specimen."
        page.figures.append((f"{prefix}specimens.png", caption, _png(figure)))
    for metric in curve_metrics(comparison):
        figure = curves_figure(comparison, metric)
        if figure is not None:
            name = metric.replace("/", "_")
            caption = f"{comparison.name}: {metric} by epoch. Line: mean over seeds; band: their range."
            page.figures.append((f"{prefix}curves_{name}.png", caption, _png(figure)))


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
            "[low, high] is the 95 % interval over test images of the one seed (Wilson's for accuracies, else "
            "bootstrap); it knows nothing of the spread between seeds."
        )
        alone = [cell.runs[0].groups for cell in comparison.cells if len(cell.runs) == 1]
        counts = sorted({len(np.unique(groups)) for groups in alone if groups is not None})
        if counts:
            parts.append(
                "Test images of one group are not independent: there the interval is a bootstrap over whole groups "
                f"({' or '.join(map(str, counts))} groups), or Wilson's of that many where all are right."
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


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white")
    return buffer.getvalue()
