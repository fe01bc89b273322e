"""Multi-task attention network: one trunk, and for each task a soft mask over every stage's map."""

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtlcar.architectures.base import Shared
from mtlcar.architectures.common import (
    TaskRepresentations,
    freeze_unused_pooling,
    make_heads,
    pooling_parameters,
    represent,
    several,
    trainable,
    typed,
)
from mtlcar.backbones.base import BackboneFactory, StagedBackbone
from mtlcar.backbones.cut import with_last_input
from mtlcar.heads.base import HeadFactory
from mtlcar.options import whole
from mtlcar.tasks import TaskSet


class MTAN(TaskRepresentations):
    """Task t sees stage k's map p_k through a mask of its own (Liu, Johns, Davison 2019, arXiv 1803.10704):

        m = sigmoid(BN(W' ReLU(BN(W [u_k ; f_k(a_t^(k-1))]))))    [B, C_k, H, W], W and W' 1 x 1 convolutions
        a_t^k = m * p_k;  for k = 0 the mask sees u_0 alone

    u_k is the map before the stage's last block, from the same pass through the stage as p_k. Task t's head reads
    a_t^(K-1), or what the trunk pools from it. Masks are each task's own; the trunk and the f_k are shared:
    f_k(a) = maxpool(ReLU(BN(3 x 3 convolution of a))), with the channels and size of u_k.

    A stage of one block has no map before its last block but the stage's input, which then is u_k, brought to p_k's
    size by max pooling where that is smaller.

    On the maps of a ViT, whose row 0 holds copies of the class token, masks act position by position as on the grid,
    and their BatchNorms count each copy. The 3 x 3 convolution runs over the grid alone; the class token, which has no
    neighbours, meets the middle of the kernel. So the copies stay equal, and nothing on the grid leaks into them other
    than by the trunk's attention; under heads that read the class token, masks choose its channels.

    BatchNorm sees one task's maps at a time, also in f_k: the loss of one task reaches no other's mask. The running
    statistics of f_k are an average over tasks, as in the authors' code.

    Departs from LibMTL: there f_k is a residual block with two 3 x 3 convolutions, the 1 x 1 convolutions have biases
    that BatchNorm makes idle, gradient methods leave masks and f_k untrained, and only ResNets work. With its f_k
    replaced the outputs are the same.

    Args:
        reduction: masks have C_k / reduction channels inside. The authors: 1; LibMTL for ResNet-50 and deeper: 4.
    """

    def __init__(
        self,
        *,
        tasks: TaskSet,
        backbone: BackboneFactory,
        head: HeadFactory,
        name: str = "mtan",
        reduction: int = 1,
    ) -> None:
        super().__init__()
        several("mtan", tasks)
        self.name = name
        self.tasks = tasks
        self.backbone = backbone()
        channels = self.backbone.channels
        fewest = " (the fewest channels of a stage)"
        reduction = whole("architecture.reduction", reduction, least=1, most=min(channels), because=fewest)
        widths = input_channels(self.backbone, backbone.image_size)
        row = self.backbone.class_row
        self.passed = nn.ModuleList(PassedOn(i, o, row) for i, o in zip(channels[:-1], widths[1:], strict=True))
        self.masks = nn.ModuleList(
            nn.ModuleList(mask(u if k == 0 else 2 * u, c // reduction, c) for _ in tasks)
            for k, (u, c) in enumerate(zip(widths, channels, strict=True))
        )
        heads = make_heads(tasks, head, self.backbone.features)
        freeze_unused_pooling(self.backbone, heads)
        self.set_heads(heads)

    @property
    def masks_by_stage(self) -> Sequence[nn.ModuleList]:
        """The masks of all tasks, stage by stage, for the type checker."""
        return cast(Sequence[nn.ModuleList], self.masks)

    def forward(self, image: Tensor, targets: dict[str, Tensor] | None = None) -> Shared:
        x = image
        attended: list[Tensor] = []
        for k, masks in enumerate(self.masks_by_stage):
            u, x = with_last_input(self.backbone.stage(k), x)
            u = pooled_to(u, x)
            seen = [torch.cat([u, pooled_to(self.passed[k - 1](a), u)], 1) for a in attended] or [u] * len(masks)
            attended = [m(s) * x for m, s in zip(masks, seen, strict=True)]
        return self.read([represent(self.backbone, h, a) for h, a in zip(typed(self.heads), attended, strict=True)])

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """The trunk and the f_k; and the pooling, where at least two heads take vectors."""
        own = sum(head.takes == "vector" for head in typed(self.heads)) < 2
        private = {id(p) for p in pooling_parameters(self.backbone)} if own else set()
        yield from (p for p in trainable([self.backbone, self.passed]) if id(p) not in private)

    def compiled_parts(self) -> Iterator[nn.Module]:
        yield from self.backbone.stages
        yield from self.passed
        for masks in self.masks_by_stage:
            yield from masks


def mask(inputs: int, inside: int, outputs: int) -> nn.Module:
    """[B, inputs, H, W] -> mask [B, outputs, H, W] in 0..1. No biases: BatchNorm makes them idle."""
    return nn.Sequential(
        nn.Conv2d(inputs, inside, 1, bias=False),
        nn.BatchNorm2d(inside),
        nn.ReLU(),
        nn.Conv2d(inside, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.Sigmoid(),
    )


class PassedOn(nn.Module):
    """f_k without its pooling: [B, inputs, H, W] -> [B, outputs, H, W].

    Args:
        class_row: whether row 0 holds copies of a class token; it is convolved apart.
    """

    def __init__(self, inputs: int, outputs: int, class_row: bool) -> None:
        super().__init__()
        self.class_row = class_row
        self.convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        if self.class_row:
            row = functional.conv2d(x[:, :, :1], self.convolution.weight[:, :, 1:2, 1:2])
            x = torch.cat([row, self.convolution(x[:, :, 1:])], 2)
        else:
            x = self.convolution(x)
        return functional.relu(self.norm(x))


def pooled_to(x: Tensor, like: Tensor) -> Tensor:
    """Max pooling of [B, C, H, W] to the height and width of `like`, which are about a whole fraction: 56 -> 28 in
    windows of 2 x 2, 7 -> 4 with a last window of 1, 7 -> 3 without the last row.

    Not adaptive pooling, whose backward has no deterministic kernel on a GPU.
    """
    (height, width), (h, w) = x.shape[-2:], like.shape[-2:]
    if (height, width) == (h, w):
        return x
    stride = round(height / h), round(width / w)
    beyond = stride[0] * h > height or stride[1] * w > width
    return functional.max_pool2d(x, stride, stride, ceil_mode=beyond)


@torch.no_grad()
def input_channels(backbone: StagedBackbone, image_size: int) -> list[int]:
    """Channels of each u_k, found by one pass of a black image [1, 3, S, S]; the trunk is left as it was."""
    reference = next(backbone.parameters())
    x = torch.zeros(1, 3, image_size, image_size, device=reference.device, dtype=reference.dtype)
    training = backbone.training
    backbone.eval()
    found = []
    for k in range(backbone.depth):
        u, x = with_last_input(backbone.stage(k), x)
        found.append(u.shape[1])
    backbone.train(training)
    return found
