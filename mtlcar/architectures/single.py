"""One task alone: the baseline that sharing is measured against."""

from collections.abc import Iterator

from torch import Tensor, nn

from mtlcar.architectures.base import Architecture, Shared
from mtlcar.architectures.common import above_trunk, as_output, freeze_unused_pooling, make_heads, represent, typed
from mtlcar.backbones.base import BackboneFactory
from mtlcar.heads.base import HeadFactory
from mtlcar.tasks import TaskSet


class Single(Architecture):
    """One head on one trunk (arXiv 2603.01746). Coarser tasks are implied by the hierarchy, not trained.

    Nothing is shared and nothing balanced: under any weighting its one task has weight 1, so that a multirun can cross
    architectures with weightings.

    Args:
        task: the task to train; None: the finest classification (`TaskSet.finest`).
    """

    def __init__(
        self,
        *,
        tasks: TaskSet,
        backbone: BackboneFactory,
        head: HeadFactory,
        name: str = "single",
        task: str | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        chosen = tasks.finest() if task is None else tasks[task]
        self.tasks = tasks.subset([chosen.name])
        self.backbone = backbone()
        heads = make_heads(self.tasks, head, self.backbone.features)
        freeze_unused_pooling(self.backbone, heads)
        self.heads = nn.ModuleList(heads)

    def forward(self, image: Tensor, targets: dict[str, Tensor] | None = None) -> Shared:
        task, head = self.tasks[0], typed(self.heads)[0]
        bottleneck = represent(self.backbone, head, self.backbone(image)[-1])
        return Shared({task.name: as_output(task, head(bottleneck))}, bottleneck)

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        return iter(())

    def above_bottleneck(self) -> Iterator[nn.Parameter]:
        return above_trunk(self)
