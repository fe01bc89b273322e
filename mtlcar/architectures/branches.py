"""What a tree of stages is made of: a branch's choice of its parent, and trunks without some of their stages."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from mtlcar.backbones.base import StagedBackbone


class Choice(nn.Module):
    """Which of P parents a branch takes its input from; `logits` [P] start at 0: all equally likely."""

    def __init__(self, parents: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(parents))

    def weights(self, temperature: float | None) -> Tensor:
        """float32 [P] for training. Warm-up (None): 1/P each. Otherwise one drawn parent has 1 and the others 0, with
        the gradient of softmax((logits + Gumbel noise) / temperature) (straight-through)."""
        logits = self.logits.float()
        if temperature is None:
            return 0.0 * logits + 1 / len(logits)  # DDP wants a gradient of every parameter in every step: here 0
        noise = -torch.empty_like(logits).exponential_().log()
        soft = ((logits + noise) / temperature).softmax(0)
        hard = torch.zeros_like(soft).scatter(0, soft.argmax(0, keepdim=True), 1.0)
        return hard + (soft - soft.detach())  # in this order exactly 0 and 1

    def forward(self, maps: Sequence[Tensor], temperature: float | None) -> Tensor:
        """The parents' P maps [B, C, H, W] -> their weighted sum."""
        first, *others = (w * x for w, x in zip(self.weights(temperature).unbind(), maps, strict=True))
        return sum(others, first)

    def pick(self, maps: Sequence[Tensor]) -> Tensor:
        """The map of the likeliest parent, without asking on the host which it is."""
        best = self.logits.argmax()
        picked = maps[0]
        for i, x in enumerate(maps[1:], 1):
            picked = torch.where(best == i, x, picked)
        return picked


def leave_out(trunk: StagedBackbone, stages: Iterable[int]) -> None:
    """Without the parameters of these stages; the others keep their numbers."""
    for k in stages:
        trunk.stages[k - trunk.first_stage] = nn.Identity()
    trunk.drop_first(0)  # no further stage, but the trunk's list of its frozen parts is made anew


def leave_out_pooling(trunk: StagedBackbone) -> None:
    """Of a trunk that no head reads."""
    for name, child in list(trunk.named_children()):
        if child is not trunk.stages:
            setattr(trunk, name, nn.Identity())
