"""FastCAR's Decoder-2."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from mtlcar.backbones.base import GlobalAveragePool
from mtlcar.errors import UserError
from mtlcar.heads.base import Head, checked_dropout, fully_connected
from mtlcar.options import whole


class Conv(Head):
    """Last feature map -> two convolution blocks -> pool -> two fully connected blocks -> output: Decoder-2 of
    arXiv 2403.17926.

    The 3 x 3 convolutions have stride 2 and each doubles the channels, so a 7 x 7 map (ResNet-18 at 224 px)
    becomes 4 x 4 and then 2 x 2, as in the paper. The width of the second fully connected layer is not given
    there; here it equals the first. BatchNorm1d needs training batches of at least 2 images.

    Args:
        in_features: channels C of the map [B, C, H, W], H and W at least 2.
        out_features: classes, or 1 for a value.
        extra_features: width E of what a cascade concatenates to the pooled vector.
        hidden: width of the fully connected layers.
        dropout: p, after each fully connected layer.
    """

    takes: ClassVar = "map"
    has_hidden: ClassVar = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        extra_features: int = 0,
        *,
        name: str = "conv",
        hidden: int = 512,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.name = name
        hidden = whole("head.hidden", hidden, least=1)
        p = checked_dropout(dropout)
        self.input_dropout = nn.Identity()
        self.blocks = nn.Sequential(
            *self._block(in_features, 2 * in_features), *self._block(2 * in_features, 4 * in_features)
        )
        self.pool = GlobalAveragePool()
        self.layers = nn.Sequential(
            *fully_connected(4 * in_features + extra_features, hidden, p), *fully_connected(hidden, hidden, p)
        )
        self.output = nn.Linear(hidden, out_features)

    @staticmethod
    def _block(inputs: int, outputs: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]

    def hidden(self, x: Tensor, extra: Tensor | None = None) -> Tensor:
        if min(x.shape[-2:]) < 2:
            raise UserError(
                f"head=conv needs a last feature map of at least 2 x 2. The backbone gives {x.shape[-2]} x "
                f"{x.shape[-1]} at this data.image_size: use larger images, or head=mlp."
            )
        vector = self.pool(self.blocks(x))
        return self.layers(vector if extra is None else torch.cat([vector, extra], 1))
