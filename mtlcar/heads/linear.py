"""Dropout and one linear layer."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from mtlcar.heads.base import Head, checked_dropout


class Linear(Head):
    """y = W [Dropout_p(f) ; extra] + b (arXiv 2603.01746, section on architectures); `extra` is not dropped.

    Args:
        in_features: width D of the pooled representation f [B, D].
        out_features: classes, or 1 for a value.
        extra_features: width E of what a cascade concatenates.
        dropout: p.
    """

    takes: ClassVar = "vector"
    has_hidden: ClassVar = False

    def __init__(
        self,
        in_features: int,
        out_features: int,
        extra_features: int = 0,
        *,
        name: str = "linear",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.name = name
        self.input_dropout = nn.Dropout(checked_dropout(dropout))
        self.output = nn.Linear(in_features + extra_features, out_features)

    def hidden(self, x: Tensor, extra: Tensor | None = None) -> Tensor:
        return x if extra is None else torch.cat([x, extra], 1)
