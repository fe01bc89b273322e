"""Pictures with what a network looks at: one row a picture, one column a task."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FADED = 0.12
"""Contrast of what has no weight, as a share of the picture's."""
GREY = 150.0
"""What it fades to, of 255."""
SIDE = 2.1
"""Inches of one picture."""
NOTE = (
    "Grad-CAM: the clearer a place, the more it speaks for the predicted class, or raises the predicted value, as a "
    "share of the map's largest number; grey: not at all; line: half. Each map has a scale of its own and {grid} "
    "positions."
)


def to_size(cam: np.ndarray, size: int) -> np.ndarray:
    """Maps [B, H, W], at least 0 -> [B, size, size] as shares of each one's largest value (of that before resizing);
    a map of zeros stays one. Bilinear.

    pytorch-grad-cam subtracts the smallest value too, which makes a pattern out of a map that is the same everywhere.
    """
    largest = cam.max(axis=(1, 2), keepdims=True)
    share = np.divide(cam, largest, out=np.zeros_like(cam), where=largest > 0)
    large = F.interpolate(torch.from_numpy(share)[:, None], size=(size, size), mode="bilinear", align_corners=False)
    return large[:, 0].numpy()


def faded(picture: np.ndarray, share: np.ndarray) -> np.ndarray:
    """uint8 picture [S, S, 3] and shares [S, S] in 0..1 -> uint8 [S, S, 3], flat grey where the share is 0. Contrast
    and not colour, so that it can be printed in black; and not brightness, which a dark car has none of to lose."""
    contrast = FADED + (1 - FADED) * share[:, :, None]
    return np.rint(GREY + (picture - GREY) * contrast).astype(np.uint8)


def overlay_figure(
    pictures: Sequence[np.ndarray],
    names: Sequence[str],
    shares: Sequence[Sequence[np.ndarray]],
    titles: Sequence[Sequence[str]],
    grid: str,
) -> "Figure":
    """
    Args:
        pictures: n, uint8 [S, S, 3].
        names: titles of the pictures, n.
        shares: per task the maps of all pictures, [S, S] in 0..1.
        titles: per task those of all pictures.
        grid: "3 x 3", the maps' positions.
    """
    import textwrap

    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from mtlcar.report.figures import FONTS

    across, down = 1 + len(shares), len(pictures)
    lines = 1 + max((t.count("\n") for column in (names, *titles) for t in column), default=0)
    width = across * (SIDE + 0.1)
    note = textwrap.fill(NOTE.format(grid=grid), int(width / 0.06))
    with rc_context(cast(Any, {**FONTS, "axes.titlesize": 8})):
        height = down * (SIDE + 0.155 * lines + 0.2) + 0.12 * (note.count("\n") + 1) + 0.1
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(down, across, squeeze=False)
        for i, picture in enumerate(pictures):
            axes[i][0].imshow(picture)
            axes[i][0].set_title(names[i])
            for t, (columns, words) in enumerate(zip(shares, titles, strict=True), start=1):
                share = columns[i]
                axes[i][t].imshow(faded(picture, share))
                axes[i][t].set_title(words[i])
                if share.max() > 0.5 > share.min():
                    for thick, colour in ((2.4, "black"), (1.0, "white")):
                        axes[i][t].contour(share, [0.5], colors=colour, linewidths=thick)
                if not share.any():
                    where = axes[i][t].transAxes
                    axes[i][t].text(0.5, 0.04, "zero everywhere", ha="center", transform=where, fontsize=7)
        for ax in axes.flat:
            ax.set_xticks([])
            ax.set_yticks([])
            for spine in ax.spines.values():
                spine.set_visible(False)
        figure.supxlabel(note, fontsize=7)
    return figure
