"""What goes into an exported file: one module, from pictures of any size to predictions in the labels' units."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mtlcar.inference.network import TrainedNetwork
from mtlcar.inference.resize import Resize
from mtlcar.metrics.hierarchy import imply
from mtlcar.metrics.scored_levels import FLOOR, ScoredLevels
from mtlcar.symmetries import averaged
from mtlcar.tasks import TaskSet


class JointLevels(nn.Module):
    """`decode_levels(..., "joint")` in tensors: class probabilities {level: [N, C]} -> classes {level: int64 [N]}.

    The path with the largest product, by messages from the finest levels up and choices from the coarsest down.

    Args:
        tasks: the dataset's tasks.
        scored: the classifications with probabilities.
    """

    def __init__(self, tasks: TaskSet, scored: list[str]) -> None:
        super().__init__()
        blank = {name: np.ones((1, len(tasks[name].classes))) for name in scored}
        hierarchy = ScoredLevels(blank, tasks)
        self.order = hierarchy.order
        self.scored = set(hierarchy.scored)
        self.above = {name: hierarchy.parent(name) for name in self.order}
        self.below = {name: hierarchy.children(name) for name in self.order}
        for name in self.order:
            usable = torch.from_numpy(hierarchy.usable[name])
            self.register_buffer(f"usable_{name}", torch.where(usable, 0.0, -torch.inf).to(torch.float64))
            above = self.above[name]
            if above is None:
                continue
            table = hierarchy.table(name, above)
            own = [np.flatnonzero(table == c) for c in range(hierarchy.size(above))]
            padded = np.full((len(own), max(map(len, own))), len(table))  # the column after the last: no class
            for row, members in zip(padded, own, strict=True):
                row[: len(members)] = members
            self.register_buffer(f"parent_{name}", torch.from_numpy(table).long())
            self.register_buffer(f"children_{name}", torch.from_numpy(padded).long())
            self.register_buffer(f"childless_{name}", torch.tensor([not len(members) for members in own]))

    def forward(self, scores: dict[str, Tensor]) -> dict[str, Tensor]:
        images = next(iter(scores.values())).shape[0]
        messages: dict[str, Tensor] = {}
        for name in self.order[::-1]:
            value = self._of("usable", name)[None].expand(images, -1)
            if name in self.scored:
                p = scores[name].to(torch.float64)
                value = value + torch.where(p > FLOOR, p, FLOOR).log()
            for child in self.below[name]:
                value = value + self._best(messages[child], child)
            messages[name] = value
        found: dict[str, Tensor] = {}
        for name in self.order:
            value, above = messages[name], self.above[name]
            if above is None:
                found[name] = value.argmax(1)
                continue
            inside = self._of("parent", name)[None] == found[above][:, None]
            best = torch.where(inside, value, -torch.inf).argmax(1)
            found[name] = torch.where(inside.any(1), best, -1)
        return found

    def _best(self, value: Tensor, child: str) -> Tensor:
        """[N, classes of child] -> the largest among the children of each class above; 0 where it has none."""
        nothing = torch.full_like(value[:, :1], -torch.inf)
        own = torch.cat([value, nothing], 1)[:, self._of("children", child)].amax(2)
        return torch.where(self._of("childless", child), 0.0, own)

    def _of(self, what: str, name: str) -> Tensor:
        buffer = getattr(self, f"{what}_{name}")
        assert isinstance(buffer, Tensor)
        return buffer


class Exportable(nn.Module):
    """uint8 RGB images [N, 3, H, W] -> what the network says of them, by name:

    - `<task>`: class int64 [N] (-1: none), consistent across levels by the joint decoding, or value float32 [N] in the
      label's unit;
    - `<task>_probabilities` float32 [N, C], of the network's own head; `<task>_scores` where they are none (FastCAR);
    - what the label transform adds, with `_` for `/`: FastCAR's `axis_position` and `axis_flag`.

    Everything is as `mtlcar predict` has it: the resizing, normalisation and test-time augmentation of the run.

    Args:
        network: its parts are used as they are.
    """

    def __init__(self, network: TrainedNetwork) -> None:
        super().__init__()
        self.tasks, self.symmetries = network.tasks, network.symmetries
        self.resize = Resize(network.image_size, network.decoder.resize)
        self.register_buffer("scale", network.augment.scale.clone())
        self.register_buffer("shift", network.augment.shift.clone())
        self.scale: Tensor
        self.shift: Tensor
        self.architecture = network.architecture.pruned().eval()
        self.losses, self.label_transform = network.losses, network.label_transform
        if getattr(self.label_transform, "labels", ()) is None:
            # FastCAR would look whether its constants are NaN, which cannot be traced; a checkpoint's are not
            self.label_transform.labels = ()  # type: ignore[assignment]
        self.probabilities = network.probabilities
        trained = network.architecture.tasks
        levels = [t.name for t in trained.classification if t.name in network.tasks]
        self.joint = JointLevels(network.tasks, levels) if network.has_levels(levels) else None

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.resize(image).to(torch.float32) * self.scale + self.shift
        outputs = averaged(lambda x: self.architecture(x).outputs, x, self.architecture.tasks, self.symmetries)
        trained, scores = self.losses.predictions(outputs), self.losses.scores(outputs)
        own = self.label_transform.decode_scores(scores, trained)
        columns = self.label_transform.columns(trained)
        if self.joint is not None:
            levels = self.joint(own)
            trained |= {name: levels[name] for name in trained if name in levels}
        predictions = imply(self.tasks, self.label_transform.decode(trained, scores))
        kind = "probabilities" if self.probabilities else "scores"
        found: dict[str, Tensor] = {}
        for name, value in predictions.items():
            found[name] = value
            if name in own:
                found[f"{name}_{kind}"] = own[name]
        return found | {name.replace("/", "_"): column for name, column in columns.items()}


def describe(network: TrainedNetwork, version: str) -> dict[str, Any]:
    """What an exported file says of itself, as JSON values: schema 1.

    `input`: one image tensor and what is done to it in the file; `outputs`: what `Exportable` gives.
    """
    mean, std = network.architecture.backbone.mean, network.architecture.backbone.std
    return {
        "schema": 1,
        "mtlcar": version,
        "fingerprint": network.directory.name,
        **network.tasks.to_dict(),
        "trained": list(network.architecture.tasks.names),
        "probabilities": network.probabilities,
        "decoding": "joint",
        "input": {
            "name": "image",
            "type": "uint8 RGB [N, 3, H, W]",
            "size": network.image_size,
            "resize": network.decoder.resize,
            "mean": [float(v) for v in mean],
            "std": [float(v) for v in std],
            "test_time_augmentation": network.symmetries,
        },
    }
