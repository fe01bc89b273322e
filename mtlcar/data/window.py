"""The part of a picture that a box stands for: in its own pixels, in those of a smaller decoding, and upright."""

from math import ceil, floor
from pathlib import Path

import numpy as np
from PIL import Image

from mtlcar.data.picture import DamagedImageError

BOX_TOLERANCE = 0.05
"""Share of its own side by which a box may leave the picture; it is clipped then."""
ORIENTATIONS = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT, (2, 1, 0, 3)),
    3: (Image.Transpose.ROTATE_180, (2, 3, 0, 1)),
    4: (Image.Transpose.FLIP_TOP_BOTTOM, (0, 3, 2, 1)),
    5: (Image.Transpose.TRANSPOSE, (1, 0, 3, 2)),
    6: (Image.Transpose.ROTATE_270, (3, 0, 1, 2)),
    7: (Image.Transpose.TRANSVERSE, (3, 2, 1, 0)),
    8: (Image.Transpose.ROTATE_90, (1, 2, 3, 0)),
}
"""EXIF orientation -> what makes the picture upright, and the old edge (left 0, top 1, right 2, bottom 3) that is
then its left, top, right and bottom one."""


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


def cut(
    image: Image.Image, window: tuple[int, int, int, int], factor: int, orientation: int
) -> tuple[Image.Image, tuple[float, float, float, float]]:
    """Cuts a window out and turns it upright -> the picture, and the window (x1, y1, x2, y2) in its pixels.

    The window's edges fall between the pixels of a picture decoded at 1/factor. Cutting whole pixels shifts and
    stretches what is seen: photographs then differ from full decoding by 1.2 of 255, with exact edges by 0.2. So the
    cut is outward, to whole pixels, and the resize begins and ends at the exact edges within it.

    Args:
        image: the picture at 1/factor, as stored.
        window: pixels of the full picture, as stored.
        orientation: EXIF; unknown values count as upright.
    """
    x1, y1, x2, y2 = (v / factor for v in window)
    whole = (floor(x1), floor(y1), ceil(x2), ceil(y2))
    beyond: tuple[float, ...] = (x1 - whole[0], y1 - whole[1], whole[2] - x2, whole[3] - y2)
    if whole != (0, 0, *image.size):
        image = image.crop(whole)
    if orientation in ORIENTATIONS:
        turn, edges = ORIENTATIONS[orientation]
        image = image.transpose(turn)
        beyond = tuple(beyond[edge] for edge in edges)
    return image, (beyond[0], beyond[1], image.width - beyond[2], image.height - beyond[3])
