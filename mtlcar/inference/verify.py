"""Whether an exported file says what the network says."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

TOLERANCE = 1e-4
"""Largest difference of a score, and of a value as a share of the largest one compared."""
SIZES = ((1, 1.0, 1.0), (3, 2.3, 1.7), (2, 0.6, 1.3))
"""Images, height and width as shares of the network's own, of what is compared."""


class ExportFailedError(Exception):
    """The file's outputs are not the network's."""


def compare(module: Callable[[Tensor], dict[str, Tensor]], exported: Any, size: int) -> float:
    """The largest difference on made-up pictures of several sizes: of scores as it is, of values as a share of the
    largest one.

    Classes should be equal, unless the scores of the two differ by less than `TOLERANCE`.

    Args:
        module: what was exported.
        exported: an `ExportedNetwork`.

    Raises:
        ExportFailedError: a difference above `TOLERANCE`, or another class.
    """
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    expected: dict[str, list[np.ndarray]] = {}
    found: dict[str, list[np.ndarray]] = {}
    for images, high, wide in SIZES:
        shape = (images, 3, max(1, round(high * size)), max(1, round(wide * size)))
        smooth = torch.rand(images, 3, 4, 5, generator=generator)
        picture = torch.nn.functional.interpolate(smooth, size=shape[2:], mode="bilinear") * 255
        noise = 40 * torch.randn(shape, generator=generator)
        pixels = (picture + noise).clamp(0, 255).to(torch.uint8)
        for into, outputs in ((expected, module(pixels)), (found, exported.outputs(pixels.numpy()))):
            for name, value in outputs.items():
                into.setdefault(name, []).append(np.asarray(value))
    if list(found) != list(expected):
        raise ExportFailedError(f"Its outputs are {', '.join(found)}; expected {', '.join(expected)}.")
    for name, parts in expected.items():
        a, b = np.concatenate(parts), np.concatenate(found[name])
        if a.shape != b.shape or a.dtype != b.dtype:
            raise ExportFailedError(f"{name} is {b.dtype} {b.shape}; expected {a.dtype} {a.shape}.")
        if a.dtype.kind == "i":
            _same_classes(name, a, b, expected)
        else:
            largest = max(largest, _difference(name, a.astype(np.float64), b.astype(np.float64)))
    return largest


def _same_classes(name: str, a: np.ndarray, b: np.ndarray, expected: Mapping[str, list[np.ndarray]]) -> None:
    scores = next(
        (np.concatenate(expected[f"{name}_{k}"]) for k in ("probabilities", "scores") if f"{name}_{k}" in expected),
        None,
    )
    for i in np.flatnonzero(a != b):
        tie = scores is not None and min(a[i], b[i]) >= 0 and abs(scores[i, a[i]] - scores[i, b[i]]) <= TOLERANCE
        if not tie:
            raise ExportFailedError(f"{name} is class {b[i]} where the network says {a[i]} (picture {i}).")


def _difference(name: str, a: np.ndarray, b: np.ndarray) -> float:
    same = np.isnan(a) & np.isnan(b)
    a, b = a[~same], b[~same]
    if not len(a):
        return 0.0
    size = 1.0 if a.ndim > 1 or name.endswith(("_probabilities", "_scores")) else max(1e-12, float(np.abs(a).max()))
    largest = float(np.abs(a - b).max()) / size
    if not (math.isfinite(largest) and largest <= TOLERANCE):
        raise ExportFailedError(
            f"{name} differs from the network's by {largest:.2g} (at most {TOLERANCE:g} is allowed)."
        )
    return largest
