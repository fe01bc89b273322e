"""FastCAR's Decoder-1."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from mtlcar.heads.base import Head, checked_dropout, fully_connected
from mtlcar.options import whole


class MLP(Head):
    """Pooled vector -> fully connected, BatchNorm1d, ReLU, dropout -> output: Decoder-1 of arXiv 2403.17926.

    BatchNorm1d needs training batches of at least 2 images.

    Args:
        in_features: width D of the pooled representation [B, D].
        out_features: classes, or 1 for a value.
        extra_features: width E of what a cascade concatenates to the vector.
        hidden: width of the fully connected layer.
        dropout: p, after the hidden layer.
    """

    takes: ClassVar = "vector"
    has_hidden: ClassVar = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        extra_features: int = 0,
        *,
        name: str = "mlp",
        hidden: int = 512,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.name = name
        hidden = whole("head.hidden", hidden, least=1)
        self.input_dropout = nn.Identity()
        self.layers = nn.Sequential(*fully_connected(in_features + extra_features, hidden, checked_dropout(dropout)))
        self.output = nn.Linear(hidden, out_features)

    def hidden(self, x: Tensor, extra: Tensor | None = None) -> Tensor:
        return self.layers(x if extra is None else torch.cat([x, extra], 1))
