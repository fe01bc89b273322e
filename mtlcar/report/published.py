"""Published results that runs on the same data and split are shown beside."""

from dataclasses import dataclass

from mtlcar.report.comparison import Cell, Comparison
from mtlcar.report.section import Row, Sheet
from mtlcar.report.table import heading, text
from mtlcar.report.varied import NONE


@dataclass(frozen=True)
class Published:
    """A row as printed: accuracy and share within 8 % in %, errors in the label's unit, minutes of training."""

    name: str
    accuracy: str
    mape: str
    minutes: str
    mse: str = NONE
    mae: str = NONE
    within_8: str = NONE


FASTCAR = (
    Published("best multi-task network of family 1 (paper)", "99.85", "53.7", "40.4 ± 23.7"),
    Published("best multi-task network of family 2 (paper)", "99.69", "54.2", "43.1 ± 23.9"),
    Published("FastCAR (paper)", "99.54", "2.4", "16.32", mse="606", mae="12", within_8="98.6"),
)
"""arXiv 2403.17926, Table 1 and the text beside it: the published split of Advanced Steel Property data, 224 px,
100 epochs, one RTX A6000."""


def table_1(comparison: Comparison) -> Sheet | None:
    """FastCAR's Table 1 with the cells of a comparison on the same data and split; None for any other."""
    same = comparison.dataset == "advanced_steel" and comparison.values("data.split") == ["official"]
    if not same or comparison.pair is None:
        return None
    label, value = comparison.pair
    metrics = [f"{label}/accuracy", *(f"{value}/{kind}" for kind in ("mape", "mse", "mae", "within_8"))]
    metrics += [f"{value}/mape_if_right", "minutes"]
    rows: list[Row] = [
        [(shown, False) for shown in (p.name, p.accuracy, p.mape, p.mse, p.mae, p.within_8, NONE, p.minutes)]
        for p in FASTCAR
    ]
    rows += [
        [(cell.label, False), *((_number(cell, metric), False) for metric in metrics)] for cell in comparison.cells
    ]
    heads = ["network", *(heading(metric, comparison.units.get(metric.rpartition("/")[0], "")) for metric in metrics)]
    sizes, epochs = (", ".join(comparison.values(key)) for key in ("data.image_size", "trainer.max_epochs"))
    note = (
        "Published rows: 224 px, 100 epochs, RTX A6000, numbers and ± as printed there. "
        f"Our rows: {sizes or 'unknown'} px, {epochs or 'unknown'} epochs, on other hardware, so that minutes do not "
        "compare; numbers as in the table above."
    )
    return Sheet("table_1", "Table 1 of arXiv 2403.17926, with our columns", heads, rows, note=note)


def _number(cell: Cell, metric: str) -> str:
    return text(metric, cell.numbers[metric], short=True) if metric in cell.numbers else NONE
