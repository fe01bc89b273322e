"""Tasks exchange what they know through a small shared memory."""

import copy
from collections.abc import Iterator
from typing import Self

import torch
from torch import Tensor, nn

from mtlcar.architectures.base import Architecture, Shared
from mtlcar.architectures.common import above_trunk, as_output, make_heads, several, trainable, typed
from mtlcar.architectures.knowledge import KnowledgeExchange
from mtlcar.architectures.tokens import projections, read_tokens, token_trunk, token_width
from mtlcar.backbones.base import BackboneFactory
from mtlcar.errors import UserError
from mtlcar.heads.base import HeadFactory
from mtlcar.options import number
from mtlcar.tasks import TaskSet


class KEM(Architecture):
    """The tasks' tokens write to one another through a memory of a few slots (KEM; Zhang et al. 2024, "SGW-based
    Multi-Task Learning in Vision Tasks", arXiv 2410.03778).

    - tokens: the N positions x [B, N, C] of the trunk's last map (a ViT's class token is one of them), and of each task
      t its own F_t = x W_t + e_t [B, N, d]; F [B, T N, d] are those of all tasks.
    - exchange: F <- F + w_r F^, F^ what the memory writes; see `KnowledgeExchange`.
    - heads: task t's takes the mean of its N tokens [B, d], or those on the grid as a map [B, d, H, W].

    All sharing passes through the trunk's last map, the bottleneck. Its maps are read as the last stage gives them,
    without the layers of the pooling; see `token_trunk`.

    From the paper: retrieve with top-k, write, broadcast, the learned memory that is not carried across batches, and
    that the memory is an information bottleneck between tasks. Its full text was not available here, so ours are:
    the sizes (d 256, L 8, k 8), one attention head, the Gaussian form of the bottleneck's loss, how weights start,
    and the task's embedding e_t, the bias of W_t under another name. Classification of whole images, hence the mean
    over tokens, is ours too: the paper predicts maps.

    Args:
        width: d; None: the channels C of the last map.
        slots: L of the memory, at least 2.
        top_k: tokens k that a slot retrieves from, at least 2; all T N of them where it is larger.
        broadcast: w_r. 0: there is no exchange, its parameters and e_t are left out, and what remains is parallel heads
            on each task's own tokens.
        beta: weight of the information bottleneck beta KL(N(mu, sigma^2) || N(0, I)) on the retrieved memory, summed
            over its L d numbers: about 1e-4 makes it matter. 0: none, and the memory is read without noise.
    """

    has_bottleneck = True

    def __init__(
        self,
        *,
        tasks: TaskSet,
        backbone: BackboneFactory,
        head: HeadFactory,
        name: str = "kem",
        width: int | None = 256,
        slots: int = 8,
        top_k: int = 8,
        broadcast: float = 1.0,
        beta: float = 0.0,
    ) -> None:
        super().__init__()
        several(name, tasks)
        self.name = name
        self.tasks = tasks
        self.broadcast = number("architecture.broadcast", broadcast, least=0)
        self.beta = number("architecture.beta", beta, least=0)
        if self.beta and not self.broadcast:
            raise UserError(
                f"architecture.beta={beta} bounds what the memory passes on, and with architecture.broadcast=0 there "
                "is no memory. Set one of the two otherwise."
            )
        self.backbone = token_trunk(name, backbone)
        self.width = token_width(width, self.backbone.features)
        self.projections = projections(len(tasks), self.backbone.features, self.width, bias=False)
        # Made in any case: wrong options are refused, and the heads start the same, with the exchange and without.
        exchange = KnowledgeExchange(self.width, slots=slots, top_k=top_k, noisy=self.beta > 0)
        embedding = nn.ParameterList(0.02 * torch.randn(self.width) for _ in tasks)  # vectors: no weight decay
        self.exchange = exchange if self.broadcast else None
        self.embedding = embedding if self.broadcast else None
        self.heads = nn.ModuleList(make_heads(tasks, head, self.width))

    def task_tokens(self, last: Tensor) -> list[Tensor]:
        """The trunk's last map [B, C, H, W] -> F_t [B, N, d] of each task."""
        tokens = self.backbone.tokens(last)
        own = [projection(tokens) for projection in self.projections]
        if self.embedding is None:
            return own
        return [x + e for x, e in zip(own, self.embedding, strict=True)]

    def forward(self, image: Tensor, targets: dict[str, Tensor] | None = None) -> Shared:
        last = self.backbone(image)[-1]
        tokens = self.task_tokens(last)
        extra = None
        if self.exchange is not None:
            whole = torch.cat(tokens, 1)
            written, divergence = self.exchange(whole)
            tokens = list((whole + self.broadcast * written).chunk(len(tokens), 1))
            extra = None if divergence is None else self.beta * divergence
        heads = typed(self.heads)
        taken = read_tokens(self.backbone, heads, tokens, last.shape[-1])
        outputs = {task.name: as_output(task, head(x)) for task, head, x in zip(self.tasks, heads, taken, strict=True)}
        return Shared(outputs, last, extra)

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """The trunk; and, with the exchange, all but the heads: what a task projects reaches the others."""
        private = {id(p) for p in self.heads.parameters()}
        if self.exchange is None:
            private |= {id(p) for p in self.projections.parameters()}
        yield from (p for p in trainable([self]) if id(p) not in private)

    def above_bottleneck(self) -> Iterator[nn.Parameter]:
        return above_trunk(self)

    def pruned(self) -> Self:
        """Without what only the noise of training uses."""
        if self.exchange is None or self.exchange.log_variance is None:
            return self
        network = copy.deepcopy(self)
        assert network.exchange is not None
        network.exchange.log_variance = None
        return network
