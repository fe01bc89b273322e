"""Cutting a library's network into consecutive stages, without changing what it computes."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import singledispatch
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from mtlcar.backbones.base import StagedBackbone
from mtlcar.errors import UserError
from mtlcar.options import whole


class Stage(nn.Sequential):
    """Consecutive blocks: map [B, C, H, W] -> map, or with `before_last` -> (u, map), u the map before the last block.

    The last block is the last part with a convolution or a linear layer, and u what goes into it: in a stage of one
    block that is the stage's input. Norms and activations after it belong to it.

    With `checkpointing` the activations inside are recomputed in the backward pass. Recomputing leaves
    BatchNorm's running statistics alone: they move once a step, however many backward passes it has.
    """

    checkpointing: bool = False

    def __init__(self, *blocks: Any) -> None:
        super().__init__(*blocks)
        heavy = [i for i, block in enumerate(self) if any(p.ndim > 1 for p in block.parameters())]
        self.last = heavy[-1] if heavy else 0

    def forward(self, x: Tensor, before_last: bool = False) -> Any:
        run = self.run_split if before_last else self.run
        if self.checkpointing and self.training and torch.is_grad_enabled():
            if torch.compiler.is_compiling():  # the compiler itself writes each buffer once, and refuses contexts
                return checkpoint(run, x, use_reentrant=False)
            return checkpoint(run, x, use_reentrant=False, context_fn=self._contexts)
        return run(x)

    def run(self, x: Tensor) -> Tensor:
        return super().forward(x)

    def run_split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The same computation -> (u, map)."""
        blocks = list(self)
        last = blocks[self.last]
        for block in blocks[: self.last]:
            x = block(x)
        u, x = last.run_split(x) if isinstance(last, Stage) else (x, last(x))
        for block in blocks[self.last + 1 :]:
            x = block(x)
        return u, x

    def _contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _StatisticsKept([m for m in self.modules() if isinstance(m, _BatchNorm)])


class _StatisticsKept(AbstractContextManager[None]):
    """Inside, BatchNorm normalises by the batch as always but its statistics stay as they are.

    A class, because several tasks' backward passes enter the same one again.
    """

    def __init__(self, norms: Sequence[_BatchNorm]) -> None:
        self.norms = norms

    def __enter__(self) -> None:
        # Momentum 0 and not `track_running_stats = False`: that would change which tensors autograd saves, and
        # checkpoint compares them with those of the first pass.
        self.momenta = [n.momentum for n in self.norms]
        self.counts = [None if n.num_batches_tracked is None else n.num_batches_tracked.clone() for n in self.norms]
        for norm in self.norms:
            norm.momentum = 0.0

    def __exit__(self, *_: object) -> None:
        for norm, momentum, count in zip(self.norms, self.momenta, self.counts, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None and count is not None:
                norm.num_batches_tracked.copy_(count)


def with_last_input(stage: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """One pass through `stage` -> (u, map): u the map before its last block (see `Stage`), or its input where `stage`
    does not tell its blocks apart."""
    if not isinstance(stage, Stage):
        return x, stage(x)
    u, y = stage(x, before_last=True)
    return u, y


class BlocksOnLastChannels(nn.Module):
    """Runs a block written for [B, H, W, C] on maps [B, C, H, W]; both permutations are views."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.block(x.permute(0, 2, 3, 1))
        return y.permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Pieces:
    """A network in pieces: `stages`, the `channels` of each stage's map, and `pooling`, the layers between the last
    map [B, C, H, W] and the last linear layer (-> [B, C]), final norms included. What is in none is the classifier.
    `class_row`: see `StagedBackbone`."""

    stages: Sequence[Stage]
    channels: Sequence[int]
    pooling: nn.Module
    class_row: bool = False


@singledispatch
def cut(network: nn.Module) -> Pieces:
    """The pieces of a network, sharing its modules. Each family registers its own way."""
    raise UserError(
        f"No way to cut a {type(network).__name__} into stages is known. Known are: "
        f"{', '.join(sorted({t.__name__ for t in cut.registry if t is not object}))}."
    )


def group_by_stride(units: Sequence[nn.Module], groups: int = 4) -> list[list[nn.Module]]:
    """Blocks in order -> `groups` lists; a unit that halves the map opens a new list, the first of them are merged."""
    found: list[list[nn.Module]] = [[]]
    for unit in units:
        if found[-1] and any(isinstance(m, nn.Conv2d) and m.stride[0] == 2 for m in unit.modules()):
            found.append([])
        found[-1].append(unit)
    merged = [u for group in found[: len(found) - groups + 1] for u in group]
    return [merged, *found[len(found) - groups + 1 :]]


class CutBackbone(StagedBackbone):
    """The stages and pooling of `pieces` as one trunk.

    Args:
        mean, std: input normalisation per RGB channel, 0..1 scale.
        frozen_stages: the first k stages do not train and their BatchNorm statistics stand still; k = all of them
            freezes the pooling's layers too.
        checkpointing: recompute activations stage by stage in the backward pass (less memory, about a third slower).
    """

    def __init__(
        self,
        pieces: Pieces,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        frozen_stages: int = 0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(pieces.stages)
        self.channels = tuple(int(c) for c in pieces.channels)
        self.pooling = pieces.pooling
        self.class_row = pieces.class_row
        self.mean = _per_channel("mean", mean)
        self.std = _per_channel("std", std)
        if min(self.std) <= 0:
            raise UserError(f"backbone.std should be positive. Found {list(self.std)}.")
        for stage in pieces.stages:
            stage.checkpointing = checkpointing
        whole("backbone.frozen_stages", frozen_stages, least=0, most=len(self.stages))
        self.frozen: tuple[nn.Module, ...] = tuple(self.stages)[:frozen_stages]
        if frozen_stages == len(self.stages):
            self.frozen += (self.pooling,)
        for part in self.frozen:
            part.requires_grad_(False)
        self.train(self.training)

    def pool(self, feature_map: Tensor) -> Tensor:
        return self.pooling(feature_map)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for part in self.frozen:
            part.eval()
        return self

    def drop_first(self, n: int) -> None:
        super().drop_first(n)
        own = {id(m) for m in self.modules()}
        self.frozen = tuple(part for part in self.frozen if id(part) in own)

    def param_groups(self) -> list[list[nn.Parameter]]:
        """One list a stage, input side first; the pooling's layers go with the last stage."""
        groups = super().param_groups()
        return [*groups[:-1], [*groups[-1], *self.pooling.parameters()]]


def _per_channel(key: str, values: Sequence[float]) -> tuple[float, float, float]:
    numbers = [float(v) for v in values]
    if len(numbers) != 3:
        raise UserError(f"backbone.{key} should be three numbers, one per RGB channel. Found {numbers}.")
    return numbers[0], numbers[1], numbers[2]
