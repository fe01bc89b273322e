"""Augmentation of whole batches on their device, with its own random numbers for every image."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlcar.data.colour import adjust_brightness_, adjust_contrast_, adjust_hue_, adjust_saturation_, luma
from mtlcar.errors import UserError

DRAWS = (
    "flip", "vertical_flip", "quarter_turns", "rotation", "area", "ratio", "left", "top", "brightness", "contrast",
    "saturation", "hue", "grayscale", "erasing", "erasing_area", "erasing_ratio", "erasing_left", "erasing_top",
)  # fmt: skip
"""One random number of an image for each; the position in this list is fixed, so switching one on changes no other."""


class Augment(nn.Module):
    """uint8 [B, 3, S, S] -> normalised float32 [B, 3, S, S]; every argument is off at 0, False or None.

    The operations are those of torchvision.transforms.v2 at the drawn parameters, in this order: crop, rotation,
    quarter turns and flips (one bilinear resampling; none if only flips and turns are on), brightness, contrast,
    saturation, hue, grey, normalisation, erasing.

    Args:
        flip: probability of a left-right flip.
        vertical_flip: probability of an upside-down flip.
        quarter_turns: rotate by 0, 90, 180 or 270 degrees, equally likely (micrographs have no upright).
        rotation: largest angle, degrees, to either side; the outside is filled by reflection.
        crop_scale: smallest and largest share of the area that is cut out and enlarged to S x S.
        crop_ratio: smallest and largest width / height of that cut; a cut wider or higher than the image is limited
            to its side.
        brightness, contrast, saturation: the factor is uniform in 1 -+ this (at least 0).
        hue: shift uniform in -+ this share of the colour circle, at most 0.5.
        grayscale: probability of losing the colour.
        erasing: probability that a rectangle is replaced by the mean colour (zero after normalisation).
        erasing_scale: smallest and largest share of the area of that rectangle; its width / height is 0.3 to 3.3.
        mean, std: normalisation per RGB channel on the 0..1 scale.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        *,
        flip: float = 0.0,
        vertical_flip: float = 0.0,
        quarter_turns: bool = False,
        rotation: float = 0.0,
        crop_scale: Sequence[float] | None = None,
        crop_ratio: Sequence[float] = (3 / 4, 4 / 3),
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        hue: float = 0.0,
        grayscale: float = 0.0,
        erasing: float = 0.0,
        erasing_scale: Sequence[float] = (0.02, 0.33),
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
    ) -> None:
        super().__init__()
        self.flip = _between("flip", flip, 1)
        self.vertical_flip = _between("vertical_flip", vertical_flip, 1)
        self.quarter_turns = bool(quarter_turns)
        self.rotation = _between("rotation", rotation, 180)
        self.crop_scale = None if crop_scale is None else _interval("crop_scale", crop_scale, 1)
        self.crop_ratio = _interval("crop_ratio", crop_ratio, 100)
        self.brightness = _between("brightness", brightness, 10)
        self.contrast = _between("contrast", contrast, 10)
        self.saturation = _between("saturation", saturation, 10)
        self.hue = _between("hue", hue, 0.5)
        self.grayscale = _between("grayscale", grayscale, 1)
        self.erasing = _between("erasing", erasing, 1)
        self.erasing_scale = _interval("erasing_scale", erasing_scale, 1)
        self.register_buffer("scale", torch.empty(1, 3, 1, 1), persistent=False)
        self.register_buffer("shift", torch.empty(1, 3, 1, 1), persistent=False)
        self.set_normalization(mean, std)

    def set_normalization(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """The mean and standard deviation per RGB channel, on the 0..1 scale, that the network's weights expect."""
        m, s = (
            torch.tensor([float(v) for v in values], dtype=torch.float64).view(1, 3, 1, 1) for values in (mean, std)
        )
        self.scale.copy_(1 / (255 * s))
        self.shift.copy_(-m / s)

    def forward(self, image: Tensor, key: Tensor) -> Tensor:
        """
        Args:
            image: uint8 [B, 3, S, S].
            key: int64 [B], the random key of each image; the same key gives the same result in any batch.
        """
        draw = dict(zip(DRAWS, uniform(key, len(DRAWS)), strict=True))
        x = self._jitter_(self._move(image, draw).float(), draw)
        x.mul_(self.scale).add_(self.shift)
        return self._erase(x, draw) if self.erasing else x

    def normalize(self, image: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> float32 (image / 255 - mean) / std."""
        return image.to(torch.float32, copy=True).mul_(self.scale).add_(self.shift)

    def _move(self, image: Tensor, u: dict[str, Tensor]) -> Tensor:
        turn = (4 * u["quarter_turns"]).long() if self.quarter_turns else torch.zeros_like(u["flip"], dtype=torch.long)
        # a quarter turn is a transposition and a flip; so what is left is whether to transpose and flip each axis
        transpose = turn % 2 == 1
        flip_x = (u["flip"] < self.flip) ^ (turn >= 2)
        flip_y = (u["vertical_flip"] < self.vertical_flip) ^ ((turn == 1) | (turn == 2))
        if self.crop_scale is not None or self.rotation:
            return self._resample(image.float(), u, transpose, flip_x, flip_y)
        if self.quarter_turns:
            image = _choose(transpose, image.transpose(-1, -2), image)
        if self.quarter_turns or self.flip:
            image = _choose(flip_x, image.flip(-1), image)
        if self.quarter_turns or self.vertical_flip:
            image = _choose(flip_y, image.flip(-2), image)
        return image

    def _resample(
        self, image: Tensor, u: dict[str, Tensor], transpose: Tensor, flip_x: Tensor, flip_y: Tensor
    ) -> Tensor:
        """One affine resampling: output position -> flips, transposition -> rotation -> crop -> input position."""
        one = torch.ones_like(u["area"])
        width, height = one, one
        if self.crop_scale is not None:
            width, height = self._cut(u["area"], u["ratio"], self.crop_scale, self.crop_ratio)
        angle = (2 * u["rotation"] - 1) * math.radians(self.rotation)
        cos, sin = torch.cos(angle), torch.sin(angle)
        # columns of the linear part: where the output's x and y axes lie in the input, before flips and transposition
        ax, ay = width * cos, height * sin
        bx, by = -width * sin, height * cos
        sign_x, sign_y = 1 - 2 * flip_x.to(one.dtype), 1 - 2 * flip_y.to(one.dtype)
        ax, bx = torch.where(transpose, bx, ax) * sign_x, torch.where(transpose, ax, bx) * sign_y
        ay, by = torch.where(transpose, by, ay) * sign_x, torch.where(transpose, ay, by) * sign_y
        cx, cy = (2 * u["left"] - 1) * (1 - width), (2 * u["top"] - 1) * (1 - height)
        x = (2 * torch.arange(image.shape[-1], device=image.device) + 1) / image.shape[-1] - 1  # pixel centres
        grid = torch.empty(
            (len(image), len(x), len(x), 2), device=image.device
        )  # F.affine_grid takes ten times as long
        for k, (a, b, c) in enumerate(((ax, bx, cx), (ay, by, cy))):
            torch.add(a[:, None, None] * x, (b[:, None] * x + c[:, None])[:, :, None], out=grid[..., k])
        return F.grid_sample(image, grid, mode="bilinear", padding_mode="reflection", align_corners=False)

    def _jitter_(self, x: Tensor, u: dict[str, Tensor]) -> Tensor:
        if self.brightness:
            adjust_brightness_(x, _per_image(_factor(u["brightness"], self.brightness)))
        if self.contrast:
            adjust_contrast_(x, _per_image(_factor(u["contrast"], self.contrast)))
        if self.saturation:
            adjust_saturation_(x, _per_image(_factor(u["saturation"], self.saturation)))
        if self.hue:
            adjust_hue_(x, _per_image((2 * u["hue"] - 1) * self.hue))
        if self.grayscale:
            x.lerp_(luma(x), _per_image((u["grayscale"] < self.grayscale).float()))
        return x

    def _erase(self, x: Tensor, u: dict[str, Tensor]) -> Tensor:
        width, height = self._cut(u["erasing_area"], u["erasing_ratio"], self.erasing_scale, (0.3, 3.3))
        left, top = u["erasing_left"] * (1 - width), u["erasing_top"] * (1 - height)
        columns = (torch.arange(x.shape[-1], device=x.device) + 0.5) / x.shape[-1]
        rows = (torch.arange(x.shape[-2], device=x.device) + 0.5) / x.shape[-2]
        inside_x = (columns >= left[:, None]) & (columns < (left + width)[:, None])
        inside_y = (rows >= top[:, None]) & (rows < (top + height)[:, None])
        inside_y &= (u["erasing"] < self.erasing)[:, None]
        return x.masked_fill((inside_y[:, :, None] & inside_x[:, None, :])[:, None], 0.0)

    @staticmethod
    def _cut(
        area: Tensor, ratio: Tensor, scale: tuple[float, float], ratios: tuple[float, float]
    ) -> tuple[Tensor, Tensor]:
        """Uniform numbers [B] -> width and height [B] of a cut as shares of the image's."""
        area = scale[0] + area * (scale[1] - scale[0])
        low, high = math.log(ratios[0]), math.log(ratios[1])
        root = torch.exp(0.5 * (low + ratio * (high - low)))
        side = area.sqrt()
        return (side * root).clamp(max=1), (side / root).clamp(max=1)


def uniform(key: Tensor, count: int) -> Tensor:
    """`count` float32 random numbers in [0, 1) for each int64 key [B] -> [count, B]; the same on every device.

    SplitMix64 (Steele et al. 2014) seeded with the key; int64 arithmetic wraps around like its uint64.
    """
    steps = torch.arange(1, count + 1, device=key.device, dtype=torch.int64)[:, None]
    x = key[None] + steps * _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    x = x ^ _shift(x, 31)
    return _shift(x, 40).float() * 2.0**-24


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word


def _shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _per_image(x: Tensor) -> Tensor:
    return x.view(-1, 1, 1, 1)


def _choose(first: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """uint8 images: `a` where `first` [B], else `b`; bitwise, because torch.where is several times slower on a CPU."""
    mask = _per_image(-first.to(torch.uint8))
    return b ^ ((a ^ b) & mask)


def _factor(u: Tensor, width: float) -> Tensor:
    low = max(0.0, 1 - width)
    return low + u * (1 + width - low)


def _between(name: str, value: float | None, high: float) -> float:
    value = float(value or 0)
    if not 0 <= value <= high:
        raise UserError(f"data.augment.{name} should be between 0 (off) and {high:g}. Found {value:g}.")
    return value


def _interval(name: str, value: Sequence[float], high: float) -> tuple[float, float]:
    pair = tuple(float(v) for v in value)
    if len(pair) != 2 or not 0 < pair[0] <= pair[1] <= high:
        raise UserError(
            f"data.augment.{name} should be [smallest, largest], above 0 and at most {high:g}. Found {list(pair)}."
        )
    return pair[0], pair[1]
