"""Checkpoints as files: which one to go on from, and weights to predict with."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mtlcar.errors import UserError
from mtlcar.runs.config_differences import config_in, differences, network_config
from mtlcar.runs.torch_files import UnreadableError, read_torch, tensors

NEWEST_FIRST = ("last.ckpt", "previous.ckpt", "best.ckpt")
OWN = {"finished": bool, "rows": int, "random": list, "step": int, "run": str}
"""What the state of `Checkpoints` has to hold for a run to go on from it."""


@dataclass(frozen=True)
class ResumePoint:
    """A whole checkpoint to go on from.

    Attributes:
        step, epoch: optimizer steps done; the epoch they are in, from 0.
        callbacks: callback -> its state.
    """

    path: Path
    step: int
    epoch: int
    callbacks: dict[str, Any]

    @property
    def own(self) -> dict[str, Any]:
        """The state of `Checkpoints`."""
        state: dict[str, Any] = self.callbacks["Checkpoints"]
        return state

    @property
    def finished(self) -> bool:
        """Whether nothing is left to train."""
        return bool(self.own["finished"])


def resume_point(folder: Path, *, repair: bool = True) -> tuple[ResumePoint | None, list[str]]:
    """The newest good checkpoint of a run, and a sentence for each damaged one that was passed over.

    One counts only if the best network of its time is there as well: in `best.ckpt`, or because it is that itself.

    Args:
        repair: make it `best.ckpt` again then, and rename what was passed over to `.damaged`.

    Raises:
        UserError: a file cannot be read now, which says nothing about its content.
    """
    said: list[str] = []
    best = read_point(folder / "best.ckpt")[0]
    for name in NEWEST_FIRST:
        path = folder / name
        if not path.exists():
            continue
        point, fault = read_point(path)
        lacks_best = point is not None and best is None and point.own["step"] >= 0
        if point is not None and lacks_best and point.step != point.own["step"]:
            point, fault = None, "needs best.ckpt, which is damaged or gone"
        if point is None:
            said.append(f"{name} {fault}")
            if repair:  # out of the way of the names that it would be given next
                path.replace(path.with_suffix(".damaged"))
            continue
        if lacks_best and repair:
            second_name(path, folder / "best.ckpt")
        return point, said
    return None, said


def read_point(path: Path) -> tuple[ResumePoint | None, str]:
    """A checkpoint's bookkeeping, if all of the file is as it was written; else what is wrong with it."""
    if not path.exists():
        return None, "is gone"
    try:
        state = read_torch(path, whole=True)
        callbacks = state["callbacks"]
        own = callbacks["Checkpoints"]
        if not set(OWN) <= set(own):
            return None, "is of an earlier version, which could not go on"
        if not all(isinstance(own[key], kind) for key, kind in OWN.items()) or min(own["rows"], own["step"] + 1) < 0:
            return None, "is damaged"
        return ResumePoint(path, int(state["global_step"]), int(state["epoch"]), callbacks), ""
    except UnreadableError as error:
        return None, str(error)
    except (OSError, MemoryError) as error:
        raise UserError(
            f"{path} cannot be read now ({error}). Nothing was changed; give the same command again."
        ) from error
    except Exception as error:  # any containers at all
        return None, f"cannot be read ({type(error).__name__})"


def second_name(file: Path, name: Path) -> None:
    """`name` becomes the same file, or a copy where the file system has no hard links; whole at any moment."""
    temporary = name.with_name(f".{name.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(file, temporary)
    except OSError:
        shutil.copyfile(file, temporary)
    temporary.replace(name)


def load_weights(module: torch.nn.Module, path: Path, cfg: Any = None) -> None:
    """The module's state from a checkpoint of plain tensors, to predict with: how tasks were weighted in training says
    nothing about that and is left out.

    Args:
        cfg: the configuration that the module was built of, to say in what another one differs.

    Raises:
        UserError: no such file, not a checkpoint of plain tensors, or one of another configuration.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint. The run may not have finished its first epoch.")
    try:
        content = read_torch(path)
        state = tensors(content["state_dict"])
    except UnreadableError as error:
        raise UserError(f"{path} {error}: no checkpoint of plain tensors. Nothing in it was run.") from error
    except Exception as error:
        raise UserError(
            f"{path}: not a checkpoint of plain tensors ({type(error).__name__}). Nothing in it was run."
        ) from error
    differing = differences(config_in(content), network_config(cfg)) if cfg is not None else []
    own, state = ({k: v for k, v in d.items() if not k.startswith("weighting.")} for d in (module.state_dict(), state))
    faults = {
        "missing from it": [k for k in own if k not in state],
        "not of this network": [k for k in state if k not in own],
        "of another shape": [k for k in state if k in own and state[k].shape != own[k].shape],
    }
    if differing or any(faults.values()):
        keys = "".join(f"\n  {line}" for line in differing)
        found = "; ".join(f"{len(v)} {what} (first: {', '.join(v[:3])})" for what, v in faults.items() if v)
        said = f" Parameters: {found}." if found else ""
        raise UserError(
            f"{path} is a checkpoint of another configuration than {path.parent.parent / 'config.yaml'}."
            f"{keys or said}\nPut the run's own checkpoint back, or train it again."
        )
    module.load_state_dict(state, strict=False)
