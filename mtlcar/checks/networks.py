"""Networks on the meta device: built without data or numbers, and tried once."""

import contextlib
import json
from dataclasses import dataclass, field

import torch
from omegaconf import DictConfig, OmegaConf

from mtlcar.architectures.base import Architecture
from mtlcar.build import build_architecture, make, without_weights
from mtlcar.checks.found import Found
from mtlcar.label_transforms.base import LabelTransform
from mtlcar.losses import TaskLosses
from mtlcar.tasks import TaskSet

KEPT = 16
"""Networks of a sweep; a large one's modules take some MB."""
MADE_OF = ("label_transform", "architecture", "head", "backbone", "loss")
"""Groups. The loss has no part in the network, and in what its outputs are made into."""


@dataclass
class Tried:
    """A network, as far as it could be built.

    Attributes:
        encoded: the tasks that a network under the label transform trains.
        problems: what its parts said.
    """

    label_transform: LabelTransform | None = None
    encoded: TaskSet | None = None
    architecture: Architecture | None = None
    problems: list[str] = field(default_factory=list)
    _of_forward: list[str] | None = None

    def forward(self, losses: TaskLosses, image_size: int) -> list[str]:
        """What a forward pass stumbles over."""
        if self._of_forward is None:
            assert self.architecture is not None
            assert self.label_transform is not None
            found = Found()
            with found.trying():
                try_forward(self.architecture, losses, self.label_transform, image_size)
            self._of_forward = found.problems
        return self._of_forward


Networks = dict[str, Tried]
"""Those of one command, by what they are made of: cells of a sweep that differ in how they train share theirs."""


def network_of(cfg: DictConfig, tasks: TaskSet, networks: Networks, *, alone: bool) -> Tried:
    """One of `networks`, or a new one in it.

    Args:
        tasks: the dataset's.
        alone: only the label transform is asked for.
    """
    plain = [OmegaConf.to_container(cfg[part], resolve=True) for part in MADE_OF]
    key = json.dumps([plain, cfg.data.image_size, tasks.to_dict(), alone], default=str)
    if key not in networks:
        if len(networks) >= KEPT:
            del networks[next(iter(networks))]
        networks[key] = tried(cfg, tasks, alone=alone)
    return networks[key]


def tried(cfg: DictConfig, tasks: TaskSet, *, alone: bool) -> Tried:
    it, found = Tried(), Found()
    with torch.device("meta"):
        with found.trying():
            it.label_transform = make(cfg.label_transform, tasks=tasks)
            it.encoded = it.label_transform.encoded_tasks(tasks)
        if it.encoded is not None and not alone:
            with found.trying():
                it.architecture = build_architecture(without_weights(cfg), it.encoded)
    it.problems = found.problems
    return it


def try_forward(
    architecture: Architecture, losses: TaskLosses, label_transform: LabelTransform, image_size: int
) -> None:
    """One pass of two images without numbers, to find maps that are too small for what reads them, and predictions that
    cannot be decoded."""
    kinds = {t.name: torch.int64 if t.classes else torch.float32 for t in architecture.tasks}
    with torch.device("meta"), contextlib.suppress(NotImplementedError):  # of an operation that cannot be tried so
        targets = {name: torch.zeros(2, dtype=dtype) for name, dtype in kinds.items()}
        outputs = architecture.train()(torch.zeros(2, 3, image_size, image_size), targets).outputs
        label_transform.decode(losses.predictions(outputs), losses.scores(outputs))
