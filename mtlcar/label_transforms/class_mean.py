"""A classifier, and the training mean of each value in the predicted class: the baseline of every regressor."""

from collections.abc import Mapping
from typing import Any, Literal, Self

import torch
from torch import Tensor

from mtlcar.errors import UserError
from mtlcar.exact import exact
from mtlcar.label_transforms.base import LabelTransform
from mtlcar.label_transforms.pair import labelled
from mtlcar.label_transforms.per_class import check_constants, finest_class
from mtlcar.tasks import TaskSet


class ClassMean(LabelTransform):
    """Only the classifications are trained; a value is looked up from the predicted class (of the finest task).

    Args:
        statistic: `mean` (least squared error) or `median` (least absolute error) of the training labels in each class.
        constants: those of an earlier run; None: from the training labels.

    Attributes:
        table: [values, K] in the values' units.
    """

    table: Tensor

    def __init__(
        self,
        tasks: TaskSet,
        *,
        name: str = "class_mean",
        statistic: Literal["mean", "median"] = "mean",
        constants: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(tasks, name=name)
        self.task = finest_class(tasks, name)
        if statistic not in ("mean", "median"):
            raise UserError(f"label_transform.statistic should be mean or median. Found {statistic!r}.")
        self.statistic = statistic
        self.given = None
        if constants is not None:
            k = len(self.task.classes)
            self.given = [check_constants(constants, t, (self.statistic,), k) for t in tasks.regression]
        size = (len(tasks.regression), len(self.task.classes))
        self.register_buffer("table", torch.full(size, torch.nan, dtype=exact()))

    def encoded_tasks(self, tasks: TaskSet) -> TaskSet:
        return tasks.subset(t.name for t in tasks.classification)

    def fit(self, targets: Mapping[str, Tensor]) -> Self:
        for i, task in enumerate(self.tasks.regression):
            if self.given is not None:
                self.table[i] = self.given[i][0]
                continue
            classes, values = labelled(targets, self.task, task)
            for c in range(len(self.task.classes)):
                own = values[classes == c]
                self.table[i, c] = own.mean() if self.statistic == "mean" else own.quantile(0.5)
        return self

    def encode(self, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {t.name: targets[t.name] for t in self.tasks.classification}

    def decoded(self, trained: tuple[str, ...]) -> tuple[str, ...]:
        values = tuple(t.name for t in self.tasks.regression) if self.task.name in trained else ()
        return (*trained, *values)

    def decode(
        self, predictions: Mapping[str, Tensor], scores: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        found = dict(predictions)
        if self.task.name not in predictions:  # a network of a coarser level alone
            return found
        classes = predictions[self.task.name]
        for i, task in enumerate(self.tasks.regression):
            values = self.table[i, classes.clamp(min=0)]
            found[task.name] = torch.where(classes >= 0, values, torch.nan).float()
        return {t.name: found[t.name] for t in self.tasks if t.name in found}

    def constants(self) -> dict[str, Any]:
        names = [t.name for t in self.tasks.regression]
        return {n: {self.statistic: row} for n, row in zip(names, self.table.tolist(), strict=True)}
