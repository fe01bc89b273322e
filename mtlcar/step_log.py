"""What the weighting did, as means over an epoch, added up on the device."""

from collections.abc import Callable
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from mtlcar.exact import exact
from mtlcar.weightings.base import Applied


class StepMeans:
    """Means over an epoch of each task's loss, weight and gradient norm, and of each pair's cosine and conflicts.

    | name | what |
    |---|---|
    | `loss` | sum of the raw losses |
    | `<task>/loss`, `<task>/weight` | raw loss; what multiplied the task's gradient |
    | `<task>/gradient_norm` | of the gradients that the weighting compared (unscaled) |
    | `<a>-<b>/cosine` | of the angle between two tasks' gradients |
    | `<a>-<b>/conflict` | share of the steps in which it is negative |
    | `extra_loss` | what an architecture, and loss.matching, adds to the objective |

    Every micro-batch counts once. Values that are not finite (a step that overflowed in half precision) are left out
    of their mean. No module: DDP copies the first process's buffers over the others'.
    """

    def __init__(self, tasks: tuple[str, ...]) -> None:
        self.tasks = tasks
        self.pairs = list(combinations(range(len(tasks)), 2))
        self.names: list[str] = []
        self.sums: Tensor | None = None

    def add(self, losses: Tensor, applied: Applied, extra: Tensor | None = None) -> None:
        """losses [T], detached, what was applied to them, and the architecture's regulariser; waits for nothing."""
        names = ["loss", *(f"{t}/loss" for t in self.tasks)]
        values = [losses.sum().view(1), losses]
        if extra is not None:
            names.append("extra_loss")
            values.append(extra.detach().view(1))
        if applied.weights is not None:
            names += [f"{t}/weight" for t in self.tasks]
            values.append(applied.weights)
        if applied.gramian is not None:
            norms = applied.gramian.diagonal().sqrt()
            names += [f"{t}/gradient_norm" for t in self.tasks]
            values.append(norms)
        if applied.gramian is not None and not applied.apart:
            cosines = applied.gramian / (norms[:, None] * norms)
            upper = torch.stack([cosines[i, j] for i, j in self.pairs]).clamp(-1, 1)
            between = [f"{self.tasks[i]}-{self.tasks[j]}" for i, j in self.pairs]
            names += [f"{p}/cosine" for p in between] + [f"{p}/conflict" for p in between]
            values += [upper, torch.where(upper.isfinite(), (upper < 0).float(), upper)]
        now = torch.cat([v.float() for v in values])
        seen = now.isfinite()
        now = torch.stack([torch.where(seen, now, 0.0), seen.float()])
        if self.sums is None or names != self.names:
            self.names = names
            self.sums = torch.zeros_like(now, dtype=exact(now.device))
        self.sums += now

    def state_dict(self, add_up: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """The sums of all processes so far in this epoch."""
        return {} if self.sums is None else {"names": self.names, "sums": add_up(self.sums.clone()).cpu()}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on with an epoch. For one process only: the sums are those of all."""
        if state:
            self.names, self.sums = list(state["names"]), state["sums"].to(device, exact(device))

    def take(self, add_up: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """The means, and a new beginning. `add_up` sums a tensor over the processes."""
        if self.sums is None:
            return {}
        sums, counts = add_up(self.sums)
        self.sums = None
        return dict(zip(self.names, (sums / counts).unbind(), strict=True))
