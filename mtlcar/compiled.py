"""torch.compile for a network whose graph is walked once a task."""

import os
from pathlib import Path

import torch

from mtlcar.architectures.base import Architecture


def compile_network(architecture: Architecture, cache: Path) -> None:
    """Compile the trunk, or the stages of several, in place; parameter names stay. Heads stay eager: the bottleneck
    must lie between two graphs, or the gradient of a loss by it would be none at all.

    Donated buffers are switched off for every weighting: the second backward through one graph would find them used.
    Torch's cache key leaves that setting out, and a cache that another program warmed with it on gives silently wrong
    gradients for the second task; so the cache is a directory of our own.
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
        part.compile()
