"""Fixed weights, given by the user."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mtlcar.errors import UserError, did_you_mean
from mtlcar.tasks import TaskSet
from mtlcar.weightings.base import LossWeighting


class Fixed(LossWeighting):
    """sum_t w_t L_t with given w (the grid of arXiv 2603.01746). The weights sum to what was given.

    One trained task has nothing to balance: its weight is 1, so that a sweep over architecture x weights compares
    the multi-task cells with one and the same single-task run.

    Args:
        weights: task -> weight >= 0, for exactly the trained tasks. None: all 1.
    """

    reads_weights = True
    constant = True

    def __init__(
        self,
        tasks: TaskSet,
        *,
        weights: Mapping[str, float] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(tasks, weights=weights, **common)
        given = dict(weights) if weights is not None else dict.fromkeys(tasks.names, 1.0)
        if len(tasks) == 1:
            given = {tasks.names[0]: 1.0}
        unknown = [k for k in given if k not in tasks]
        missing = [n for n in tasks.names if n not in given]
        if unknown or missing:
            hint = did_you_mean(unknown[0], tasks.names) if unknown else ""
            raise UserError(
                f"weighting.weights should name exactly the tasks {', '.join(tasks.names)}. "
                f"Found {', '.join(given) or 'none'}.{hint} Example: weighting.weights="
                "{" + ",".join(f"{n}:{1 / len(tasks):.2g}" for n in tasks.names) + "}"
            )
        values = [float(given[n]) for n in tasks.names]
        if not all(0 <= v < float("inf") for v in values) or sum(values) == 0:
            raise UserError(f"weighting.weights should be finite, at least 0 and not all 0. Found {given}.")
        self.register_buffer("w", torch.tensor(values))
        self.w: Tensor

    def forward(self, losses: Tensor) -> Tensor:
        return (self.w * losses).sum()
