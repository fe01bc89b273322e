"""One picture file to one square uint8 array; the cache, streaming and prediction all go through here."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from mtlcar.errors import UserError, did_you_mean

RESIZE = ("stretch", "pad", "crop")
BOX_TOLERANCE = 0.05
"""Share of its own side by which a box may leave the picture; it is clipped then."""
MAX_PIXELS = 80_000_000
"""Larger pictures are refused: no dataset here has them, decompression bombs do (Pillow itself warns at 89 million)."""
PAD_COLOUR = (128, 128, 128)
ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what makes the picture upright."""
DECODE_VERSION = 1
"""Raised whenever the same file would give other pixels; part of the cache's key."""


class DamagedImageError(UserError):
    """A picture that cannot be used; `reason` says why, without the file's name."""

    def __init__(self, file: Path | str, reason: str) -> None:
        super().__init__(f"{file}: {reason}")
        self.reason = reason


@dataclass(frozen=True)
class ImageDecoder:
    """Picture file -> uint8 RGB [S, S, 3].

    Grey, palette, CMYK and 16-bit pictures become 8-bit RGB (16 bit: the full range 0..65535 scaled to 0..255),
    transparency is laid on white, the box is cut out, the EXIF orientation is applied, and what remains is
    resized by antialiased bilinear interpolation. A box counts pixels of the picture as stored, before
    the orientation is applied, because that is what annotation tools of these datasets read.

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

    def __call__(self, file: Path, box: np.ndarray | None = None) -> np.ndarray:
        """
        Args:
            file: the picture.
            box: x1, y1, x2, y2 in pixels (x2, y2 exclusive), or None or NaN for the whole picture.

        Raises:
            DamagedImageError: naming the file and what is wrong with it or its box.
        """
        image, orientation = open_rgb(file)
        if box is not None and self.margin is not None and not np.isnan(box).any():
            image = image.crop(crop_window(file, image.size, box, self.margin))
        if orientation in ORIENTATIONS:
            image = image.transpose(ORIENTATIONS[orientation])
        return np.array(self._square(image))

    def _square(self, image: Image.Image) -> Image.Image:
        size = (self.size, self.size)
        if self.resize == "stretch":
            return image.resize(size, Image.Resampling.BILINEAR)
        if self.resize == "crop":
            return ImageOps.fit(image, size, Image.Resampling.BILINEAR)
        scale = self.size / max(image.size)
        inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        canvas = Image.new("RGB", size, PAD_COLOUR)
        corner = ((self.size - inner[0]) // 2, (self.size - inner[1]) // 2)
        canvas.paste(image.resize(inner, Image.Resampling.BILINEAR), corner)
        return canvas


def open_rgb(file: Path) -> tuple[Image.Image, int]:
    """The decoded picture in mode RGB as stored, and its EXIF orientation (1: upright), not yet applied."""
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise DamagedImageError(file, "there is no such file") from None
    except OSError as error:
        raise DamagedImageError(file, f"cannot be read ({error.strerror})") from None
    if not data:
        raise DamagedImageError(file, "the file is empty (0 bytes)")
    try:
        image = Image.open(io.BytesIO(data))
        if image.width * image.height > MAX_PIXELS:
            raise DamagedImageError(file, f"{image.width} x {image.height} pixels, more than {MAX_PIXELS} are refused")
        image.load()
        return _to_rgb(image), _orientation(image)
    except (DamagedImageError, MemoryError):
        raise
    except Image.UnidentifiedImageError:
        raise DamagedImageError(file, "not a picture, or in an unknown format") from None
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
        raise DamagedImageError(file, f"cannot be decoded ({error})") from None


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a damaged EXIF block does not make the pixels unusable
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"pixels from {values.min()} to {values.max()}; save it with 8 or 16 bit a channel")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; save it with 8 or 16 bit a channel")
    return image.convert("RGB")


def crop_window(
    file: Path | str, size: tuple[int, int], box: np.ndarray, margin: float = 0.0
) -> tuple[int, int, int, int]:
    """The pixel window (x1, y1, x2, y2) of a picture of `size` (width, height) that a box stands for.

    A box that leaves the picture by at most 5 % of its own side is clipped: publishers' boxes are off by pixels.

    Raises:
        DamagedImageError: an empty box, or one further outside.
    """
    width, height = size
    x1, y1, x2, y2 = (float(v) for v in box)
    w, h = x2 - x1, y2 - y1
    where = f"box ({x1:g}, {y1:g}, {x2:g}, {y2:g}) (x1, y1, x2, y2) in a picture of {width} x {height} pixels"
    if not (w > 0 and h > 0):
        raise DamagedImageError(file, f"empty {where}")
    if max(-x1, x2 - width) > BOX_TOLERANCE * w or max(-y1, y2 - height) > BOX_TOLERANCE * h:
        raise DamagedImageError(file, f"the box is outside the picture: {where}")
    window = (
        max(0, int(np.floor(x1 - margin * w))),
        max(0, int(np.floor(y1 - margin * h))),
        min(width, int(np.ceil(x2 + margin * w))),
        min(height, int(np.ceil(y2 + margin * h))),
    )
    if window[0] >= window[2] or window[1] >= window[3]:
        raise DamagedImageError(file, f"the box is outside the picture: {where}")
    return window
