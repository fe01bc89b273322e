"""Hard parameter sharing: one trunk, one head a task."""

from collections.abc import Iterator

from torch import Tensor, nn

from mtlcar.architectures.base import Architecture, Shared
from mtlcar.architectures.common import (
    above_trunk,
    as_output,
    freeze_unused_pooling,
    head_inputs,
    make_heads,
    pooling_parameters,
    trainable,
    typed,
)
from mtlcar.backbones.base import BackboneFactory
from mtlcar.heads.base import HeadFactory
from mtlcar.tasks import TaskSet


class Parallel(Architecture):
    """One head a task on the same features f (arXiv 2603.01746; Caruana 1997).

    Linear heads see the same dropout mask, f = Dropout_p(backbone(x)), as in the paper. All tasks share the
    backbone, through the bottleneck: the pooled vector [B, D], or the last map for heads that take it.
    """

    has_bottleneck = True

    def __init__(self, *, tasks: TaskSet, backbone: BackboneFactory, head: HeadFactory, name: str = "parallel") -> None:
        super().__init__()
        self.name = name
        self.tasks = tasks
        self.backbone = backbone()
        heads = make_heads(tasks, head, self.backbone.features)
        freeze_unused_pooling(self.backbone, heads)
        self.heads = nn.ModuleList(heads)

    def forward(self, image: Tensor, targets: dict[str, Tensor] | None = None) -> Shared:
        heads = typed(self.heads)
        bottleneck, inputs = head_inputs(self.backbone, heads, self.backbone(image)[-1])
        outputs = {
            task.name: as_output(task, head.output(head.hidden(x)))
            for task, head, x in zip(self.tasks, heads, inputs, strict=True)
        }
        return Shared(outputs, bottleneck)

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        if len(self.tasks) < 2:
            return
        # The pooling belongs to the heads that take the vector; one alone has it to itself.
        own = sum(head.takes == "vector" for head in typed(self.heads)) < 2
        private = {id(p) for p in pooling_parameters(self.backbone)} if own else set()
        yield from (p for p in trainable([self.backbone]) if id(p) not in private)

    def above_bottleneck(self) -> Iterator[nn.Parameter]:
        return above_trunk(self)
