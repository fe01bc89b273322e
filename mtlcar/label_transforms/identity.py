"""Train the dataset's own tasks."""

from mtlcar.label_transforms.base import LabelTransform
from mtlcar.tasks import TaskSet


class Identity(LabelTransform):
    """Every task is trained as it is labelled."""

    def __init__(self, tasks: TaskSet, *, name: str = "identity") -> None:
        super().__init__(tasks, name=name)
