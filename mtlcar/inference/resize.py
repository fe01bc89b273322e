"""`ImageDecoder`'s resizing as tensor operations, for exported files."""

import torch
from torch import Tensor, nn

from mtlcar.data.decode import PAD_COLOUR

BITS = 22
"""Pillow multiplies 8-bit pixels by whole numbers, 2^22 times the filter's weights."""


class Resize(nn.Module):
    """uint8 RGB [N, 3, H, W] -> [N, 3, S, S], as `ImageDecoder` makes it of the upright picture.

    Pillow's antialiased bilinear filter as a matrix for each axis: horizontally first, rounded to 8 bit, then
    vertically. Weights are rounded to 22 bits as Pillow's are, and sums of whole numbers are exact in float64, so that
    pixels are Pillow's own. Pictures that are higher than wide Pillow may filter in the other order; some then differ
    by 1 of 255. A picture of S x S pixels passes unchanged.
    """

    def __init__(self, size: int, resize: str) -> None:
        super().__init__()
        self.size, self.resize = size, resize

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2], image.shape[-1]
        h, w = (torch.scalar_tensor(n, dtype=torch.float64, device=image.device) for n in (height, width))
        across, down = self._weights(width, w, h), self._weights(height, h, w)
        x = self._rounded(torch.matmul(image.to(torch.float64), across.T))
        x = self._rounded(torch.matmul(down, x))
        if self.resize == "pad":
            inside = (down.sum(1) > 0)[:, None] & (across.sum(1) > 0)
            grey = torch.tensor(PAD_COLOUR, dtype=x.dtype, device=x.device).view(1, 3, 1, 1)
            x = torch.where(inside, x, grey)
        return x

    def _weights(self, n: int, own: Tensor, other: Tensor) -> Tensor:
        """The filter's weights [S, n] of an axis of n pixels, times 2^22; rows outside a padded picture are 0."""
        place = torch.arange(self.size, dtype=torch.float64, device=own.device)
        start, length, out = torch.zeros_like(own), own, torch.full_like(own, self.size)
        if self.resize == "crop":
            length = torch.minimum(own, other)
            start = (own - length) / 2
        elif self.resize == "pad":
            longest = torch.maximum(own, other)
            out = torch.round(own * (self.size / longest)).clamp(min=1)
            place = place - torch.floor((self.size - out) / 2)
        scale = length / out
        support = scale.clamp(min=1.0)
        centre = start + (place + 0.5) * scale
        distance = torch.arange(n, dtype=torch.float64, device=own.device) + 0.5 - centre[:, None]
        weights = (1 - distance.abs() / support).clamp(min=0)
        if self.resize == "pad":
            weights = weights * ((place >= 0) & (place < out))[:, None]
        weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-12)
        return torch.floor(weights * 2**BITS + 0.5)

    @staticmethod
    def _rounded(sums: Tensor) -> Tensor:
        return torch.floor((sums + 2 ** (BITS - 1)) / 2**BITS).clamp(0, 255)
