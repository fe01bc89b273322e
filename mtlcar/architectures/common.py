"""What the architectures have in common: from the trunk to what a head takes, and from a head to the outputs."""

from collections.abc import Iterable, Iterator, Sequence
from typing import cast

from torch import Tensor, nn

from mtlcar.backbones.base import StagedBackbone
from mtlcar.heads.base import Head
from mtlcar.tasks import Task


def represent(backbone: StagedBackbone, head: Head, image: Tensor) -> Tensor:
    """Image [B, 3, H, W] -> what `head` takes, before any dropout: the vector [B, D] or the last map [B, D, H, W]."""
    last = backbone(image)[-1]
    return last if head.takes == "map" else backbone.pool(last)


def freeze_unused_pooling(backbone: StagedBackbone, heads: Sequence[Head]) -> None:
    """Heads that take the map leave the layers of the pooling (a final norm, say) without a gradient: freeze those,
    so that every trainable parameter gets one."""
    if any(head.takes == "vector" for head in heads):
        return
    used = {id(p) for p in backbone.stages.parameters()}
    for parameter in backbone.parameters():
        if id(parameter) not in used:
            parameter.requires_grad_(False)


def typed(heads: nn.ModuleList) -> Sequence[Head]:
    """The same heads, for the type checker, which knows a ModuleList's members only as modules."""
    return cast(Sequence[Head], heads)


def as_output(task: Task, raw: Tensor) -> Tensor:
    """A head's [B, out_features] -> logits [B, classes] or value [B]."""
    return raw if task.kind == "classification" else raw.squeeze(-1)


def trainable(modules: Iterable[nn.Module]) -> Iterator[nn.Parameter]:
    """The parameters of `modules` that are not frozen."""
    return (p for module in modules for p in module.parameters() if p.requires_grad)
