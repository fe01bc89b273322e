"""One picture file to one square uint8 array; the cache, streaming and prediction all go through here."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mtlcar.data.picture import load_pixels, open_picture, reduction
from mtlcar.data.window import crop_window, cut
from mtlcar.errors import UserError, did_you_mean

RESIZE = ("stretch", "pad", "crop")
GAP = 2
"""A JPEG file is decoded smaller as long as this many times the pixels of the result remain along each side."""
PAD_COLOUR = (128, 128, 128)
DECODE_VERSION = 3
"""Raised whenever the same file would give other pixels; part of the cache's key."""


@dataclass(frozen=True)
class ImageDecoder:
    """Picture file -> uint8 RGB [S, S, 3].

    Grey, palette, CMYK and 16-bit pictures become 8-bit RGB (16 bit: the full range 0..65535 scaled to 0..255),
    transparency is laid on white, the box is cut out, the EXIF orientation is applied, and what remains is
    resized by antialiased bilinear interpolation. A box counts pixels of the picture as stored, before
    the orientation is applied, because that is what annotation tools of these datasets read.

    A JPEG file is decoded at 1/2, 1/4 or 1/8 of its size where at least twice the pixels of the result remain of
    the box. On photographs, at 64 to 224 pixels, the result then differs from full decoding by 0.2 of 255 on average
    and 0.5 at worst, 99 % of its values by at most 3; on mosaics of tiny pictures, the hardest tried, by 1.6.

    Args:
        size: S, pixels.
        resize: `stretch` (aspect ratio is lost), `pad` (grey bars), `crop` (the centre square).
        margin: share of the box's width and height added on each side; None: boxes are ignored.
    """

    size: int
    resize: str = "stretch"
    margin: float | None = 0.0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UserError(f"data.image_size should be at least 1 pixel. Found {self.size}.")
        if self.resize not in RESIZE:
            hint = did_you_mean(self.resize, RESIZE)
            raise UserError(f"data.resize should be one of {', '.join(RESIZE)}. Found {self.resize!r}.{hint}")
        if self.margin is not None and not 0 <= self.margin <= 10:
            raise UserError(f"data.box_margin should be a share of the box, 0 to 10, or null. Found {self.margin}.")

    def __call__(self, file: Path, box: np.ndarray | None = None, *, full: bool = False) -> np.ndarray:
        """
        Args:
            file: the picture.
            box: x1, y1, x2, y2 in pixels (x2, y2 exclusive), or None or NaN for the whole picture.
            full: decode JPEG files at their own size: the reference for what is done otherwise.

        Raises:
            DamagedImageError: naming the file and what is wrong with it or its box.
        """
        image = open_picture(file)
        window = (0, 0, *image.size)
        if box is not None and self.margin is not None and not np.isnan(box).any():
            window = crop_window(file, image.size, box, self.margin)
        width, height = window[2] - window[0], window[3] - window[1]
        inner = self._inner(width, height)
        factor = 1 if full else reduction(image, (width, height), (GAP * inner[0], GAP * inner[1]))
        image, orientation = load_pixels(file, image, factor)
        return np.array(self._square(*cut(image, window, factor, orientation)))

    def _inner(self, width: float, height: float) -> tuple[int, int]:
        """Width and height that a window of any unit gets in the result."""
        if self.resize != "pad":
            return self.size, self.size
        scale = self.size / max(width, height)
        return max(1, round(width * scale)), max(1, round(height * scale))

    def _square(self, image: Image.Image, window: tuple[float, float, float, float]) -> Image.Image:
        x1, y1, x2, y2 = window
        if self.resize == "crop":
            side = min(x2 - x1, y2 - y1)
            x1, y1 = x1 + (x2 - x1 - side) / 2, y1 + (y2 - y1 - side) / 2
            x2, y2 = x1 + side, y1 + side
        inner = self._inner(x2 - x1, y2 - y1)
        image = image.resize(inner, Image.Resampling.BILINEAR, box=(x1, y1, x2, y2))
        if image.mode != "RGB":
            image = image.convert("RGB")
        if inner == (self.size, self.size):
            return image
        canvas = Image.new("RGB", (self.size, self.size), PAD_COLOUR)
        canvas.paste(image, ((self.size - inner[0]) // 2, (self.size - inner[1]) // 2))
        return canvas
