"""Random numbers of a weighting: its own, so that they change nothing else, and a function of seed and step."""

import hashlib
from typing import Any

import torch
from torch import Tensor

from mtlcar.weightings.base import Weighting


class RandomWeighting(Weighting):
    """A weighting that draws random numbers; base of methods that do, next to their kind.

    Draws come from a CPU generator seeded by (the run's seed, a counter): every process of a DDP run makes the same
    ones, a GPU makes those of a CPU, and the checkpoint needs two integers. `draw()` gives the generator of this
    call; the counter moves on with the optimiser step, so that micro-batches of one step share their draws.
    """

    seed: int
    calls: int = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seed = torch.initial_seed() % 2**63  # of the run, which seeds everything before parts are built

    def draw(self) -> torch.Generator:
        digest = hashlib.blake2b(f"{self.name} {self.seed} {self.calls}".encode(), digest_size=7).digest()
        if self.advances:
            self.calls += 1
        return torch.Generator().manual_seed(int.from_bytes(digest))

    def get_extra_state(self) -> Tensor:
        """int64 [2], on the CPU: a checkpoint holds plain tensors."""
        return torch.tensor([self.seed, self.calls], dtype=torch.int64, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        self.seed, self.calls = state.tolist()
