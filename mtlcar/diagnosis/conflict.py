"""How far two tasks' gradients agree, and how much of each is noise."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from mtlcar.diagnosis.gradients import Gradients

ALL = "all shared"
"""The part that holds every shared parameter."""


def conflict_table(gradients: Gradients, tasks: Sequence[str], layers: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """A row for each pair of tasks and each of: all shared parameters, part of the network, parameter tensor.

    Columns, where a and b are the tasks and numbers are of gradients of the raw losses (no task's weight is in them):
        level, part, parameter, elements: `all`, `part` or `tensor`; what it is, and how many numbers.
        task_a, task_b, batches: the pair; batches in which both have a gradient.
        norm_a, norm_b: mean over the batches of the gradient's norm.
        cosine, cosine_low, cosine_high: of the angle between them, the mean, least and greatest over the batches.
        cosine_of_mean: that of the two gradients averaged over the batches.
        conflict: share of the batches in which the cosine is negative (Yu et al. 2020, arXiv 2001.06782, definition 1).
        gms: gradient magnitude similarity 2 |a| |b| / (|a|^2 + |b|^2) (definition 2 there), its mean: 1 where the norms
            are equal, near 0 where one rules.
        noise_a, noise_b: `noise_share`.
    """
    rows = []
    parts = {ALL: list(gradients.names), **layers}
    part_of = {name: part for part, names in layers.items() for name in names}
    size = dict(zip(gradients.names, gradients.elements.tolist(), strict=True))
    cells = [("all" if part == ALL else "part", part, "", list(names)) for part, names in parts.items()]
    cells += [("tensor", part_of[name], name, [name]) for name in gradients.names]
    for level, part, parameter, names in cells:
        each, mean = gradients.of(names)
        common = {"level": level, "part": part, "parameter": parameter, "elements": sum(size[n] for n in names)}
        for i, j in combinations(range(len(tasks)), 2):
            rows.append({**common, "task_a": tasks[i], "task_b": tasks[j], **pair_statistics(each, mean, i, j)})
    return pd.DataFrame(rows)


def pair_statistics(each: np.ndarray, mean: np.ndarray, i: int, j: int) -> dict[str, Any]:
    """Of Gramians `each` [N, T, T] and that of the mean gradients [T, T]: the numbers of `conflict_table`, NaN where no
    batch has a gradient of both tasks."""
    a, b = np.sqrt(each[:, i, i]), np.sqrt(each[:, j, j])
    both = (a > 0) & (b > 0)
    there = bool(both.any())
    cosines = np.clip(each[both, i, j] / (a[both] * b[both]), -1, 1)
    similarity = 2 * a[both] * b[both] / (a[both] ** 2 + b[both] ** 2)
    product = np.sqrt(mean[i, i] * mean[j, j])
    return {
        "batches": int(both.sum()),
        "norm_a": float(a.mean()),
        "norm_b": float(b.mean()),
        "cosine": float(cosines.mean()) if there else np.nan,
        "cosine_low": float(cosines.min()) if there else np.nan,
        "cosine_high": float(cosines.max()) if there else np.nan,
        "cosine_of_mean": float(np.clip(mean[i, j] / product, -1, 1)) if product > 0 else np.nan,
        "conflict": float((cosines < 0).mean()) if there else np.nan,
        "gms": float(similarity.mean()) if there else np.nan,
        "noise_a": noise_share(each[:, i, i], float(mean[i, i])),
        "noise_b": noise_share(each[:, j, j], float(mean[j, j])),
    }


def noise_share(squares: np.ndarray, mean_square: float) -> float:
    """Which share of a batch gradient's expected squared norm is variation between batches, in [0, 1]:

        N / (N - 1) (mean_n |g_n|^2 - |mean_n g_n|^2) / mean_n |g_n|^2

    its unbiased variance (of batches drawn with replacement) over the mean of its square; where chance makes it more
    than 1, it is 1. It is the noise scale B_simple of McCandlish et al. 2018 (arXiv 1812.06162) at batch size B as
    B_simple / (B_simple + B).

    Args:
        squares: |g_n|^2 of N batches.
        mean_square: |mean_n g_n|^2.

    Returns:
        NaN for fewer than two batches, or no gradient.
    """
    n, power = len(squares), float(squares.mean())
    if n < 2 or power == 0:
        return float("nan")
    return float(np.clip(n / (n - 1) * (power - mean_square) / power, 0, 1))
