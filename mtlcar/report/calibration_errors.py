"""How far a network's confidence is from its accuracy: errors, and their intervals over test images.

Guo et al. 2017, "On Calibration of Modern Neural Networks", https://arxiv.org/abs/1706.04599.
"""

import math
from dataclasses import dataclass

import numpy as np

from mtlcar.report.class_scores import read_scores
from mtlcar.report.collect import Run
from mtlcar.report.intervals import LEVEL, over_images

BINS = 15
"""As in Guo et al."""
LEAST = 1e-38
"""Probabilities below count as this one, so that a true class given none costs 87.5 nats and not infinitely many."""


@dataclass(frozen=True)
class Answers:
    """What a run said of N test images of a task: those with a label, a predicted class and a confidence.

    Attributes:
        confidence: float64 [N], the probability that the network gave the class it predicted.
        right: bool [N].
        brier: [N], sum over classes of (probability - 1 if true, else 0)^2: 0 to 2 (Brier 1950). None without scores.
        nll: [N], -ln of the true class's probability, nats. None without scores.
        groups: int [N], which images are not independent. None where all are.
        left_out: labelled images without a predicted class (-1) or a confidence.
    """

    confidence: np.ndarray
    right: np.ndarray
    brier: np.ndarray | None = None
    nll: np.ndarray | None = None
    groups: np.ndarray | None = None
    left_out: int = 0


def answers(run: Run, task: str) -> Answers | None:
    """Read from predictions.parquet, the class scores too, which are not kept. None without a confidence."""
    df = run.predictions
    if df is None or task not in run.tasks:
        return None
    if any(f"{task}/{column}" not in df for column in ("confidence", "target", "prediction")):
        return None
    target, predicted = (df[f"{task}/{c}"].fillna(-1).to_numpy(np.int64) for c in ("target", "prediction"))
    confidence = df[f"{task}/confidence"].to_numpy(np.float64)
    used = (target >= 0) & (predicted >= 0) & np.isfinite(confidence)
    if not used.any():
        return None
    brier, nll = None, None
    scores = read_scores(run, [task]).get(task)
    if scores is not None:
        true = scores[np.arange(len(df)), np.maximum(target, 0)].astype(np.float64)
        # sum (p - y)^2 = sum p^2 - 2 p_true + 1: no second table of the size of the scores
        brier = (np.einsum("nc,nc->n", scores, scores, dtype=np.float64) - 2 * true + 1)[used]
        nll = -np.log(np.maximum(true, LEAST))[used]
    groups = None if run.groups is None else run.groups[used]
    left_out = int(((target >= 0) & ~used).sum())
    return Answers(confidence[used], (predicted == target)[used], brier, nll, groups, left_out)


def equal_width(confidence: np.ndarray, bins: int = BINS) -> np.ndarray:
    """The bin of each confidence [N]: bin m of M holds those in (m/M, (m + 1)/M], the first one 0 too."""
    return np.clip(np.searchsorted(np.linspace(0, 1, bins + 1), confidence, side="left") - 1, 0, bins - 1)


def equal_mass(confidence: np.ndarray, bins: int = BINS) -> np.ndarray:
    """The bin of each confidence [N]: between quantiles, so that bins have equally many images; equal ones share a bin
    (Nixon et al. 2019, https://arxiv.org/abs/1904.01685)."""
    edges = np.quantile(confidence, np.linspace(0, 1, bins + 1)[1:-1])
    return np.searchsorted(edges, confidence, side="left")


def expected_error(confidence: np.ndarray, right: np.ndarray, bin_of: np.ndarray) -> float:
    """Mean over images of |accuracy - mean confidence| of their bin (Guo et al., eq. 5), a fraction."""
    return float(np.abs(np.bincount(bin_of, weights=right - confidence)).sum() / len(confidence))


def maximum_error(confidence: np.ndarray, right: np.ndarray, bin_of: np.ndarray) -> float:
    """The largest |accuracy - mean confidence| of a bin that has images (Guo et al., eq. 6), a fraction."""
    gaps, images = np.bincount(bin_of, weights=right - confidence), np.bincount(bin_of)
    return float((np.abs(gaps) / np.maximum(images, 1)).max())


def chance_error(confidence: np.ndarray, resamples: int = 200, seed: int = 0) -> float:
    """The expected ECE of a perfectly calibrated network with these confidences [N] on as many images.

    Not 0, because each bin's accuracy is of finitely many images (Vaicenavicius et al. 2019,
    https://arxiv.org/abs/1902.06977). The images are taken as independent: with groups it would be larger.
    """
    rng, bin_of = np.random.default_rng(seed), equal_width(confidence)
    drawn = (expected_error(confidence, rng.random(len(confidence)) < confidence, bin_of) for _ in range(resamples))
    return float(np.mean(list(drawn)))


def measures(a: Answers) -> dict[str, float]:
    """Fractions, but for `brier` and `nll`, which only scores give."""
    width = equal_width(a.confidence)
    found = {
        "accuracy": float(a.right.mean()),
        "confidence": float(a.confidence.mean()),
        "gap": float(a.confidence.mean() - a.right.mean()),
        "ece": expected_error(a.confidence, a.right, width),
        "chance": chance_error(a.confidence),
        "adaptive": expected_error(a.confidence, a.right, equal_mass(a.confidence)),
        "mce": maximum_error(a.confidence, a.right, width),
    }
    return found | {k: float(v.mean()) for k, v in (("brier", a.brier), ("nll", a.nll)) if v is not None}


def interval(key: str, a: Answers) -> tuple[float, float]:
    """95 % interval of a measure over the images of one seed (over its groups, where there are): `ece`, `adaptive`, and
    those that are means over images."""
    if key == "ece":
        return binned_interval(a, equal_width(a.confidence))
    if key == "adaptive":
        return binned_interval(a, equal_mass(a.confidence))
    values = {"gap": a.confidence - a.right, "brier": a.brier, "nll": a.nll}.get(key)
    return (math.nan, math.nan) if values is None else over_images(values, a.groups)


def binned_interval(a: Answers, bin_of: np.ndarray, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """95 % interval of an expected calibration error, a fraction: basic bootstrap, 2 error - quantiles, from 0.

    The error is biased upwards, and a resample's twice, so that the percentile interval lies above the truth: simulated
    with 300 to 3,000 images and true errors of 2 to 15 %, it held them in 0 to 95 % of the cases, this one in 78 to
    96 %; a true error of 0 in none, this one in half. It is widened to hold the error itself. NaN for one group alone.
    """
    code = np.arange(len(a.right)) if a.groups is None else np.unique(a.groups, return_inverse=True)[1]
    count, bins = int(code.max()) + 1, int(bin_of.max()) + 1
    if count < 2:
        return math.nan, math.nan
    sums = np.bincount(code * bins + bin_of, weights=a.right - a.confidence, minlength=count * bins)
    sums, sizes = sums.reshape(count, bins), np.bincount(code)
    rng, errors = np.random.default_rng(seed), []
    for _ in range(resamples):
        times = np.bincount(rng.integers(0, count, count), minlength=count)
        errors.append(np.abs(times @ sums).sum() / (times @ sizes))
    error = float(np.abs(sums.sum(0)).sum() / sizes.sum())
    high, low = (2 * error - float(q) for q in np.quantile(errors, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2]))
    return min(max(0.0, low), error), max(high, error)
