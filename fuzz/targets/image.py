"""Bytes of a picture -> square pixels, in several sizes and shapes, with and without a box."""

import io
from collections.abc import Iterable
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image

from fuzz.folders import folder
from mtlcar.data import picture
from mtlcar.data.decode import ImageDecoder
from mtlcar.data.picture import DamagedImageError

INSTRUMENT = ("mtlcar.data", "PIL")
DECODERS = (ImageDecoder(8), ImageDecoder(3, "pad", 0.5), ImageDecoder(5, "crop", None))
BOXES = (None, np.array([2, 1, 20, 12.0]), np.array([-1e9, 0, 1e9, np.inf]))

ENOUGH = 300_000
"""Pixels: large pictures are as good as small ones, and slow."""
file = folder("image") / "x.jpg"


def try_one(data: bytes) -> None:
    file.write_bytes(data)
    for decoder, box in zip(DECODERS, BOXES, strict=True):
        try:
            with patch.object(picture, "MAX_PIXELS", ENOUGH):
                pixels = decoder(file, box)
        except DamagedImageError as error:
            said = str(error)
            assert len(said) < 2000
        else:
            assert pixels.shape == (decoder.size, decoder.size, 3)
            assert pixels.dtype == np.uint8


def seeds() -> Iterable[bytes]:
    x, y = np.meshgrid(np.linspace(0, 255, 24), np.linspace(0, 255, 16))
    colours = Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    grey16 = Image.fromarray((x * 257).astype(np.uint16))
    pictures: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (colours, "JPEG", {"exif": exif}),
        (colours, "JPEG", {"progressive": True}),
        (colours.convert("CMYK"), "JPEG", {}),
        (colours.resize((160, 120)), "JPEG", {}),
        (colours, "PNG", {"exif": exif}),
        (colours.convert("RGBA"), "PNG", {}),
        (colours.convert("LA"), "PNG", {}),
        (colours.convert("1"), "PNG", {}),
        (colours.quantize(8), "PNG", {"transparency": 0}),
        (grey16, "PNG", {"transparency": 257}),
        (colours.quantize(8), "GIF", {"save_all": True, "append_images": [colours.quantize(4)]}),
        (colours, "TIFF", {"exif": exif}),
        (colours, "TIFF", {"compression": "tiff_lzw"}),
        (colours, "TIFF", {"compression": "jpeg"}),
        (grey16, "TIFF", {}),
        (Image.fromarray(x.astype(np.float32)), "TIFF", {}),
        (colours, "WEBP", {}),
        (colours, "WEBP", {"lossless": True}),
        (colours, "BMP", {}),
        (colours.quantize(8), "BMP", {}),
        (colours, "PPM", {}),
        (grey16, "PPM", {}),
        (colours, "JPEG2000", {}),
    ]
    for image, kind, options in pictures:
        out = io.BytesIO()
        image.save(out, format=kind, **options)
        yield out.getvalue()
    yield b"P3 2 2 255 1 2 3 4 5 6 7 8 9 10 11 12"
    yield b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
