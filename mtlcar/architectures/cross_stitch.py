"""Cross-stitch: a trunk per task, and after each stage every trunk goes on with a mixture of all maps."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from mtlcar.architectures.base import Shared
from mtlcar.architectures.common import (
    TaskRepresentations,
    copies,
    freeze_unused_pooling,
    make_heads,
    represent,
    several,
    trainable,
    trunks_of,
    typed,
)
from mtlcar.backbones.base import BackboneFactory, StagedBackbone
from mtlcar.heads.base import HeadFactory
from mtlcar.options import flag, number
from mtlcar.tasks import TaskSet


class CrossStitch(TaskRepresentations):
    """After each stage, x_t <- sum_u a_tu x_u for every task t, x_u [B, C, H, W] the map of task u's trunk (Misra,
    Shrivastava, Gupta, Hebert 2016, arXiv 1604.03539). Task t's head reads the last x_t, which its own trunk pools.

    a is a number a channel, or one for the whole map; it starts as a_tt = own, a_tu = (1 - own) / (T - 1). The paper
    has two tasks, starts at 0.9 and 0.1, and lets each activation map have its own unit after AlexNet's pooling
    layers; here the units stand after each stage. It starts from two networks trained on one task each and gives a
    learning rates up to 1000 times that of the trunks, under SGD: `optimizer.head_lr_factor` raises those of all that
    is outside the trunks. Weight decay leaves a alone: it scales maps, as a norm's weight does.

    Departs from LibMTL, where one number a source task serves all tasks, starts at 1 (so maps grow T-fold a stage),
    and nothing is mixed after the last stage although a parameter is there for it.

    What the tasks share: all trunks and stitches, since the last stitch takes every map to every task; only its row
    a_t., and the layers of task t's pooling, are reached by the loss of t alone.

    Args:
        share_until: stages 0..share_until-1 exist once for all tasks; stitches begin after them. Paper: 0.
        per_channel: whether a is a number a channel, as in the paper, or one for the whole map.
        own: start of a_tt, in [0, 1]. Paper: 0.9.
    """

    def __init__(
        self,
        *,
        tasks: TaskSet,
        backbone: BackboneFactory,
        head: HeadFactory,
        name: str = "cross_stitch",
        share_until: int = 0,
        per_channel: bool = True,
        own: float = 0.9,
    ) -> None:
        super().__init__()
        several("cross_stitch", tasks)
        own = number("architecture.own", own, least=0, most=1)
        per_channel = flag("architecture.per_channel", per_channel)
        self.name = name
        self.tasks = tasks
        self.share_until = share_until
        trunks = copies(backbone, len(tasks), share_until)
        self.backbone = trunks[0]
        self.others = nn.ModuleList(trunks[1:])
        widths = [c if per_channel else 1 for c in self.backbone.channels[share_until:]]
        self.stitches = nn.ModuleList(Stitch(len(tasks), width, own) for width in widths)
        heads = make_heads(tasks, head, self.backbone.features)
        for trunk, reads in zip(trunks, heads, strict=True):
            freeze_unused_pooling(trunk, [reads])
        self.set_heads(heads)

    @property
    def trunks(self) -> list[StagedBackbone]:
        """All T, in the order of the tasks; the first alone has the stages that all share."""
        return [self.backbone, *trunks_of(self.others)]

    def forward(self, image: Tensor, targets: dict[str, Tensor] | None = None) -> Shared:
        trunks = self.trunks
        maps = [self.backbone.through(image, 0, self.share_until)] * len(trunks)
        for k, stitch in enumerate(self.stitches, start=self.share_until):
            maps = stitch([trunk.stage(k)(x) for trunk, x in zip(trunks, maps, strict=True)])
        return self.read([represent(*each) for each in zip(trunks, typed(self.heads), maps, strict=True)])

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        stages = [trunk.stages for trunk in self.trunks]
        yield from trainable([*stages, *list(self.stitches)[:-1]])

    def compiled_parts(self) -> Iterator[nn.Module]:
        for trunk in self.trunks:
            yield from trunk.stages


class Stitch(nn.Module):
    """T maps [B, C, H, W] -> T maps of the same shape, y_t = sum_u a_tu x_u.

    Attributes:
        rows: a_t. of each task t, [T C] or [T], float32; a parameter each, because the last stitch's is t's own.
    """

    def __init__(self, tasks: int, channels: int, own: float) -> None:
        super().__init__()
        a = torch.full((tasks, tasks), (1 - own) / (tasks - 1)).fill_diagonal_(own)
        self.rows = nn.ParameterList(nn.Parameter(row.repeat_interleave(channels)) for row in a)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [self._mixture(row, maps) for row in self.rows]

    def _mixture(self, row: Tensor, maps: Sequence[Tensor]) -> Tensor:
        # Half-precision maps times a float32 number are float32: rounded once, after the sum.
        first, *others = (a * x for a, x in zip(row.view(len(maps), -1, 1, 1), maps, strict=True))
        return sum(others, first).to(maps[0].dtype)
