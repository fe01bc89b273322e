"""Logarithms of losses, for the weightings whose definition has them."""

from torch import Tensor

from mtlcar.weightings.algebra import wide

FLOOR = 1e-8
"""Least loss that has a logarithm here (float32 cross-entropies end near 1e-7; the authors of FAMO and STCH add as much
to every loss). A batch without a label of a task gives that task a loss of exactly 0."""


def log_losses(losses: Tensor) -> tuple[Tensor, Tensor]:
    """losses [T] -> log max(L, FLOOR) [T] in float64, constant below the floor; bool [T]: which are above it."""
    return wide(losses).clamp(min=FLOOR).log(), losses > FLOOR
