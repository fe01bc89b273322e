"""The report of a set of runs, from their directories to files."""

import io
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure

from mtlcar.report import (
    calibration,
    confusions,
    cost_section,
    decodings,
    gain,
    heatmap,
    pairwise,
    pareto,
    setting_curves,
    trajectories,
    value_section,
)
from mtlcar.report.collect import Found, collect
from mtlcar.report.comparison import Comparison, compare
from mtlcar.report.latex import latex_table
from mtlcar.report.matching import main_fixed, other_fixed, unmatched
from mtlcar.report.render import Page, markdown, page_html
from mtlcar.report.results_section import curves_section, results_section, runs_section
from mtlcar.report.section import Section, Sheet
from mtlcar.report.table import frame
from mtlcar.runs.files import replacing, write_text

log = logging.getLogger("mtlcar")

STRICT = "MTLCAR_STRICT_REPORT"
SectionMaker = Callable[[Comparison], Section | None]


SECTIONS: tuple[SectionMaker, ...] = (
    results_section,
    value_section.published_section,
    pairwise.section,
    gain.section,
    heatmap.section,
    pareto.section,
    setting_curves.section,
    value_section.specimen_section,
    decodings.section,
    calibration.section,
    confusions.section,
    value_section.class_section,
    value_section.worst_section,
    curves_section,
    trajectories.section,
    cost_section.section,
    confusions.by_cell_section,
    runs_section,
)
"""What a report asks of a comparison, in its order; each gives None where the runs have no answer."""


def build(
    directories: Sequence[Path], output: Path, *, refresh: float | None = None
) -> tuple[Path, list[Comparison], Found]:
    """Write `report.html`, `report.md`, `table.csv`, `figures/*.{png,svg}` and `tables/*.{csv,tex}` to `output`, each
    by renaming.

    Args:
        refresh: the page loads itself again after so many seconds.

    Returns:
        The path of report.html, the comparisons (one per dataset and split) and what was found.

    Raises:
        UserError: there is no finished run below `directories`.
    """
    found = collect(directories)
    comparisons = compare(found.runs)
    pages = [_page(comparison, len(comparisons) > 1) for comparison in comparisons]
    if found.left_out:
        pages[-1].lists.append(
            (f"Left out: {len(found.left_out)}", [f"{name}: {reason}" for name, reason in found.left_out])
        )
    written = {path for page in pages for path in _write_page(page, output)}
    write_text(output / "table.csv", pd.concat([frame(c) for c in comparisons]).to_csv(index=False))
    title = "Comparison of " + ", ".join(dict.fromkeys(run.directory.parent.name for run in found.runs))
    write_text(output / "report.md", markdown(title, pages))
    write_text(output / "report.html", page_html(title, pages, refresh=refresh))
    _remove_others(output, written)
    return output / "report.html", comparisons, found


def _page(comparison: Comparison, several: bool) -> Page:
    count = f"{len(comparison.runs)} runs: {len(comparison.cells)} cells, seeds {'; '.join(comparison.seeds)}."
    varied = ", ".join(comparison.titles) if comparison.titles else "nothing but the seed"
    names = [comparison.dataset, *([] if comparison.split is None else [comparison.split])]
    page = Page(
        title=comparison.name,
        paragraphs=[count, f"Varied: {varied}.", f"Fixed: {', '.join(main_fixed(comparison)) or 'nothing'}."],
        warnings=[*unmatched(comparison), *comparison.disagree],
        prefix="".join(f"{name}_" for name in names) if several else "",
    )
    for make in SECTIONS:
        section = _made(make, comparison)
        if section is not None:
            page.sections.append(section)
    page.lists.append(("All fixed settings", other_fixed(comparison)))
    if comparison.repeats:
        page.lists.append(("Older runs of the same settings and seed, not counted", comparison.repeats))
    return page


def _made(make: SectionMaker, comparison: Comparison) -> Section | None:
    """A section; where it cannot be made, a sentence in its place: one odd file of one run must not cost the report.
    `STRICT` in the environment raises instead, for tests."""
    try:
        return make(comparison)
    except Exception as error:
        if STRICT in os.environ:
            raise
        first = (str(error).splitlines() or [""])[0]
        called = make.__module__.rpartition(".")[2].replace("_", " ")
        log.warning("The report lacks %s (%s: %s).", called, type(error).__name__, first, exc_info=True)
        return Section(f"Left out: {called}", [f"It could not be made ({type(error).__name__}: {first})."])


def _remove_others(folder: Path, written: set[Path]) -> None:
    """An earlier report may have had other figures and tables, which would be taken for this one's."""
    for name, endings in (("figures", (".png", ".svg")), ("tables", (".csv", ".tex"))):
        for file in (folder / name).glob("*"):
            if file.suffix in endings and file not in written:
                file.unlink()


def _write_page(page: Page, output: Path) -> set[Path]:
    """Its figures and tables as files; the figures stay in the page as PNG."""
    written = set()
    for section in page.sections:
        for drawing in section.drawings:
            page.images[drawing.name] = _image(drawing.figure, "png")
            for ending, data in (("png", page.images[drawing.name]), ("svg", _image(drawing.figure, "svg"))):
                path = output / "figures" / f"{page.stem(drawing.name)}.{ending}"
                written.add(path)
                with replacing(path) as temporary:
                    temporary.write_bytes(data)
        for sheet in section.sheets:
            stem = output / "tables" / page.stem(sheet.name)
            write_text(stem.with_name(f"{stem.name}.csv"), data_of(sheet).to_csv(index=False))
            write_text(stem.with_name(f"{stem.name}.tex"), latex_table(sheet))
            written |= {stem.with_name(f"{stem.name}.{ending}") for ending in ("csv", "tex")}
    return written


def data_of(sheet: Sheet) -> pd.DataFrame:
    """The sheet's numbers in full, or what it shows."""
    if sheet.data is not None:
        return sheet.data
    return pd.DataFrame([[text for text, _ in row] for row in sheet.rows], columns=pd.Index(sheet.heads))


def _image(figure: Figure, ending: str) -> bytes:
    """A figure's file; of one report built twice the same bytes."""
    buffer = io.BytesIO()
    meta = {"Date": None} if ending == "svg" else {"Software": None}
    with rc_context({"svg.hashsalt": "mtlcar", "svg.fonttype": "none" if ending == "svg" else "path"}):
        figure.savefig(buffer, format=ending, facecolor="white", metadata=meta)
    return buffer.getvalue()
