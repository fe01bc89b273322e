"""Errors of one regression task in the label's unit, over all images and per class of another task, as sums."""

from typing import Any

import torch
from torch import Tensor

from mtlcar.exact import exact
from mtlcar.metrics.sums import Sums

ERRORS = ("mae", "mse", "rmse", "mape", "within_8", "r2")
"""The metrics' names; `within_8` and `r2` are better when higher."""

WITHIN = 0.08
"""Largest |error| / |label| that `within_8` counts (arXiv 2403.17926: "98.6 % of images within 8 %")."""

_EXACT = exact()


class RegressionSums(Sums):
    """Sums in float64; a missing label (NaN) takes no part.

    - `mae`, `rmse` in the label's unit, `mse` in its square;
    - `mape`: mean |error| / |label| in percent, over the labels that are not 0 (where it is not defined);
    - `within_8`: the share of those labels with |error| / |label| <= 0.08, a fraction;
    - `r2`: 1 - sum error^2 / sum (label - mean label)^2; not defined when all labels are equal.

    A NaN prediction of a valid label makes the errors NaN and is outside the 8 %: it is not hidden.

    Args:
        classes: classes of the task that the errors are broken down by; 0 for no breakdown.
    """

    def __init__(self, classes: int = 0) -> None:
        super().__init__()
        self.classes = classes
        # Columns: count, |e|, e^2, count of y != 0, |e / y|, count of |e / y| <= 0.08, y, y^2.
        # Rows: the classes, then the missing class.
        self.add_state("sums", torch.zeros(classes + 1, 8, dtype=_EXACT), dist_reduce_fx="sum")
        self.sums: Tensor

    def update(self, prediction: Tensor, target: Tensor, class_target: Tensor | None = None) -> None:
        """Values [B] and labels [B] in the label's unit; class labels int64 [B] for the breakdown."""
        y = target.to(_EXACT)
        valid = ~y.isnan()
        y = torch.where(valid, y, 0.0)
        error = torch.where(valid, (prediction.to(_EXACT) - y).abs(), 0.0)
        nonzero = valid & (y != 0)
        relative = torch.where(nonzero, error / torch.where(nonzero, y.abs(), 1.0), 0.0)
        within = nonzero & (relative <= WITHIN)
        columns = [valid, error, error**2, nonzero, relative, within, y, y**2]
        rows = torch.stack([column.to(_EXACT) for column in columns], dim=1)
        if class_target is None:
            class_target = torch.full_like(target, -1, dtype=torch.int64)
        slot = torch.where(class_target >= 0, class_target, self.classes)
        self.sums = self.sums + torch.zeros_like(self.sums, dtype=_EXACT).index_add(0, slot, rows)

    def compute(self) -> dict[str, Any]:
        """`values`: the metrics that are defined; `classes`: number of labels and errors by class index."""
        rows = self.sums.double().cpu()
        per_class = enumerate(rows[:-1].tolist())
        return {
            "values": errors(rows.sum(dim=0).tolist()),
            "classes": {c: {"count": int(r[0])} | errors(r) for c, r in per_class if r[0]},
        }


def errors(row: list[float]) -> dict[str, float]:
    """The sums of `RegressionSums` -> the metrics that are defined."""
    count, absolute, squared, nonzero, relative, within, total, total_squared = row
    if not count:
        return {}
    values = {"mae": absolute / count, "mse": squared / count, "rmse": (squared / count) ** 0.5}
    if nonzero:
        values["mape"] = 100 * relative / nonzero
        values["within_8"] = within / nonzero
    spread = total_squared - total**2 / count
    if spread > 1e3 * torch.finfo(_EXACT).eps * total_squared:  # below, it is rounding: the labels are equal
        values["r2"] = 1 - squared / spread
    return values
