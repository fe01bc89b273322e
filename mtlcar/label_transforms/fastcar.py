"""FastCAR: one regressor for a class and a value (arXiv 2403.17926)."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from mtlcar.errors import UserError
from mtlcar.exact import exact
from mtlcar.label_transforms.axis_constants import read_constants
from mtlcar.label_transforms.axis_search import AxisSearch
from mtlcar.label_transforms.intervals import Intervals, Layout, check_layout, place
from mtlcar.label_transforms.pair import AXIS, labelled, pair
from mtlcar.options import flag, number
from mtlcar.tasks import Task, TaskSet

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

INSIDE, GAP, OUTSIDE, NOT_FINITE = range(4)
FLAGS = ("inside an interval", "in a gap", "beyond the axis", "not finite")


class FastCAR(AxisSearch):
    """The value's range in each class becomes an interval of one axis, disjoint from the others, and a network learns
    the position on it: z = (y + o_c - m) / s (arXiv 2403.17926; made precise in `intervals.place`).

    Decoding takes t = s z + m to the nearest interval (ties: the lower one), and y = t - o_class. Squared error
    predicts the posterior mean: doubt between the first and the third class of the axis decodes as the second.

    Args:
        tasks: one classification and one regression.
        layout, gap, pad: see `intervals.place`; in the value's unit.
        order: classes from low to high: `mean` (of the value), or all class names.
        scale: s in the value's unit, or `half_range`: half the width of the axis, so that z is within -1..1. The
            paper's is 1.
        clip: limit decoded values to the class's range in training (with its pad).
        gradient_limit, tries, adjust, factor, candidates, candidate_epochs: see `AxisSearch`.
        constants: those of an earlier run (`label_transform.constants` in its config.yaml): nothing is fitted.

    Attributes:
        low, high, offset: [K] by class index, the intervals and what was added to the labels, in the value's unit.
        thresholds: [K - 1], ascending: positions up to one of these decode as the class below it.
        rank: int64 [K], class indices from low to high.
        gap, centre, scale: g, m and s.
    """

    own_scale: ClassVar[bool] = True
    probabilities: ClassVar[bool] = False

    def __init__(
        self,
        tasks: TaskSet,
        *,
        name: str = "fastcar",
        layout: Layout = "minimal",
        gap: float | None = None,
        pad: float = 0.0,
        order: Literal["mean"] | Sequence[str] = "mean",
        scale: Literal["half_range"] | float = "half_range",
        clip: bool = False,
        gradient_limit: float | None = None,
        tries: int = 8,
        adjust: Literal["scale", "gap"] = "scale",
        factor: float = 2.0,
        candidates: Mapping[str, Sequence[Any]] | None = None,
        candidate_epochs: int = 1,
        constants: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(tasks, name=name)
        self.task, self.value = pair(tasks, name)
        k = len(self.task.classes)
        self.options: dict[str, Any] = {
            "layout": check_layout(layout),
            "gap": None if gap is None else number("label_transform.gap", gap, above=0),
            "pad": number("label_transform.pad", pad, least=0),
            "order": self.check_order(order, "label_transform.order"),
            "scale": None if scale == "half_range" else number("label_transform.scale (or half_range)", scale, above=0),
        }
        self.clip = flag("label_transform.clip", clip)
        self.set_search(gradient_limit, tries, adjust, factor, candidates, candidate_epochs)
        self.given = None if constants is None else read_constants(constants, self.task)
        dtype = exact()
        for key, size in (("low", k), ("high", k), ("offset", k), ("thresholds", k - 1)):
            self.register_buffer(key, torch.full((size,), torch.nan, dtype=dtype))
        self.register_buffer("rank", torch.arange(k))
        for key in ("gap", "centre", "scale"):
            self.register_buffer(key, torch.full((), torch.nan, dtype=dtype))
        self.low: Tensor
        self.high: Tensor
        self.offset: Tensor
        self.thresholds: Tensor
        self.rank: Tensor
        self.gap: Tensor
        self.centre: Tensor
        self.scale: Tensor
        self.labels: tuple[Tensor, Tensor] | None = None

    def encoded_tasks(self, tasks: TaskSet) -> TaskSet:
        return TaskSet((Task(AXIS, "regression"),))

    def decoded(self, trained: tuple[str, ...]) -> tuple[str, ...]:
        return (self.task.name, self.value.name)

    def fit(self, targets: Mapping[str, Tensor]) -> Self:
        """Intervals and scale from the training labels {task: [N]}; images that lack a label take no part.

        Raises:
            UserError: a class without a label; a gap or a scale that float32 cannot resolve; constants that do not fit.
        """
        self.labels = labelled(targets, self.task, self.value, every_class=self.given is None)
        if self.given is not None:
            found, scale = self.given
            self._set(found, scale)
        else:
            self.set_options({})
        return self

    def set_options(self, changes: Mapping[str, Any]) -> None:
        assert self.labels is not None
        self.options = {**self.options, **changes}
        classes, values = self.labels
        o = self.options
        names = self.task.classes
        found = place(classes, values, names, pad=o["pad"], gap=o["gap"], layout=o["layout"], order=o["order"])
        half = found.width / 2
        self._set(found, half if o["scale"] is None else o["scale"])

    def _set(self, found: Intervals, scale: float) -> None:
        end = max(found.low.abs().max().item(), found.high.abs().max().item())
        if not end <= torch.finfo(torch.float32).max / 2:
            raise UserError(
                f"label_transform=fastcar: with these labels the axis reaches to {end:.3g} {self.value.unit}".rstrip()
                + f", which float32 cannot hold. Look for wrong values of {self.value.name}, or use another unit."
            )
        reach = found.width / 2 / scale
        if not 1e-30 < reach < 1e30:
            raise UserError(
                f"label_transform.scale={scale:g} is out of proportion: the axis is {found.width:g} wide, so a network "
                f"would have to give values up to {reach:g}, which float32 cannot. Use scale=half_range."
            )
        rank = torch.tensor(found.order)
        thresholds = (found.high[rank[:-1]] + found.low[rank[1:]]) / 2
        for key, value in (("low", found.low), ("high", found.high), ("offset", found.offset), ("rank", rank)):
            getattr(self, key).copy_(value)
        self.thresholds.copy_(thresholds)
        self.centre.fill_(found.centre)
        self.scale.fill_(scale)
        self.gap.fill_(found.gap)

    def encode(self, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{class: int64 [B], value: [B]} -> {"axis": z [B]} in the value's dtype; NaN where a label is missing."""
        classes, values = targets[self.task.name], targets[self.value.name]
        self._check_fitted()
        position = values.to(self.offset.dtype) + self.offset[classes.clamp(min=0)]
        z = (position - self.centre) / self.scale
        return {AXIS: torch.where(classes >= 0, z, torch.nan).to(values.dtype)}

    @staticmethod
    def _finite(t: Tensor, dtype: torch.dtype) -> Tensor:
        """Whether a position is a number that the network's type can hold."""
        return t.abs() <= torch.finfo(dtype).max

    def position(self, z: Tensor) -> Tensor:
        """A network's values [B] -> positions on the axis [B], in the value's unit."""
        return z.to(self.offset.dtype) * self.scale + self.centre

    def decode(
        self, predictions: Mapping[str, Tensor], scores: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """{"axis": z [B]} -> {class: int64 [B], value: [B]}; a z that is not finite has class -1 and a NaN value."""
        z = predictions[AXIS]
        self._check_fitted()
        t = self.position(z)
        finite = self._finite(t, z.dtype)
        # `right=False` counts the thresholds below t, so that a position half-way belongs to the lower interval.
        classes = self.rank[torch.bucketize(t, self.thresholds)]
        values = t - self.offset[classes]
        if self.clip:
            start, stop = self.low - self.offset, self.high - self.offset
            values = torch.minimum(torch.maximum(values, start[classes]), stop[classes])
        return {
            self.task.name: torch.where(finite, classes, -1),
            self.value.name: torch.where(finite, values, torch.nan).to(z.dtype),
        }

    def decode_scores(self, scores: Mapping[str, Tensor], predictions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{class: [B, K]}: minus the distance to each interval, as a share of the axis; NaN where z is not finite."""
        z = predictions[AXIS]
        t = self.position(z)[:, None]
        distance = torch.maximum(self.low - t, t - self.high).clamp(min=0) / (self.high.max() - self.low.min())
        return {self.task.name: torch.where(self._finite(t, z.dtype), -distance, torch.nan).float()}

    def flags(self, z: Tensor) -> Tensor:
        """int8 [B]: 0 in an interval, 1 in a gap between two, 2 beyond the ends of the axis, 3 not finite."""
        t = self.position(z)[:, None]
        inside = ((t >= self.low) & (t <= self.high)).any(1)
        t = t[:, 0]
        found = torch.where((t < self.low.min()) | (t > self.high.max()), OUTSIDE, GAP)
        found = torch.where(inside, INSIDE, found)
        return torch.where(self._finite(t, z.dtype), found, NOT_FINITE).to(torch.int8)

    def columns(self, predictions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`axis/position` [B] in the value's unit, and `axis/flag` [B] of `flags`."""
        z = predictions[AXIS]
        return {f"{AXIS}/position": self.position(z), f"{AXIS}/flag": self.flags(z)}

    def constants(self) -> dict[str, Any]:
        """Intervals, offsets, gap and scale, in the value's unit, by class in the order of the axis."""
        rank = self.rank.tolist()
        vectors = {key: [getattr(self, key)[c].item() for c in rank] for key in ("low", "high", "offset")}
        names = [self.task.classes[c] for c in rank]
        return {"classes": names, **vectors, "gap": self.gap.item(), "scale": self.scale.item()}

    def findings(self, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """The shares of test predictions by flag, and the search."""
        found: dict[str, Any] = dict(self.searched)
        flags = rows.get(f"{AXIS}/flag")
        if flags is not None and len(flags):
            found["test_flags"] = {name: float(np.mean(flags == i)) for i, name in enumerate(FLAGS)}
        return found

    def figures(self, predictions: "DataFrame") -> "dict[str, Figure]":
        from mtlcar.label_transforms.axis_figure import axis_figure

        assert self.labels is not None
        return {"axis": axis_figure(self.task, self.value, self.constants(), self.labels, predictions)}

    def _check_fitted(self) -> None:
        if self.labels is None and not self.low.is_meta and self.low.isnan().any():
            raise RuntimeError("FastCAR knows no intervals yet: call fit(targets) first, or load a checkpoint.")
