"""Any function of the Gramian as a weighting: a method is tried before it gets a file of its own."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from mtlcar.errors import UserError
from mtlcar.tasks import TaskSet
from mtlcar.weightings.base import GramianWeighting

WANTED = (
    "Give the dotted path of a callable (gramian [T, T]) -> weights [T] or (gramian, losses [T]) -> weights [T], such "
    "as weighting.function=my_methods.my_weights"
)


class FromCallable(GramianWeighting):
    """w = function(G), or function(G, L) where the function takes two arguments.

    G is float32 [T, T], L the raw losses [T], both on the training device and without a graph; the weights sum to what
    the function makes of them. It works at both levels. A class is built with `arguments` once and its instance
    called; a `torch.nn.Module` among these has its buffers in the checkpoint. Any other state of the function is its
    own affair, and does not survive a resumed run.

    The function is tried once on the identity before training. Weights that are not finite are replaced by 1 each, and
    counted. It is called in every micro-batch of an accumulated step.

    Args:
        function: dotted path of a function, or of a class whose instances are called.
        arguments: keyword arguments bound to the function, or those of the class's constructor.
    """

    def __init__(
        self,
        tasks: TaskSet,
        *,
        function: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        **common: Any,
    ) -> None:
        super().__init__(tasks, **common)
        if function is None:
            raise UserError(f"weighting={self.name} needs weighting.function. {WANTED}.")
        self.path = function
        bound = plain(arguments)
        target = find(function)
        # On the CPU, whatever device the parts are being built on: a check before a sweep builds them on none.
        with torch.device("cpu"):
            self.function, self.takes_losses = ready(function, target, bound)
            if len(tasks) > 1:  # one task alone never comes here
                probe, _ = ready(function, target, bound)  # so that the trial leaves no trace in an instance
                try:
                    with torch.no_grad():
                        found = self._call(probe, torch.eye(len(tasks)), torch.ones(len(tasks)))
                except UserError:
                    raise
                except Exception as error:
                    raise UserError(
                        f"weighting.function={function} failed on a {len(tasks)} x {len(tasks)} identity matrix: "
                        f"{type(error).__name__}: {error}\n{WANTED}."
                    ) from error
                self._check(found)

    def weights(self, gramian: Tensor, losses: Tensor) -> Tensor:
        found = self._call(self.function, gramian, losses)
        self._check(found)
        found = found.to(gramian)
        return self.settle(found, torch.isfinite(found.sum()), torch.ones_like(found))

    def _call(self, function: Callable[..., Any], gramian: Tensor, losses: Tensor) -> Any:
        return function(gramian, losses) if self.takes_losses else function(gramian)

    def _check(self, found: Any) -> None:
        tasks = len(self.tasks)
        shape = list(found.shape) if isinstance(found, Tensor) else f"a {type(found).__name__}"
        if shape != [tasks]:
            raise UserError(
                f"weighting.function={self.path} should return a tensor of one weight a task, [{tasks}]. Found {shape}."
            )


def plain(arguments: Mapping[str, Any] | None) -> dict[str, Any]:
    """`arguments` of a yaml as plain Python."""
    found: Any = OmegaConf.to_container(OmegaConf.create(dict(arguments or {})), resolve=True)
    return {str(k): v for k, v in found.items()}


def find(path: str) -> Any:
    """What a dotted path names.

    Raises:
        UserError: it cannot be imported.
    """
    try:
        return located(path)
    except Exception as error:  # importing runs anything
        first = next(iter(str(error).splitlines()), "")
        raise UserError(
            f"weighting.function={path} cannot be imported: {type(error).__name__}: {first}\n"
            f"{WANTED}; a module of your own has to be on PYTHONPATH (PYTHONPATH=. for the current folder)."
        ) from error


def located(path: str) -> Any:
    """The module, or the attribute of one, at a dotted path; hydra's get_object prints errors on its own."""
    first, *others = path.split(".")
    found: Any = importlib.import_module(first)
    for part in others:
        try:
            found = getattr(found, part)
        except AttributeError:
            if not isinstance(found, ModuleType):
                raise
            found = importlib.import_module(f"{found.__name__}.{part}")
    return found


def ready(path: str, target: Any, arguments: dict[str, Any]) -> tuple[Callable[..., Any], bool]:
    """What to call, and whether it takes the losses too.

    Raises:
        UserError: nothing callable, or arguments that do not fit.
    """
    try:
        call = target(**arguments) if isinstance(target, type) else target
    except Exception as error:
        raise UserError(f"weighting.function={path} cannot be built with weighting.arguments: {error}") from error
    if not callable(call):
        raise UserError(f"weighting.function={path} is a {type(call).__name__}, which cannot be called. {WANTED}.")
    if call is target and arguments:
        call = partial(target, **arguments)
    forward = call.forward if isinstance(call, torch.nn.Module) else call
    try:
        parameters = inspect.signature(forward).parameters
    except (TypeError, ValueError):  # some builtins say nothing about themselves
        return call, False
    positional = [p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in positional if p.default is p.empty]
    unknown = [k for k in arguments if isinstance(call, partial) and k not in parameters]
    if (unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters.values())) or len(required) > 2:
        raise UserError(
            f"weighting.function={path} takes ({', '.join(parameters)}), of which weighting.arguments gives "
            f"{', '.join(arguments) or 'none'}; two at most may be left, the Gramian and the losses."
        )
    return call, len(required) == 2 or (len(positional) > 1 and positional[1].name == "losses")
