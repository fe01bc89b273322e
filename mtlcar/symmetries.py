"""Test-time augmentation: what a network says of an image, averaged over symmetries of the square."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mtlcar.tasks import TaskSet


class Symmetry(NamedTuple):
    """Transpose, then mirror up and down, then left and right, each or not: together the eight symmetries of the square
    (the dihedral group D4), the rotation by 90 degrees counter-clockwise as (True, True, False).

    Attributes:
        transpose: swaps rows and columns.
        up_down: reverses the rows.
        left_right: reverses the columns.
    """

    transpose: bool
    up_down: bool
    left_right: bool

    def __call__(self, image: Tensor) -> Tensor:
        """[..., H, W] -> the image so turned, [..., H, W] or [..., W, H]."""
        if self.transpose:
            image = image.transpose(-2, -1)
        axes = [axis for axis, mirrored in ((-2, self.up_down), (-1, self.left_right)) if mirrored]
        return image.flip(axes) if axes else image


FLIPS = tuple(Symmetry(False, ud, lr) for ud in (False, True) for lr in (False, True))
SYMMETRIES: dict[str, tuple[Symmetry, ...]] = {
    "none": FLIPS[:1],
    "flips": FLIPS,
    "dihedral": (*FLIPS, *(f._replace(transpose=True) for f in FLIPS)),
}
"""By the values of `test_time_augmentation`: groups, the identity first."""


def averaged(
    network: Callable[[Tensor], dict[str, Tensor]], image: Tensor, tasks: TaskSet, among: str
) -> dict[str, Tensor]:
    """What `network` says of `image` in each of its positions, averaged; one position is in memory at a time.

    Args:
        network: image [B, 3, S, S] -> {task: logits [B, classes] or standardised value [B]}.
        among: a key of `SYMMETRIES`.

    With FastCAR the value is a position on the axis, whose mean over doubtful positions has its flaw once more: between
    the first class and the third lies the second.

    Returns:
        {task: the log of the mean class probabilities [B, classes], or the mean value [B]}, float32: softmax gives the
        mean probabilities, and losses are those of the averaged network. For `none` what `network` gives.
    """
    first, *others = SYMMETRIES[among]
    if not others:
        return network(first(image))
    sums = _summable(network(first(image)), tasks)
    for symmetry in others:
        for name, term in _summable(network(symmetry(image)), tasks).items():
            sums[name] = torch.logaddexp(sums[name], term) if tasks[name].classes else sums[name] + term
    n = len(others) + 1
    return {name: x - math.log(n) if tasks[name].classes else x / n for name, x in sums.items()}


def _summable(outputs: dict[str, Tensor], tasks: TaskSet) -> dict[str, Tensor]:
    """Log-probabilities and values, float32. Logs, because a probability that underflows would make a loss infinite."""
    wide = {name: x.to(torch.promote_types(x.dtype, torch.float32)) for name, x in outputs.items()}
    return {name: x.log_softmax(1) if tasks[name].classes else x for name, x in wide.items()}
