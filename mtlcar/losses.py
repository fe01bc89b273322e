"""What is wrong with each task's output: the vector of per-task losses."""

from collections.abc import Callable, Mapping
from typing import Literal, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from mtlcar.data.annotations import MISSING_CLASS
from mtlcar.errors import UserError
from mtlcar.level_matching import Kind, LevelMatching, check_kind
from mtlcar.options import number
from mtlcar.tasks import Task, TaskSet


class TaskLosses(nn.Module):
    """Cross-entropy per classification, squared or Huber error on a standardised target per regression.

    Every loss is a mean over the batch's valid labels (class >= 0, value not NaN) in float32, also under autocast. The
    target of a classification may also be a distribution over its classes, float [B, classes], NaN where it is missing.
    A task without a valid label gives 0 with zero gradients. Nothing here waits for the device.

    In training under DDP the mean is over the valid labels of all ranks: each rank returns
    `its sum * world size / global count`, so that DDP's average of the gradients is the whole batch's gradient.

    Args:
        tasks: the tasks that are trained; the losses [T] have this order.
        label_smoothing: share of the target given to the uniform distribution (Szegedy 2016, eq. 15), in [0, 1].
        regression: `mse` (squared error) or `huber` (err^2 / 2 up to `huber_delta`, linear beyond; Huber 1964).
        huber_delta: in standard deviations of the training labels (not standardised: in the label's unit; on FastCAR's
            axis: in its scale).
        standardize: whether networks predict (value - mean) / std of the training labels, which `fit` finds.
        matching: weight of `level_matching.LevelMatching` in the objective. It belongs to no task: no weighting sees
            it, and it is no part of the losses [T].
        matching_kind: `js` or `kl`.
        name: the group's choice, for logs and tables.

    Attributes:
        mean, std: float32 [T] in the labels' units; 0 and 1 for classifications and before `fit`. Checkpointed.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        tasks: TaskSet,
        *,
        label_smoothing: float = 0.0,
        regression: Literal["mse", "huber"] = "mse",
        huber_delta: float = 1.0,
        standardize: bool = True,
        matching: float = 0.0,
        matching_kind: Kind = "js",
        name: str = "default",
    ) -> None:
        super().__init__()
        if not 0.0 <= label_smoothing <= 1.0:
            raise UserError(f"loss.label_smoothing should be between 0 and 1. Found {label_smoothing}.")
        if regression not in ("mse", "huber"):
            raise UserError(f"loss.regression should be 'mse' or 'huber'. Found {regression!r}.")
        if not huber_delta > 0:
            raise UserError(f"loss.huber_delta should be above 0. Found {huber_delta}.")
        self.tasks = tasks
        self.label_smoothing = label_smoothing
        self.regression = regression
        self.huber_delta = huber_delta
        self.standardize = standardize
        self.name = name
        self.matching_weight = number("loss.matching", matching, least=0)
        kind = check_kind(matching_kind)
        self.matching = LevelMatching(tasks, kind) if self.matching_weight else None
        self.register_buffer("mean", torch.zeros(len(tasks), dtype=torch.float32))
        self.register_buffer("std", torch.ones(len(tasks), dtype=torch.float32))

    def fit(self, targets: Mapping[str, Tensor]) -> Self:
        """Mean and (population) standard deviation of each regression from the TRAINING labels {task: [N]}.

        NaN labels are ignored; labels that are all equal get a deviation of 1.

        Raises:
            UserError: a regression without any training label.
        """
        if not self.standardize:
            return self
        for i, task in enumerate(self.tasks):
            if task.kind == "classification":
                continue
            values = targets[task.name].double()
            values = values[~values.isnan()]
            if not len(values):
                raise UserError(
                    f"Task {task.name!r} has no label in the training split, so nothing can be learnt about it: "
                    "choose another split (data.split, data.fractions) or leave the task out."
                )
            constant = bool(values.min() == values.max())
            self.mean[i] = values.mean()
            self.std[i] = 1.0 if constant else values.std(correction=0)
        return self

    def forward(self, outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
        """Outputs {task: logits [B, classes] or standardised value [B]}, targets {task: [B]} -> losses float32 [T]."""
        # `_sum` works in float32 and uses nothing that autocast would lower.
        sums = torch.stack([self._sum(i, outputs[t.name], targets[t.name]) for i, t in enumerate(self.tasks)])
        counts = self.counts(targets)
        world = 1
        if self.training and dist.is_available() and dist.is_initialized():
            world = dist.get_world_size()
            dist.all_reduce(counts)
        return sums * world / counts.clamp(min=1.0)

    def add_matching(self, extra: Tensor | None, outputs: Mapping[str, Tensor]) -> Tensor | None:
        """What the architecture adds to the objective of one step, and the weighted matching of levels with it."""
        if self.matching is None:
            return extra
        found = self.matching_weight * self.matching(outputs)
        return found if extra is None else extra + found

    def counts(self, targets: Mapping[str, Tensor]) -> Tensor:
        """Valid labels of each task in the batch, float32 [T]: the weights of the losses in a mean over batches."""
        return torch.stack([valid_labels(t, targets[t.name]).sum(dtype=torch.float32) for t in self.tasks])

    def predictions(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs -> {task: class index int64 [B] or value in the label's unit float32 [B]}."""
        found = {}
        for i, task in enumerate(self.tasks):
            output = outputs[task.name].detach()
            if task.kind == "classification":
                found[task.name] = output.argmax(dim=-1)
            else:
                found[task.name] = output.float() * self.std[i] + self.mean[i]
        return found

    def scores(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs -> {classification: class probabilities float32 [B, classes]}."""
        return {t.name: outputs[t.name].detach().float().softmax(dim=-1) for t in self.tasks.classification}

    def _sum(self, i: int, output: Tensor, target: Tensor) -> Tensor:
        task = self.tasks[i]
        expected = (len(target), task.outputs) if task.kind == "classification" else (len(target),)
        if output.shape != expected:  # [B, 1] against [B] would broadcast to [B, B] without a word
            raise ValueError(f"Task {task.name!r}: outputs should be {expected}. Found {tuple(output.shape)}.")
        output = output.float()
        if task.kind == "classification" and target.ndim == 2:
            known = valid_labels(task, target)[:, None]
            share = torch.where(known, target, 0.0).float()
            each = F.cross_entropy(output, share, reduction="none", label_smoothing=self.label_smoothing)
            return torch.where(known[:, 0], each, 0.0).sum()
        if task.kind == "classification":
            return F.cross_entropy(
                output, target, ignore_index=MISSING_CLASS, reduction="sum", label_smoothing=self.label_smoothing
            )
        target = (target.float() - self.mean[i]) / self.std[i]
        error = torch.where(target.isnan(), torch.zeros_like(output), output - target)
        if self.regression == "huber":
            return F.huber_loss(error, torch.zeros_like(error), reduction="sum", delta=self.huber_delta)
        return error.square().sum()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Follow to another device, not to another dtype: a mean hardness of 689.3 is 688 in bfloat16."""
        mean, std = self.mean, self.std
        super()._apply(fn, recurse)
        if not mean.is_meta and self.mean.dtype != torch.float32:
            self.mean, self.std = mean.to(self.mean.device), std.to(self.std.device)
        return self


def valid_labels(task: Task, target: Tensor) -> Tensor:
    """Which of the targets [B] or [B, classes] are there, bool [B]."""
    if task.kind == "regression":
        return ~target.isnan()
    return target != MISSING_CLASS if target.ndim == 1 else ~target[:, 0].isnan()
