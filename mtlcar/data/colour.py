"""Colour adjustments of torchvision's ColorJitter with a factor for every image.

All take float images [B, 3, H, W], RGB on the 0..255 scale, and change them in place: memory that is touched
for the first time costs more than the arithmetic.
"""

import torch
from torch import Tensor

LUMA = (0.2989, 0.587, 0.114)
"""ITU-R 601 weights of R, G, B as torchvision has them."""


def luma(x: Tensor) -> Tensor:
    """Brightness of each pixel: [B, 3, H, W] -> [B, 1, H, W]."""
    r, g, b = x.unbind(1)
    return (r * LUMA[0]).add_(g, alpha=LUMA[1]).add_(b, alpha=LUMA[2]).unsqueeze(1)


def adjust_brightness_(x: Tensor, factor: Tensor) -> Tensor:
    """x [B, 3, H, W] times factor [B, 1, 1, 1]."""
    return x.mul_(factor).clamp_(0, 255)


def adjust_contrast_(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the image's mean brightness; factor [B, 1, 1, 1], 0: flat grey, 1: unchanged."""
    return x.lerp_(luma(x).mean((1, 2, 3), keepdim=True), 1 - factor).clamp_(0, 255)


def adjust_saturation_(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with the grey image; factor [B, 1, 1, 1], 0: grey, 1: unchanged."""
    return x.lerp_(luma(x), 1 - factor).clamp_(0, 255)


def adjust_hue_(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the colour circle by `shift` [B, 1, 1, 1], a share of the whole circle; value and chroma stay.

    The closed form of RGB -> HSV -> RGB: channel n = 5, 3, 1 is v - c * clamp(min(k, 4 - k), 0, 1)
    with k = (n + 6 h) mod 6, v the maximum and c the chroma (https://en.wikipedia.org/wiki/HSL_and_HSV).
    """
    r, g, b = x.unbind(1)
    v = torch.maximum(torch.maximum(r, g), b)
    c = v - torch.minimum(torch.minimum(r, g), b)
    inverse = c.clamp(min=1e-6).reciprocal_()  # grey has no hue: c = 0, and any h gives the same grey
    # lerp by 0 or 1 is an exact choice; torch.where takes several times as long on a CPU
    h = (r - g).mul_(inverse).add_(4)
    h.lerp_((b - r).mul_(inverse).add_(2), (v == g).float())
    h.lerp_((g - b).mul_(inverse), (v == r).float())
    h += 6 * shift[:, 0]
    for channel, n in enumerate((5, 3, 1)):
        k = h + n
        k.sub_((k / 6).floor_(), alpha=6)  # mod 6; remainder() takes four times as long
        k = torch.minimum(k, 4 - k).clamp_(0, 1)
        torch.addcmul(v, k, c, value=-1, out=x[:, channel])
    return x
