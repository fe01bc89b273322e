"""TorchJD's aggregators as weightings."""

import importlib
import logging
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from mtlcar.errors import UserError, did_you_mean
from mtlcar.tasks import TaskSet
from mtlcar.weightings.base import GradientCombiner
from mtlcar.weightings.draws import RandomWeighting
from mtlcar.weightings.from_callable import plain

log = logging.getLogger("mtlcar")


class TorchJD(RandomWeighting, GradientCombiner):
    """d = A(J) with an aggregator A of TorchJD (Quinton & Rey 2024, arXiv 2406.16232), at either level.

    The weights, their sum and the defaults are the aggregator's; UPGrad's sum to 1 where nothing conflicts, so that
    its steps are a T-th of those of `equal`. Weights are logged where the aggregator has some. Aggregators that draw
    random numbers draw this weighting's own, the same in every process and after a resumed run. Those with a state
    (NashMTL, GradVac) begin anew in a resumed run, which is said. Many solve on the CPU, so that a GPU waits.

    A result that is not finite is replaced by the sum of the gradients, and counted.

    Args:
        aggregator: a class of `torchjd.aggregation`.
        arguments: its constructor's; lists of numbers become tensors.
    """

    aggregator: nn.Module

    def __init__(
        self,
        tasks: TaskSet,
        *,
        aggregator: str = "UPGrad",
        arguments: Mapping[str, Any] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(tasks, **common)
        cls = find(aggregator)
        # On the CPU, whatever device the parts are being built on: a check before a sweep builds them on none.
        with torch.device("cpu"):
            bound = {k: torch.tensor(v, dtype=torch.float32) if numbers(v) else v for k, v in plain(arguments).items()}
            if len(tasks) > 1:
                try_out(cls, bound, len(tasks))
            found = build(cls, bound)
        # No submodule: TorchJD's buffers come and go, and a checkpoint that has one cannot be loaded without it.
        object.__setattr__(self, "aggregator", found)
        self._weights: Tensor | None = None
        inner = getattr(found, "weighting", None)
        if isinstance(inner, nn.Module):
            inner.register_forward_hook(self._keep_weights)

    def _keep_weights(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self._weights = output

    def combine(self, jacobian: Tensor, losses: Tensor, features: Tensor | None) -> Tensor:
        self._weights = None
        devices = [jacobian.device] if jacobian.is_cuda else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(self.draw().initial_seed())
            found: Tensor = self.aggregator(jacobian)
        applied, self._weights = self._weights, None
        ok = torch.isfinite(found.sum())
        if applied is not None:
            applied = self._normalized(applied.to(jacobian))
            if self.normalize:
                found = applied @ jacobian
            applied = torch.where(ok, applied, 1.0)
        self.applied = applied
        self.degenerate += ~ok
        return torch.where(ok, found, jacobian.sum(0))

    def set_extra_state(self, state: Tensor) -> None:
        super().set_extra_state(state)
        if self.calls and hasattr(self.aggregator, "reset"):
            log.warning("%s keeps a state that is not in the checkpoint: it begins anew.", self.aggregator)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """TorchJD's tensors (preferences, constant weights) are plain attributes: they follow to the device too."""
        super()._apply(fn, recurse)
        for module in self.aggregator.modules():
            for key, value in vars(module).items():
                if isinstance(value, Tensor):
                    vars(module)[key] = fn(value)
        return self


def numbers(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, int | float) for v in value)


def find(name: str) -> type[nn.Module]:
    """The aggregator class of that name.

    Raises:
        UserError: no TorchJD, or no such class in it.
    """
    try:
        library = importlib.import_module("torchjd.aggregation")
    except ImportError as error:
        raise UserError(
            f"weighting=torchjd needs TorchJD, which cannot be imported ({error}): pip install mtlcar[torchjd]"
        ) from error
    base = library.Aggregator
    bases = ("Aggregator", "WeightedAggregator", "GramianWeightedAggregator")  # these aggregate nothing themselves
    known = {k: v for k, v in vars(library).items() if isinstance(v, type) and issubclass(v, base) and k not in bases}
    if name not in known:
        raise UserError(
            f"weighting.aggregator should be an aggregator of TorchJD. Found {name!r}.{did_you_mean(name, known)}\n"
            f"There are: {', '.join(sorted(known))}."
        )
    return known[name]


def build(cls: type[nn.Module], arguments: dict[str, Any]) -> nn.Module:
    try:
        return cls(**arguments)
    except ImportError as error:  # a solver
        raise UserError(f"weighting.aggregator={cls.__name__}: {error}") from error
    except Exception as error:
        raise UserError(
            f"weighting.aggregator={cls.__name__} cannot be built with weighting.arguments={arguments}: {error}"
        ) from error


def try_out(cls: type[nn.Module], arguments: dict[str, Any], tasks: int) -> None:
    """One call of an instance that is thrown away, so that a missing solver or a wrong number of tasks is found before
    training."""
    aggregator = build(cls, arguments)
    try:
        with torch.no_grad(), torch.random.fork_rng([]):
            found = aggregator(torch.eye(tasks))
    except Exception as error:
        raise UserError(
            f"weighting.aggregator={cls.__name__} with weighting.arguments={arguments} failed on {tasks} tasks: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(found, Tensor) or found.shape != (tasks,):
        raise UserError(f"weighting.aggregator={cls.__name__} gave no gradient: {found!r}")
