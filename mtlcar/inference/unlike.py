"""Whether a picture is like those that a network was trained on: its distance from them in the trunk's features.

The features of a trunk, averaged over positions and scaled to length 1, lie around a mean for each class. The score of
a picture is the Mahalanobis distance of its features from the nearest mean, with one covariance for all classes (Lee et
al. 2018, arXiv 1807.03888, eq. 2; scaled first as in Mueller & Hein 2025, arXiv 2505.18032). The covariance has its
`RANK` largest eigenvalues, and the mean of the rest in all other directions, as probabilistic PCA has it (Tipping &
Bishop 1999): of a thousand features and a few thousand images the small ones are noise, and the file stays small.

A picture is unlike the training images where its score is above that of 99 % of the validation images, which took no
part in training but in choosing the checkpoint. So about one picture in a hundred that is alike is flagged as well, and
more where validation images are closer to the training images than new ones are (tiles of the same specimens).

How well it works, on EfficientNet-Lite0 fine-tuned for four epochs on 96-pixel Stanford Cars (parallel heads, two
seeds, 63 and 64 % of 196 models right): area under the ROC curve against 651 test cars, and share flagged.

    test cars                1.1 and 1.2 %              drawn cars        0.96 and 1.00, 37 and 99 %
    steel micrographs        1.00, 98 and 96 %          cars upside down  0.92 and 0.92, 20 and 32 %
    noise, flat colour, text 1.00, 100 %                cars in patches   0.93 and 0.93, 20 and 30 %
    blobs of colour          0.99, 1.00; 69 and 100 %   negatives of cars 0.77 and 0.79, 6 and 7 %

Other scores on the first network's features flag less: not scaled to length 1, 6 % of the steel and none of noise and
text (features of such pictures are short); relative Mahalanobis (Ren et al. 2021) 56 % of the steel, 3 % of the text;
the tenth nearest neighbour (Sun et al. 2022) 78 % and 100 %; the largest class probability 8 % and 100 %. What is found
is what looks different, not a car of an unknown model.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtlcar.errors import UserError
from mtlcar.runs.files import replacing

FILE = "reference.safetensors"
"""In a run directory."""
RANK = 128
PER_DIRECTION = 4
"""Images (beyond those that the means take) for each principal direction, at least."""
LIKE = 0.99
"""Share of validation images that are to count as alike."""


@dataclass(frozen=True)
class Reference:
    """What is kept of the training images. D features, C classes, R directions.

    Attributes:
        means: float32 [C, D], of features of length 1.
        factor: float32 [R, D], principal directions times sqrt(1 / rest - 1 / eigenvalue).
        rest: the variance in all other directions.
        threshold: scores above it are unlike; infinite before there is one.
        images, held_out: training and validation images it comes from.
        mark: of the network's parameters, see `reference.mark_of`.
    """

    means: Tensor
    factor: Tensor
    rest: float
    threshold: float = math.inf
    images: int = 0
    held_out: int = 0
    mark: str = ""

    def scores(self, features: np.ndarray | Tensor) -> np.ndarray:
        """Features [B, D], of any length -> distances float64 [B]; infinite for features that are no numbers."""
        z = _unit(torch.as_tensor(features))
        means, factor = self.means.double(), self.factor.double()
        # 1 / eigenvalue = 1 / rest - weight: distance in all directions alike, less what the principal ones take off
        squared = _squared_distances(z, means) / self.rest - _squared_distances(z @ factor.T, means @ factor.T)
        score = squared.clamp(min=0).amin(1).sqrt()
        found: np.ndarray = torch.where(score.isfinite(), score, torch.inf).numpy()
        return found


def fit(features: Tensor, classes: Tensor) -> Reference:
    """The model of training features [n, D] of classes int64 [n]; no threshold yet.

    Raises:
        ValueError: fewer than two images more than classes; features that are no numbers, or equal within classes.
    """
    z = _unit(features)
    names, index = classes.unique(return_inverse=True)
    count = torch.bincount(index).double()
    means = torch.zeros(len(names), z.shape[1], dtype=torch.float64).index_add_(0, index, z) / count[:, None]
    inside = z - means[index]
    degrees = len(z) - len(names)
    if degrees < 2:
        raise ValueError(f"{len(z)} images of {len(names)} classes are too few for a covariance.")
    if not z.isfinite().all():
        raise ValueError("Features are no numbers.")
    covariance = inside.T @ inside / degrees
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0), vectors.flip(1)
    # directions of a small sample have more variance in it than in other images, and all others less, or none
    rank = min(RANK, z.shape[1] - 1, degrees // PER_DIRECTION)
    rest = float(values[rank:].mean().clamp(min=1e-6 * values[0]))
    if values[0] < 1e-12:  # rounding: features are of length 1
        raise ValueError("Features do not differ within their classes.")
    weight = (1 / rest - 1 / values[:rank].clamp(min=rest)).sqrt()
    return Reference(means.float(), (vectors[:, :rank] * weight).T.float().contiguous(), rest, images=len(z))


def threshold(scores: np.ndarray) -> float:
    """What `LIKE` of new images like these stay below: the ceil(0.99 (n + 1))-th smallest of n held-out scores; the
    largest where n is below 99."""
    ordered = np.sort(scores)
    return float(ordered[min(len(ordered), math.ceil(LIKE * (len(ordered) + 1))) - 1]) if len(ordered) else math.inf


def save(reference: Reference, run_dir: Path) -> Path:
    from safetensors.torch import save as to_bytes

    numbers = {k: getattr(reference, k) for k in ("rest", "threshold", "images", "held_out", "mark")}
    path = run_dir / FILE
    with replacing(path) as temporary:
        tensors = {"means": reference.means, "factor": reference.factor}
        text = json.dumps({"schema": 1, **numbers})
        temporary.write_bytes(to_bytes(tensors, metadata={"mtlcar.reference": text}))
    return path


def read_reference(run_dir: Path) -> Reference | None:
    """What `save` wrote; None where there is no such file.

    Raises:
        UserError: it is damaged or of another kind.
    """
    from safetensors import SafetensorError, safe_open

    path = run_dir / FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            numbers: dict[str, Any] = json.loads((file.metadata() or {})["mtlcar.reference"])
            tensors = {name: file.get_tensor(name) for name in ("means", "factor")}
        if numbers.pop("schema") != 1:
            raise ValueError("of another version of mtlcar")
        return Reference(**tensors, **numbers)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read ({error}). Remove it: `mtlcar predict` makes it again if the run's data are there."
        ) from error


def _unit(features: Tensor) -> Tensor:
    """float64, of length 1; features of length 0 stay, and those that are no numbers become NaN."""
    wide = features.detach().cpu().double()
    return wide / wide.norm(dim=1, keepdim=True).clamp(min=1e-12)


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    return a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T
