"""What the architectures have in common: from the trunk to what a head takes, and from a head to the outputs."""

from collections.abc import Iterable, Iterator, Sequence
from typing import cast

from torch import Tensor, nn

from mtlcar.architectures.base import Architecture, Shared
from mtlcar.backbones.base import BackboneFactory, StagedBackbone
from mtlcar.errors import UserError
from mtlcar.heads.base import Head, HeadFactory
from mtlcar.options import whole
from mtlcar.tasks import Task, TaskSet


def represent(backbone: StagedBackbone, head: Head, last: Tensor) -> Tensor:
    """The last map [B, D, H, W] -> what `head` takes, before any dropout: the pooled vector [B, D], or the map."""
    return last if head.takes == "map" else backbone.pool(last)


def head_inputs(backbone: StagedBackbone, heads: Sequence[Head], last: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The last map [B, D, H, W] of a trunk that all tasks share -> the bottleneck, and what each head takes with its
    dropout done.

    Heads with the same dropout see the same mask, as in arXiv 2603.01746. The bottleneck is the pooled vector, or the
    map where any head takes it.
    """
    vector = backbone.pool(last) if any(h.takes == "vector" for h in heads) else None
    dropped: dict[tuple[str, float], Tensor] = {}
    inputs = []
    for head in heads:
        key = (head.takes, float(getattr(head.input_dropout, "p", 0.0)))
        if key not in dropped:
            x = last if head.takes == "map" else vector
            assert x is not None
            dropped[key] = head.input_dropout(x)
        inputs.append(dropped[key])
    bottleneck = last if vector is None or any(h.takes == "map" for h in heads) else vector
    return bottleneck, inputs


def freeze_unused_pooling(backbone: StagedBackbone, heads: Sequence[Head]) -> None:
    """Heads that take the map leave the layers of the pooling (a final norm, say) without a gradient: freeze those,
    so that every trainable parameter gets one."""
    if any(head.takes == "vector" for head in heads):
        return
    for parameter in pooling_parameters(backbone):
        parameter.requires_grad_(False)


def pooling_parameters(backbone: StagedBackbone) -> list[nn.Parameter]:
    """Those of the layers between the last stage's map and the pooled vector."""
    used = {id(p) for p in backbone.stages.parameters()}
    return [p for p in backbone.parameters() if id(p) not in used]


def typed(heads: nn.ModuleList) -> Sequence[Head]:
    """The same heads, for the type checker, which knows a ModuleList's members only as modules."""
    return cast(Sequence[Head], heads)


def trunks_of(trunks: nn.ModuleList) -> Sequence[StagedBackbone]:
    """The same trunks, for the type checker."""
    return cast(Sequence[StagedBackbone], trunks)


def make_heads(tasks: TaskSet, head: HeadFactory, features: int) -> list[Head]:
    """A head a task, on `features` channels."""
    return [head(task, features) for task in tasks]


def copies(backbone: BackboneFactory, n: int, share_until: int, *, own: int = 1) -> list[StagedBackbone]:
    """n trunks of which all but the first lack the first `share_until` stages: those of the first serve all.

    Args:
        own: how many stages each must keep for itself.

    Raises:
        UserError: `share_until` outside 0..K - own.
    """
    first = backbone()
    most = f" (of the trunk's {first.depth} stages, {own} must stay apart)"
    whole("architecture.share_until", share_until, least=0, most=first.depth - own, because=most)
    trunks = [first, *(backbone() for _ in range(n - 1))]
    for trunk in trunks[1:]:
        trunk.drop_first(share_until)
    return trunks


def as_output(task: Task, raw: Tensor) -> Tensor:
    """A head's [B, out_features] -> logits [B, classes] or value [B]."""
    return raw if task.kind == "classification" else raw.squeeze(-1)


def trainable(modules: Iterable[nn.Module]) -> Iterator[nn.Parameter]:
    """The parameters of `modules` that are not frozen."""
    return (p for module in modules for p in module.parameters() if p.requires_grad)


def above_trunk(architecture: Architecture) -> Iterator[nn.Parameter]:
    """`above_bottleneck` of an architecture whose trunk gives the bottleneck; see `head_inputs`."""
    backbone = architecture.backbone
    below = {id(p) for p in backbone.parameters()}
    if any(head.takes == "map" for head in typed(architecture.heads)):
        below -= {id(p) for p in pooling_parameters(backbone)}
    return (p for p in architecture.parameters() if p.requires_grad and id(p) not in below)


class TaskRepresentations(Architecture):
    """An architecture in which every task's head has its own representation and no tensor is a bottleneck."""

    def read(self, representations: Sequence[Tensor], extra_loss: Tensor | None = None) -> Shared:
        """What each head takes, [B, ...] a task, -> the outputs, each head with its own dropout."""
        outputs = {
            task.name: as_output(task, head(x))
            for task, head, x in zip(self.tasks, typed(self.heads), representations, strict=True)
        }
        alike = tuple(representations) if self.has_representations else ()
        return Shared(outputs, extra_loss=extra_loss, representations=alike)

    def set_heads(self, heads: Sequence[Head]) -> None:
        self.heads = nn.ModuleList(heads)
        self.has_representations = len({head.takes for head in heads}) == 1

    def above_bottleneck(self) -> Iterator[nn.Parameter]:
        return trainable([self.heads])


def several(name: str, tasks: TaskSet) -> None:
    """UserError for one task alone."""
    if len(tasks) < 2:
        raise UserError(
            f"architecture={name} needs at least two tasks; here is {tasks.names[0]} alone. "
            "Use architecture=single, or another label_transform or data.levels."
        )
