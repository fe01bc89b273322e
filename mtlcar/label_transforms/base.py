"""Which tasks are really trained: a map from the dataset's labels to those a network learns, and back."""

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from lightning.pytorch import Callback
from torch import Tensor, nn

from mtlcar.tasks import TaskSet

if TYPE_CHECKING:  # half a second of imports that a run needs only at its end
    from matplotlib.figure import Figure
    from pandas import DataFrame


@dataclass(frozen=True)
class Trial:
    """A short training that a transform asks for before the real one.

    Attributes:
        what: what is tried, for the log.
        epochs: how long.
    """

    what: dict[str, Any]
    epochs: int = 1


@dataclass(frozen=True)
class Outcome:
    """What a trial showed.

    Attributes:
        gradient: mean |gradient| over all trainable elements after each step, averaged over the steps; infinite where a
            loss was not finite.
        metrics: the decoded validation metrics after its last epoch, `val/...`; empty where a loss was not finite.
    """

    gradient: float
    metrics: Mapping[str, float]


class LabelTransform(nn.Module, Callback):
    """Labels to training targets and predictions back to labels.

    Its buffers (constants found by `fit`) are checkpointed as part of the module; its schedule lives in the
    callback hooks. `decode(encode(y))` gives every class back exactly.

    Args:
        tasks: the dataset's tasks.
        name: the method's name, for logs and tables.

    Attributes:
        own_scale: whether encoded values are scaled already, so that losses do not standardise them again.
        probabilities: whether the scores it decodes are class probabilities.
        searched: what `search` tried so far, JSON values.
    """

    own_scale: ClassVar[bool] = False
    probabilities: ClassVar[bool] = True

    def __init__(self, tasks: TaskSet, *, name: str) -> None:
        super().__init__()
        self.tasks = tasks
        self.name = name
        self.searched: dict[str, Any] = {}

    @property
    def state_key(self) -> str:
        return f"label_transform.{self.name}"

    def encoded_tasks(self, tasks: TaskSet) -> TaskSet:
        """The tasks that are trained in place of `tasks`."""
        return tasks

    def fit(self, targets: Mapping[str, Tensor]) -> Self:
        """Constants from the training labels {task: [N]}."""
        return self

    def search(self) -> Generator[Trial, Outcome, None]:
        """Short trainings to choose constants by; each starts from the run's first weights, which it gets back
        afterwards. It may change the constants between two of them, and leaves those that were chosen."""
        yield from ()

    def encode(self, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Labels {task: [B]} -> training targets {trained task: [B]}; a classification's may be a distribution
        [B, classes]."""
        return dict(targets)

    def decode(
        self, predictions: Mapping[str, Tensor], scores: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Predictions {trained task: [B]} (class indices, values) -> {task: [B]} in the labels' units.

        Args:
            scores: class probabilities {trained task: [B, classes]}, for transforms that decode a distribution.
        """
        return dict(predictions)

    def decode_scores(self, scores: Mapping[str, Tensor], predictions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Class scores {trained task: [B, classes]} -> {task: [B, classes]}, for top-k and calibration."""
        return dict(scores)

    def decoded(self, trained: tuple[str, ...]) -> tuple[str, ...]:
        """The tasks that `decode` gives when the tasks of these names are predicted."""
        return trained

    def columns(self, predictions: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Predictions {trained task: [B]} -> further columns [B] of predictions.parquet."""
        return {}

    def constants(self) -> dict[str, Any]:
        """What `fit` and `search` found, as JSON values that the constructor's `constants` takes back; empty where
        nothing is found."""
        return {}

    def findings(self, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """What else is worth knowing of it, for metrics.json: JSON values.

        Args:
            rows: the columns of predictions.parquet, [N] test images each.
        """
        return {}

    def figures(self, predictions: "DataFrame") -> "dict[str, Figure]":
        """Name -> figure that explains what it did to predictions.parquet of the test images."""
        return {}
