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
    for part in architecture.compiled_parts():
        part.compile()
