"""The rig of a real dataset: its tasks, and batches that come from outside."""

from typing import Any

from omegaconf import DictConfig

from mtlcar.bench.rig import Driven, Rig
from mtlcar.build import build


class DatasetRig(Rig):
    """What a run of `cfg` would train, on the run's own data.

    Attributes:
        parts: of the run; its data module knows the trainer, and so the device.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self._begin(cfg)
        self.parts = build(cfg)
        self.parts.data.trainer = self.trainer
        self._hold(self.parts.module)
        self.architecture = self.module.architecture
        self.label_transform = self.module.label_transform
        self.tasks = self.architecture.tasks
        self.batch = {}
        self.finish([self.module.weighting])
        self.architecture.begin_epoch(cfg.trainer.max_epochs // 2, cfg.trainer.max_epochs)
        self.driven = Driven(self, self.module.weighting)

    def begin(self, batch: dict[str, Any]) -> None:
        """The first step, with what an epoch's beginning and end do."""
        self.batch = batch
        self.driven.epoch()

    def step(self, batch: dict[str, Any]) -> None:
        """A training step: forward, losses, backward, optimizer."""
        self.batch = batch
        self.driven()
