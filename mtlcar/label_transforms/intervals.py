"""Disjoint intervals on one axis, one a class, from the ranges of a value in each class (arXiv 2403.17926)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from mtlcar.errors import UserError

Layout = Literal["minimal", "stacked"]
RESOLUTION = 2.0**-20
"""Smallest gap as a share of the axis: 32 steps of a float32 at the axis's ends, which lie at half its width."""
EXACT = 2.0**-40
"""Smallest gap as a share of the positions themselves, which are float64."""


@dataclass(frozen=True)
class Intervals:
    """All float64 [K] on the CPU, by class index; in the label's unit.

    Attributes:
        low, high: where class k lies on the axis; disjoint, at least `gap` apart.
        offset: axis position = value + offset[class].
        order: class indices from low to high.
        gap: between neighbours, at least.
    """

    low: Tensor
    high: Tensor
    offset: Tensor
    order: tuple[int, ...]
    gap: float

    @property
    def width(self) -> float:
        return float(self.high.max() - self.low.min())

    @property
    def centre(self) -> float:
        return float(self.high.max() + self.low.min()) / 2


def resolution(intervals: Intervals) -> float:
    """The least distance between neighbours that a float32 output, and float64 positions, tell apart."""
    ends = torch.cat([intervals.low, intervals.high])
    return max(RESOLUTION * intervals.width, EXACT * float(ends.abs().max()))


def check_layout(layout: object) -> Layout:
    """UserError for anything but a layout."""
    if layout not in get_args(Layout):
        raise UserError(f"label_transform.layout should be one of {', '.join(get_args(Layout))}. Found {layout!r}.")
    return cast(Layout, layout)


def place(
    classes: Tensor,
    values: Tensor,
    names: Sequence[str],
    *,
    pad: float = 0.0,
    gap: float | None = None,
    layout: Layout = "minimal",
    order: Sequence[int] | None = None,
) -> Intervals:
    """The intervals of training labels: PROTOCOLS B, steps 1 and 2.

    Args:
        classes, values: int64 [n] and float64 [n], every class of `names` at least once.
        pad: each range is [min - pad, max + pad].
        gap: None: a tenth of the widest range (and at least 1e-4 of what all ranges span; 1, or 1e-6 of the value,
            where all values are equal).
        layout: `stacked`: every range starts `gap` after the one before; `minimal`: ranges that are already apart stay.
        order: class indices from low to high; None: by the mean of each class, ties by index.

    Raises:
        UserError: a gap that float32 cannot resolve on this axis.
    """
    k = len(names)
    start = torch.full((k,), torch.inf, dtype=torch.float64).scatter_reduce_(0, classes, values, "amin") - pad
    stop = torch.full((k,), -torch.inf, dtype=torch.float64).scatter_reduce_(0, classes, values, "amax") + pad
    if order is None:
        # sums of huge values may overflow where their mean does not
        counts = torch.bincount(classes, minlength=k)
        mean = torch.zeros(k, dtype=torch.float64).index_add_(0, classes, values / counts[classes])
        order = torch.argsort(mean, stable=True).tolist()
    if gap is None:
        gap = max(float((stop - start).max()) / 10, 1e-4 * float(stop.max() - start.min()))
        gap = gap or max(1.0, 1e-6 * float(stop.abs().max()))
    offset = torch.zeros(k, dtype=torch.float64)
    end = None
    for c in order:
        if end is not None:
            shift = end + gap - float(start[c])
            offset[c] = shift if layout == "stacked" else max(0.0, shift)
        end = float(stop[c] + offset[c])
    found = Intervals(start + offset, stop + offset, offset, tuple(order), float(gap))
    least = resolution(found)
    if not gap >= least:
        raise UserError(
            f"label_transform.gap={gap:g} is too small: the axis is {found.width:g} wide, and a float32 output "
            f"tells positions apart only down to {least:.2g} there. Use a larger gap "
            f"({float((stop - start).max()) / 10:.3g} is a tenth of the widest class), or layout=stacked."
        )
    return found
