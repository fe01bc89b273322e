"""Weights from a local file, in the names of the library the network comes from."""

import pickle
from collections.abc import Mapping
from functools import singledispatch
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mtlcar.errors import UserError
from mtlcar.runs.torch_files import UnreadableError, read_torch, tensors


def read_weights(path: Path) -> dict[str, Tensor]:
    """A safetensors file, or a `state_dict` saved by torch (also one under the key `state_dict` or `model`).

    Raises:
        UserError: the file is missing, damaged, or holds anything but tensors.
    """
    where = f"backbone.weights={path}"
    if not path.is_file():
        raise UserError(f"{where}: no such file. Give a safetensors or state_dict file, or leave it null.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = read_torch(path)
    except UnreadableError as error:
        pickled = isinstance(error.__cause__, pickle.UnpicklingError)
        raise UserError(
            f"{where} {error}. "
            + (
                "It is no plain state_dict: it holds objects other than tensors (or is damaged), which could run code "
                "when loaded. Save `model.state_dict()` alone, or use safetensors."
                if pickled
                else "It is damaged or neither safetensors nor a torch file; download or save it again."
            )
        ) from error
    except (SafetensorError, MemoryError, OSError, ValueError, OverflowError) as error:
        raise UserError(
            f"{where} cannot be read ({str(error).splitlines()[0] if str(error) else type(error).__name__}). "
            "It is damaged or neither safetensors nor a torch file; download or save it again."
        ) from error
    if isinstance(state, Mapping):
        for key in ("state_dict", "model"):
            if isinstance(state.get(key), Mapping):
                state = state[key]
                break
    try:
        return tensors(state)
    except UnreadableError as error:
        raise UserError(f"{where} {error}. Save `model.state_dict()` alone, or use safetensors.") from error


@singledispatch
def adapt_state(network: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` in the network's own names and sizes; a family registers what it has to repair."""
    return state


def load_weights(network: nn.Module, trunk: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Loads `state` into `network`, of whose tensors `trunk` is made.

    Keys of the network's own classifier (what `trunk` lacks) are left out. Any other key that is missing,
    unexpected or of another shape is an error: a half-loaded network would train and look merely worse.
    """
    own = network.state_dict(keep_vars=True)
    kept = {id(t) for t in trunk.state_dict(keep_vars=True).values()}
    classifier = {name.rsplit(".", 1)[0] + "." for name, tensor in own.items() if id(tensor) not in kept}
    state = adapt_state(network, dict(state))
    wanted = {k: t for k, t in own.items() if id(t) in kept}
    given = {k: t for k, t in state.items() if k in wanted or not k.startswith(tuple(classifier))}
    problems = [
        # Files older than BatchNorm's counter lack it, and nothing here reads it.
        *(f"missing: {k}" for k in wanted if k not in given and not k.endswith("num_batches_tracked")),
        *(f"unexpected: {k}" for k in given if k not in wanted),
        *(
            f"shape: {k} is {list(t.shape)}, the network has {list(wanted[k].shape)}"
            for k, t in given.items()
            if k in wanted and t.shape != wanted[k].shape
        ),
    ]
    if problems:
        more = f"\n  ... and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise UserError(
            f"{source} does not fit {type(network).__name__}: it should be weights of this very backbone, in its "
            f"library's names ({len(wanted)} tensors without the classifier; the file has {len(state)}).\n  "
            + "\n  ".join(problems[:5])
            + more
        )
    network.load_state_dict(given, strict=False)
