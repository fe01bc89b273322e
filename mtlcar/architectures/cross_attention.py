"""Tasks attend to one another at each scale, then each to its own other scales."""

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from mtlcar.architectures.base import Shared
from mtlcar.architectures.common import TaskRepresentations, make_heads, several, trainable, typed
from mtlcar.architectures.tokens import projections, read_tokens, token_trunk, token_width
from mtlcar.backbones.base import BackboneFactory
from mtlcar.errors import UserError
from mtlcar.heads.base import HeadFactory
from mtlcar.options import whole
from mtlcar.tasks import TaskSet


class Attention(nn.Module):
    """x + softmax((x Wq)(y Wk)^T / sqrt(d)) y Wv: what x [B, n, d] finds in y [B, m, d], m >= 2 tokens; one head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if y.shape[1] < 2:
            raise UserError(
                "architecture=cross_attention needs maps of more than one position: a softmax over one key is 1 and "
                "nothing is attended to. Use a larger data.image_size, or architecture=parallel."
            )
        query, key, value = self.query(x), self.key(y), self.value(y)
        # With a dimension of heads: the fused kernels take no others.
        found = nn.functional.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None])
        return x + found[:, 0]


class CrossAttention(TaskRepresentations):
    """Sequential cross-task, then cross-scale attention (Kim, Choi & Min 2022, "Sequential Cross Attention Based
    Multi-task Learning", arXiv 2209.02518): what `kem` is compared with, all-to-all and without a memory.

    At each of the trunk's last S stages, x_s [B, N_s, C_s] the tokens of its map (a ViT's class token is one of them):

    - tokens: of each task t its own F_ts = x_s W_ts + b_ts [B, N_s, d];
    - cross-task: G_ts = F_ts + attention(query F_ts; keys and values F_us of all other tasks u);
    - cross-scale: H_t = G_tS + attention(query G_tS; keys and values G_ts of the scales s < S); not for S = 1;
    - heads: task t's takes the mean of the N_S tokens H_t [B, d], or those on the grid as a map [B, d, H, W].

    From the paper: that attention goes first over tasks of the same scale and then over scales of the same task. Its
    full text was not available here, so ours are: one head, an attention of its own for each task and scale, all other
    tasks in one softmax, only the last scale asking, no norms, and S 2. The self-attention blocks that the paper adds
    to its trunk are left out, and images are classified from the mean over tokens where the paper predicts maps. Maps
    are read as the stages give them; see `token_trunk`.

    The cost of the cross-task part is 2 T (T - 1) N_s^2 d multiply-adds a scale. At 224 px the last stages of a CNN
    have 49, 196, 784 and 3,136 positions: each further scale multiplies it by 16, hence the last 2 (a ViT's scales all
    have 197 tokens).

    Args:
        width: d; None: the channels of the last map.
        scales: S, the number of last stages that are read.
    """

    def __init__(
        self,
        *,
        tasks: TaskSet,
        backbone: BackboneFactory,
        head: HeadFactory,
        name: str = "cross_attention",
        width: int | None = 256,
        scales: int = 2,
    ) -> None:
        super().__init__()
        several(name, tasks)
        self.name = name
        self.tasks = tasks
        self.backbone = token_trunk(name, backbone)
        depth = self.backbone.depth
        self.scales = whole(
            "architecture.scales", scales, least=1, most=depth, because=f" (the trunk has {depth} stages)"
        )
        self.width = token_width(width, self.backbone.features)
        n = len(tasks)
        read = self.backbone.channels[-self.scales :]
        self.projections = nn.ModuleList(projections(n, channels, self.width, bias=True) for channels in read)
        self.cross_task = nn.ModuleList(self._attentions(n) for _ in read)
        self.cross_scale = self._attentions(n if self.scales > 1 else 0)
        self.set_heads(make_heads(tasks, head, self.width))

    def _attentions(self, n: int) -> nn.ModuleList:
        return nn.ModuleList(Attention(self.width) for _ in range(n))

    def forward(self, image: Tensor, targets: dict[str, Tensor] | None = None) -> Shared:
        maps = self.backbone(image)[-self.scales :]
        by_scale = [self._exchange(s, self.backbone.tokens(x)) for s, x in enumerate(maps)]
        last = by_scale[-1]
        for t, attend in enumerate(self.cross_scale):
            last[t] = attend(last[t], torch.cat([scale[t] for scale in by_scale[:-1]], 1))
        return self.read(read_tokens(self.backbone, typed(self.heads), last, maps[-1].shape[-1]))

    def _exchange(self, scale: int, tokens: Tensor) -> list[Tensor]:
        """The trunk's tokens of one scale [B, N, C] -> each task's after attending to the others' [B, N, d]."""
        own = [projection(tokens) for projection in cast(nn.ModuleList, self.projections[scale])]
        attentions = cast(nn.ModuleList, self.cross_task[scale])
        return [attend(own[t], torch.cat(own[:t] + own[t + 1 :], 1)) for t, attend in enumerate(attentions)]

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """The trunk and the projections: a task attends to the others' tokens by an attention of its own."""
        yield from trainable([self.backbone, self.projections])
