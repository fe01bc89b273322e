"""One picture file to 8-bit pixels, every fault named; JPEG files smaller than they are where that is enough."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, TiffTags, features
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from mtlcar.data.file_bytes import regular_bytes, shown
from mtlcar.errors import UserError

MAX_PIXELS = 80_000_000
"""Larger pictures are refused: no dataset here has them, decompression bombs do (Pillow itself warns at 89 million)."""
MAX_BYTES = 8 * MAX_PIXELS
"""Of a file: no picture needs more, with four channels of 16 bit and no compression."""
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF")
"""What is opened, whatever a file's name ends in. Of what else Pillow knows, EPS would be run by Ghostscript as a
program, some formats tell their size only when they are decoded, and no data set uses the rest."""
REDUCTIONS = (8, 4, 2)
"""By how much a JPEG decoder can shrink a picture: it turns each block of 8 x 8 into fewer pixels."""

TILE = {tag.name: number for number, tag in TiffTags.TAGS_V2.items() if tag.name in ("TileWidth", "TileLength")}
PILLOW = re.compile(r"PIL\.")
SIXTEEN_TO_EIGHT = ((np.arange(65536) + 128) // 257).astype(np.uint8)


class DamagedImageError(UserError):
    """A picture that cannot be used; `reason` says why, without the file's name."""

    def __init__(self, file: Path | str, reason: str) -> None:
        super().__init__(f"{shown(file)}: {reason}")
        self.reason = reason


def open_picture(file: Path) -> Image.Image:
    """The picture of a file, its size known; a JPEG file's pixels are not decoded yet.

    Raises:
        DamagedImageError: no picture, or one of more than `MAX_PIXELS`.
    """
    try:
        data = regular_bytes(file, MAX_BYTES)
    except FileNotFoundError:
        there = "it is a link to what is not there" if file.is_symlink() else "there is no such file"
        raise DamagedImageError(file, there) from None
    except OSError as error:
        raise DamagedImageError(file, f"cannot be read ({error.strerror})") from None
    if not data:
        raise DamagedImageError(file, "the file is empty (0 bytes)")
    _quiet_pillow()
    with _faults_named(file):
        image = Image.open(io.BytesIO(data), formats=_formats())
        _refuse_large(file, image.width, image.height)
        if isinstance(image, TiffImageFile):  # of one tile all is decoded, however little of it is the picture
            tile = [image.tag_v2.get(TILE[side], 0) for side in ("TileWidth", "TileLength")]
            _refuse_large(file, *(int(side) for side in tile))
        if not isinstance(image, JpegImageFile):
            image.load()  # some formats tell their true size only now
            _refuse_large(file, image.width, image.height)
    return image


def _quiet_pillow() -> None:
    """Pillow warns of odd metadata and of large pictures; neither may decide, with Python's warning filters, whether
    a picture is used. Said for each picture again, because filters are the whole process's and others set them too."""
    ours = ("ignore", None, Warning, PILLOW, 0)
    if not warnings.filters or warnings.filters[0] != ours:
        warnings.filterwarnings("ignore", module=PILLOW.pattern)


def _formats() -> list[str]:
    """Those of `FORMATS` that this Pillow was built with."""
    return [name for name in FORMATS if name != "AVIF" or features.check("avif")]


def _refuse_large(file: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise DamagedImageError(file, f"{width} x {height} pixels, more than {MAX_PIXELS} are refused")


def reduction(image: Image.Image, window: tuple[int, int], enough: tuple[int, int]) -> int:
    """The largest reduction of a JPEG picture (1, 2, 4 or 8) whose `window` keeps `enough` pixels.

    Args:
        image: as `open_picture` gave it; of any other format: 1.
        window: width and height of what is needed of it, pixels of the full picture.
        enough: width and height that must remain of the window.
    """
    if isinstance(image, JpegImageFile):
        for factor in REDUCTIONS:
            if window[0] >= factor * enough[0] and window[1] >= factor * enough[1]:
                return factor
    return 1


def load_pixels(file: Path, image: Image.Image, factor: int = 1) -> tuple[Image.Image, int]:
    """The decoded picture in mode RGB or L as stored, and its EXIF orientation (1: upright), not yet applied.

    Args:
        factor: the sides are 1/factor of the picture's, rounded up (`reduction`); pixel i covers i to i + 1 of
            1/factor of the full picture, so that the last one may reach beyond its edge.
    """
    with _faults_named(file):
        if factor > 1:
            small = (-(-image.width // factor), -(-image.height // factor))
            image.draft(None, (image.width // factor, image.height // factor))
            image.load()
            if image.size != small:  # the window would be cut out of the wrong place
                raise ValueError(f"Pillow made {image.size} pixels of it where {small} were asked for")
        image.load()
        return _to_8_bit(image), _orientation(image)


@contextmanager
def _faults_named(file: Path) -> Iterator[None]:
    try:
        yield
    except (DamagedImageError, MemoryError):
        raise
    except Image.UnidentifiedImageError:
        known = ", ".join(_formats())
        raise DamagedImageError(file, f"not a picture of a known format ({known})") from None
    except Image.DecompressionBombError as error:
        raise DamagedImageError(file, f"{error}; more than {MAX_PIXELS} pixels are refused") from None
    except Exception as error:  # Pillow's plugins raise nearly anything on damaged files
        raise DamagedImageError(file, f"cannot be decoded ({error})") from None


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a damaged EXIF block does not make the pixels unusable
        return 1


def _to_8_bit(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"pixels from {values.min()} to {values.max()}; save it with 8 or 16 bit a channel")
        grey, clear = SIXTEEN_TO_EIGHT[values], image.info.get("transparency")
        if isinstance(clear, int):  # one value of PNG files; Pillow's own conversion clips what is above 255
            grey[values == clear] = 255
        return Image.fromarray(grey)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if image.mode in ("RGB", "L"):  # a copy of a large picture takes as long as resizing it
        return image
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; save it with 8 or 16 bit a channel")
    return image.convert("RGB")
