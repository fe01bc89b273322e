"""Which tasks are really trained: a map from the dataset's labels to those a network learns, and back."""

from collections.abc import Mapping
from typing import Self

from lightning.pytorch import Callback
from torch import Tensor, nn

from mtlcar.tasks import TaskSet


class LabelTransform(nn.Module, Callback):
    """Labels to training targets and predictions back to labels.

    Its buffers (constants found by `fit`) are checkpointed as part of the module; its schedule lives in the
    callback hooks. `decode(encode(y))` gives every class back exactly.

    Args:
        tasks: the dataset's tasks.
        name: the method's name, for logs and tables.
    """

    def __init__(self, tasks: TaskSet, *, name: str) -> None:
        super().__init__()
        self.tasks = tasks
        self.name = name

    @property
    def state_key(self) -> str:
        return f"label_transform.{self.name}"

    def encoded_tasks(self, tasks: TaskSet) -> TaskSet:
        """The tasks that are trained in place of `tasks`."""
        return tasks

    def fit(self, targets: Mapping[str, Tensor]) -> Self:
        """Constants from the training labels {task: [N]}."""
        return self

    def encode(self, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Labels {task: [B]} -> training targets {trained task: [B]}."""
        return dict(targets)

    def decode(self, predictions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Predictions {trained task: [B]} (class indices, values) -> {task: [B]} in the labels' units."""
        return dict(predictions)

    def decode_scores(self, scores: Mapping[str, Tensor], predictions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Class scores {trained task: [B, classes]} -> {task: [B, classes]}, for top-k and calibration."""
        return dict(scores)
