"""The last layer of a regression's head, in float32 also under autocast."""

from typing import Self

import torch
from torch import Tensor, nn


class Float32Linear(nn.Linear):
    """A linear layer that autocast leaves alone: x W^T + b in the parameters' own type, [B, D] -> [B, outputs].

    bfloat16 has 8 bits of mantissa: a standardised value of about 1 would be rounded to steps of 2^-8 to 2^-7, for the
    hardness of steel (standard deviation about 255 HV) one to two HV.
    """

    @classmethod
    def around(cls, layer: nn.Linear) -> Self:
        """A layer with the parameters of `layer` themselves; no random number is drawn."""
        found = cls(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        found.weight, found.bias = layer.weight, layer.bias
        return found

    def forward(self, input: Tensor) -> Tensor:
        x = input.to(self.weight.dtype)
        if not torch.amp.is_autocast_available(x.device.type):  # the meta device, on which autocast cannot be named
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x)
