"""Where a comparison predicts one value besides a class: the paper's table, specimens and classes."""

from mtlcar.report.comparison import Comparison
from mtlcar.report.figures import PANELS
from mtlcar.report.per_class import class_table
from mtlcar.report.published import table_1
from mtlcar.report.section import Drawing, Section
from mtlcar.report.specimen_figure import drawn, specimen_figure
from mtlcar.report.specimens import specimen_table, worst_table


def published_section(comparison: Comparison) -> Section | None:
    """The paper's Table 1 beside ours, for runs on the same data and split."""
    sheet = table_1(comparison)
    return None if sheet is None else Section(sheet.title, sheets=[sheet])


def specimen_section(comparison: Comparison) -> Section | None:
    """Errors with each specimen counted once, and its true against its predicted value."""
    sheet = specimen_table(comparison)
    panels = drawn(comparison)
    figure = specimen_figure(comparison, panels)
    if sheet is None and figure is None:
        return None
    section = Section("Specimens", sheets=[] if sheet is None else [sheet])
    if figure is not None:
        caption = (
            f"{comparison.name}: each dot is a specimen, its true value against the mean prediction over its tiles "
            "of all seeds; bar: 10-90 % of them; grey band: within 8 %, a dot outside it is hollow."
        )
        if len(panels) == PANELS < len(comparison.cells):
            caption += f" Only the {PANELS} of {len(comparison.cells)} cells with the least mean error of a specimen."
        section.drawings.append(Drawing("specimens", caption, figure))
    return section


def class_section(comparison: Comparison) -> Section | None:
    """Accuracy and errors for each class."""
    sheet = class_table(comparison)
    return None if sheet is None else Section(sheet.title, sheets=[sheet], folded=True)


def worst_section(comparison: Comparison) -> Section | None:
    """The specimens with the largest errors."""
    sheet = worst_table(comparison)
    return None if sheet is None else Section(sheet.title, sheets=[sheet], folded=True)
