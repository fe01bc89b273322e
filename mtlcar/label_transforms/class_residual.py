"""Values relative to their class: what is left to learn once the class is known."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor

from mtlcar.errors import UserError
from mtlcar.exact import exact
from mtlcar.label_transforms.base import LabelTransform
from mtlcar.label_transforms.pair import labelled
from mtlcar.label_transforms.per_class import check_constants, finest_class
from mtlcar.tasks import Task, TaskSet


class ClassResidual(LabelTransform):
    """z = (y - mean_c) / std_c with the true class c in training, y = mean_c + std_c z with the predicted one.

    A network that gives z = 0 is `ClassMean`. With architecture=cascade, feed=label, combine=select it has an output
    for each class: class-conditional regression.

    Args:
        constants: those of an earlier run; None: from the training labels.

    Attributes:
        mean, std: [values, K] in the values' units; a class whose labels are all equal (to 1e-6) has a std
            of 1.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, tasks: TaskSet, *, name: str = "class_residual", constants: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(tasks, name=name)
        self.task = finest_class(tasks, name)
        self.given = None
        if constants is not None:
            k = len(self.task.classes)
            self.given = [check_constants(constants, t, ("mean", "std"), k) for t in tasks.regression]
        size = (len(tasks.regression), len(self.task.classes))
        self.register_buffer("mean", torch.full(size, torch.nan, dtype=exact()))
        self.register_buffer("std", torch.full(size, torch.nan, dtype=exact()))

    def encoded_tasks(self, tasks: TaskSet) -> TaskSet:
        bare = [t if t.kind == "classification" else replace(t, unit="") for t in tasks]
        return TaskSet(bare, tasks.parent_of)

    def fit(self, targets: Mapping[str, Tensor]) -> Self:
        for i, task in enumerate(self.tasks.regression):
            if self.given is not None:
                self.mean[i], self.std[i] = self.given[i]
                continue
            classes, values = labelled(targets, self.task, task)
            for c in range(len(self.task.classes)):
                own = values[classes == c]
                self.mean[i, c] = own.mean()
                equal = own.max() - own.min() <= 1e-6 * own.abs().max()  # but for the rounding of float32
                self.std[i, c] = 1.0 if equal else own.std(correction=0)
        return self

    def encode(self, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A value whose class is missing is missing."""
        found = dict(targets)
        classes = targets[self.task.name]
        at = classes.clamp(min=0)
        for i, task in enumerate(self.tasks.regression):
            y = targets[task.name]
            z = (y.to(self.mean.dtype) - self.mean[i, at]) / self.std[i, at]
            found[task.name] = torch.where(classes >= 0, z, torch.nan).to(y.dtype)
        return found

    def decode(
        self, predictions: Mapping[str, Tensor], scores: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        found = dict(predictions)
        for i, task in enumerate(self.tasks.regression):
            if task.name not in predictions:
                continue
            z, classes = predictions[task.name], self._classes(predictions, task)
            at = classes.clamp(min=0)
            y = self.mean[i, at] + self.std[i, at] * z.to(self.mean.dtype)
            found[task.name] = torch.where(classes >= 0, y, torch.nan).to(z.dtype)
        return found

    def _classes(self, predictions: Mapping[str, Tensor], task: Task) -> Tensor:
        if self.task.name not in predictions:
            raise UserError(
                f"label_transform={self.name} reads {task.name} relative to the predicted {self.task.name}, which this "
                f"architecture does not predict. Train both tasks, or use label_transform=identity."
            )
        return predictions[self.task.name]

    def constants(self) -> dict[str, Any]:
        rows = zip(self.tasks.regression, self.mean.tolist(), self.std.tolist(), strict=True)
        return {task.name: {"mean": mean, "std": std} for task, mean, std in rows}
