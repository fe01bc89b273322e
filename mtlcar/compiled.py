"""torch.compile for a network whose graph is walked once a task."""

import os
from pathlib import Path

import torch

from mtlcar.architectures.base import Architecture
from mtlcar.checks.values import COMPILE_MODES
from mtlcar.errors import UserError
from mtlcar.weightings.base import Weighting

GRAPHS = COMPILE_MODES[:2]


def refuse_graphs(mode: bool | str, architecture: Architecture, weighting: Weighting, accumulated: int) -> None:
    """UserError where what a CUDA graph gives is still needed while it, or one beside it in memory, is played again."""
    if mode not in GRAPHS:
        return
    if weighting.takes_gradients_apart and weighting.level == "parameters":
        reason = f"weighting={weighting.name} at weighting.level=parameters walks it once a task"
    elif len(list(architecture.compiled_parts())) > 1:
        reason = f"architecture={architecture.name} calls several, one after another"
    elif accumulated > 1:
        reason = f"trainer.accumulate_grad_batches={accumulated} adds up what several walks give"
    else:
        return
    raise UserError(
        f"trainer.compile={mode} records the trunk as a CUDA graph, and {reason}. Use trainer.compile=true or "
        f"{COMPILE_MODES[-1]}."
    )


def compile_network(architecture: Architecture, cache: Path, mode: bool | str = True) -> None:
    """Compile the trunk, or the stages of several, in place; parameter names stay. Heads stay eager: the bottleneck
    must lie between two graphs, or the gradient of a loss by it would be none at all.

    Donated buffers are switched off for every weighting: the second backward through one graph would find them used.
    Torch's cache key leaves that setting out, and a cache that another program warmed with it on gives silently wrong
    gradients for the second task; so the cache is a directory of our own.

    Args:
        mode: True, or one of `COMPILE_MODES`.
    """
    torch._functorch.config.donated_buffer = False
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str((cache / "inductor").expanduser().resolve())
    parts = list(architecture.compiled_parts())
    # All stages run the same code, of which torch keeps 8 compiled forms before it gives up without an error: here
    # there is one a stage, for training, for evaluation, and for the size of a last batch.
    dynamo = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, 8 * len(parts))
    dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, 64 * len(parts))
    for part in parts:
        part.compile(**({"mode": mode} if mode in COMPILE_MODES else {}))
