"""FastCAR's axis with a distribution over it instead of one value."""

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from mtlcar.errors import UserError
from mtlcar.exact import exact
from mtlcar.label_transforms.base import LabelTransform
from mtlcar.label_transforms.pair import AXIS, labelled, pair
from mtlcar.label_transforms.per_class import check_constants
from mtlcar.options import number, whole
from mtlcar.tasks import Task, TaskSet


class IntervalSoftmax(LabelTransform):
    """Every class has `bins` support points, evenly over its range [a_c - pad, b_c + pad], and a network gives a
    softmax over all of them.

    A label is the mass 1 shared by the two points of its class around it, so that their mean is the label. A class's
    probability is the mass of its points; the value is their mean under that mass. Squared error on one axis predicts
    the posterior mean, so that doubt between the first and the third class decodes as the second; here doubt stays
    doubt. (A histogram loss, Imani & White 2018, arXiv 1806.04613, with one group of points a class; not the paper's.)

    Args:
        tasks: one classification and one regression.
        bins: support points a class, at least 2.
        pad: in the value's unit.
        constants: those of an earlier run; None: from the training labels.

    Attributes:
        points: [K, bins] in the value's unit; equal ones where all labels of a class are equal.
    """

    points: Tensor

    def __init__(
        self,
        tasks: TaskSet,
        *,
        name: str = "interval_softmax",
        bins: int = 10,
        pad: float = 0.0,
        constants: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(tasks, name=name)
        self.task, self.value = pair(tasks, name)
        self.bins = whole("label_transform.bins", bins, least=2)
        self.pad = number("label_transform.pad", pad, least=0)
        self.given = None
        if constants is not None:
            self.given = check_constants(constants, self.value, ("low", "high"), len(self.task.classes))
            if (self.given[0] > self.given[1]).any():
                raise UserError(f"label_transform.constants: low should not be above high. Found {constants!r}.")
        self.register_buffer("points", torch.full((len(self.task.classes), bins), torch.nan, dtype=exact()))

    def encoded_tasks(self, tasks: TaskSet) -> TaskSet:
        names = tuple(f"{i}.{k}" for i in range(len(self.task.classes)) for k in range(self.bins))
        return TaskSet((Task(AXIS, "classification", names),))

    def decoded(self, trained: tuple[str, ...]) -> tuple[str, ...]:
        return (self.task.name, self.value.name)

    def fit(self, targets: Mapping[str, Tensor]) -> Self:
        k = len(self.task.classes)
        if self.given is not None:
            low, high = self.given
        else:
            classes, values = labelled(targets, self.task, self.value)
            ranges = [(values[classes == c].min() - self.pad, values[classes == c].max() + self.pad) for c in range(k)]
            low, high = (torch.stack(side) for side in zip(*ranges, strict=True))
        share = torch.linspace(0, 1, self.bins, dtype=torch.float64)
        self.points.copy_(low[:, None] + (high - low)[:, None] * share)
        return self

    def encode(self, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{"axis": mass [B, K bins]} float32; NaN rows where a label is missing. A label beyond the range of its class
        in training counts as its end."""
        classes, y = targets[self.task.name], targets[self.value.name].to(self.points.dtype)
        points = self.points[classes.clamp(min=0)]
        low, high = points[:, 0], points[:, -1]
        width = torch.where(high > low, high - low, 1.0)
        place = ((y - low) / width).clamp(0, 1) * (self.bins - 1)
        known = (classes >= 0) & ~y.isnan()
        first = torch.where(known, place, 0.0).long().clamp(max=self.bins - 2)
        share = (place - first)[:, None]
        start = classes.clamp(min=0) * self.bins
        mass = self.points.new_zeros(len(y), self.points.numel())
        mass = mass.scatter(1, (start + first)[:, None], 1 - share).scatter(1, (start + first + 1)[:, None], share)
        return {AXIS: torch.where(known[:, None], mass, torch.nan).float()}

    def decode(
        self, predictions: Mapping[str, Tensor], scores: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The likeliest class and the mean of its points; of a bare point (no `scores`) its class and place."""
        if scores is None:
            points = predictions[AXIS]
            return {self.task.name: points // self.bins, self.value.name: self.points.flatten()[points].float()}
        mass = self._mass(scores)
        classes = mass.sum(2).argmax(1)
        own = mass[torch.arange(len(mass), device=mass.device), classes]
        value = (own * self.points[classes]).sum(1) / own.sum(1)
        return {
            self.task.name: torch.where(value.isfinite(), classes, -1),
            self.value.name: torch.where(value.isfinite(), value, torch.nan).float(),
        }

    def decode_scores(self, scores: Mapping[str, Tensor], predictions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {self.task.name: self._mass(scores).sum(2).float()}

    def _mass(self, scores: Mapping[str, Tensor]) -> Tensor:
        return scores[AXIS].to(self.points.dtype).unflatten(1, (len(self.task.classes), self.bins))

    def constants(self) -> dict[str, Any]:
        return {self.value.name: {"low": self.points[:, 0].tolist(), "high": self.points[:, -1].tolist()}}
