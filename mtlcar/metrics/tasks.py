"""All metrics of a task set, computed on decoded predictions in the dataset's own units."""

from collections.abc import Mapping
from typing import cast

from torch import Tensor, nn

from mtlcar.metrics.classification import ClassificationSums, top_ks
from mtlcar.metrics.hierarchy import HierarchySums
from mtlcar.metrics.levels import edges
from mtlcar.metrics.regression import ERRORS, RegressionSums
from mtlcar.metrics.sums import Sums
from mtlcar.tasks import TaskSet

AGREEMENT = ("consistency", "full_path_accuracy", "mistake_severity", "distance")
"""What is known of levels together; the last two are better when lower."""


class TaskMetrics(nn.Module):
    """One metric of sums per task and one for the hierarchy; under DDP `compute` adds the ranks' sums.

    Accuracies are fractions, `mape` is a percentage, `mae` and `rmse` are in the label's unit.

    Args:
        tasks: the dataset's tasks (not the trained ones, where a label transform makes them differ).
        prefix: put before each name, such as `val/`.
    """

    def __init__(self, tasks: TaskSet, prefix: str) -> None:
        super().__init__()
        self.tasks = tasks
        self.prefix = prefix
        finest = tasks.finest()
        self.by = finest if finest.kind == "classification" else None
        rows = len(self.by.classes) if self.by else 0
        # A list, because a ModuleDict refuses a task called `type` or `items`.
        self.sums = nn.ModuleList(
            ClassificationSums(len(t.classes)) if t.kind == "classification" else RegressionSums(rows) for t in tasks
        )
        self.hierarchy = HierarchySums(tasks)

    @staticmethod
    def names(tasks: TaskSet) -> list[str]:
        """Every name, without prefix, that `compute` can give for such tasks."""
        names: list[str] = []
        for task in tasks:
            if task.kind == "classification":
                kinds: tuple[str, ...] = ("accuracy", *(f"top{k}" for k in top_ks(len(task.classes))), "macro_f1")
                if any(task.name == parent for _, parent in edges(tasks)):
                    kinds += ("implied_accuracy",)
            else:
                kinds = ERRORS
            names += [f"{task.name}/{kind}" for kind in kinds]
        return names + ([f"hierarchy/{kind}" for kind in AGREEMENT] if edges(tasks) else [])

    def update(
        self,
        predictions: Mapping[str, Tensor],
        targets: Mapping[str, Tensor],
        scores: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Add a batch, without waiting for the device.

        Args:
            predictions: task -> class index int64 [B] (-1: no class) or value [B] in the label's unit. Tasks that are
                not predicted may be left out.
            targets: task -> label [B]; -1 or NaN where it is missing.
            scores: classification -> class scores [B, C], for top-k. Tasks without scores may be left out.
        """
        scores = scores or {}
        for task, sums in zip(self.tasks, self.sums, strict=True):
            if task.name not in predictions:
                continue
            prediction, target = predictions[task.name], targets[task.name]
            if prediction.shape != target.shape:  # [B, 1] against [B] would broadcast to [B, B] without a word
                raise ValueError(
                    f"Task {task.name!r}: predictions should be {tuple(target.shape)}. Found {tuple(prediction.shape)}."
                )
            if task.kind == "classification":
                cast(ClassificationSums, sums).update(prediction, target, scores.get(task.name))
            else:
                cast(RegressionSums, sums).update(prediction, target, targets[self.by.name] if self.by else None)
        self.hierarchy.update(predictions, targets)

    def compute(self) -> dict[str, float]:
        """Prefixed name -> value. What is not defined (no valid label, say) is left out."""
        found: dict[str, float] = {}
        for task, sums in zip(self.tasks, self.sums, strict=True):
            found |= {f"{task.name}/{k}": v for k, v in cast(Sums, sums).compute()["values"].items()}
        found |= self.hierarchy.compute()["values"]
        return {f"{self.prefix}{name}": found[name] for name in self.names(self.tasks) if name in found}

    def tables(self) -> dict[str, dict[str, dict[str, float]]]:
        """Classification -> class name -> `count` of labelled images and `accuracy` (recall of the class).

        The finest task's classes also have each regression's errors, as `<task>/mae`, and `<task>/count` of values.
        Classes without a label are left out.
        """
        tables: dict[str, dict[str, dict[str, float]]] = {}
        for task, sums in zip(self.tasks, self.sums, strict=True):
            rows = cast(Sums, sums).compute()["classes"]
            if task.kind == "classification":
                named = tables.setdefault(task.name, {})
                for index, row in rows.items():
                    named.setdefault(task.classes[index], {}).update(row)
            elif self.by is not None:
                named = tables.setdefault(self.by.name, {})
                for index, row in rows.items():
                    cells = {f"{task.name}/{key}": value for key, value in row.items()}
                    named.setdefault(self.by.classes[index], {}).update(cells)
        return {
            task.name: {c: tables[task.name][c] for c in task.classes if c in tables[task.name]}
            for task in self.tasks.classification
            if tables.get(task.name)
        }

    def reset(self) -> None:
        for sums in (*self.sums, self.hierarchy):
            cast(Sums, sums).reset()
