"""Hard parameter sharing: one trunk, one head a task."""

from collections.abc import Iterator

from torch import Tensor, nn

from mtlcar.architectures.base import Architecture, Shared
from mtlcar.architectures.common import as_output, freeze_unused_pooling, represent, trainable, typed
from mtlcar.backbones.base import StagedBackbone
from mtlcar.heads.base import HeadFactory
from mtlcar.tasks import TaskSet


class Parallel(Architecture):
    """One head a task on the same features f (arXiv 2603.01746; Caruana 1997).

    Linear heads see the same dropout mask, f = Dropout_p(backbone(x)), as in the paper. All tasks share the
    backbone, through the bottleneck: the pooled vector [B, D], or the last map for heads that take it.
    """

    has_bottleneck = True

    def __init__(self, *, tasks: TaskSet, backbone: StagedBackbone, head: HeadFactory, name: str = "parallel") -> None:
        super().__init__()
        self.name = name
        self.tasks = tasks
        self.backbone = backbone
        # A list and not a dict: ModuleDict refuses names that nn.Module has itself, `type` among them.
        heads = [head(backbone.features, task.outputs) for task in tasks]
        freeze_unused_pooling(backbone, heads)
        self.heads = nn.ModuleList(heads)

    def forward(self, image: Tensor, targets: dict[str, Tensor] | None = None) -> Shared:
        heads = typed(self.heads)
        bottleneck = represent(self.backbone, heads[0], image)
        x = heads[0].input_dropout(bottleneck)
        outputs = {
            task.name: as_output(task, head.output(head.hidden(x)))
            for task, head in zip(self.tasks, heads, strict=True)
        }
        return Shared(outputs, bottleneck)

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        return trainable([self.backbone] if len(self.tasks) > 1 else [])
