"""A stored run with its data, its best network in evaluation, as `mtlcar evaluate` opens it but without a trainer."""

import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from mtlcar.architectures.base import Architecture
from mtlcar.build import Parts, build, without_weights
from mtlcar.errors import UserError
from mtlcar.listing.finding import find_run
from mtlcar.runs.checkpoint_files import load_weights
from mtlcar.runs.evaluate import stored_config
from mtlcar.runs.training import quiet_lightning
from mtlcar.runs.trust import EVALUATED, refuse_foreign


@dataclass
class Opened:
    """
    Attributes:
        directory: the run's.
        parts: its data and module.
        architecture: its network in evaluation (BatchNorm's running statistics, no dropout), a learned structure as it
            was found. Heads are fed as in training: feed=label hands on the true labels.
        device: where all of it is.
    """

    directory: Path
    cfg: DictConfig
    parts: Parts
    architecture: Architecture
    device: torch.device

    def train_batches(self, n: int) -> Iterator[dict[str, Any]]:
        """The first n batches of the run's first epoch, without augmentation; fewer where an epoch has fewer."""
        for batch in itertools.islice(self.parts.data.train_dataloader(), n):
            yield self.parts.data.on_after_batch_transfer({k: v for k, v in batch.items() if k != "key"})

    def losses(self, batch: dict[str, Any]) -> Tensor:
        """Raw losses [T] of the trained tasks, with their graph."""
        module = self.parts.module
        target = module.label_transform.encode(batch["target"])
        return module.losses(self.architecture(self._layout(batch["image"]), target).outputs, target)

    def images(self, split: str, most: int) -> tuple[np.ndarray, Iterator[Tensor]]:
        """Rows [n] of the annotations, at most so many, chosen at random but always the same; and their images in
        batches, normalised, [B, 3, S, S]."""
        data = self.parts.data
        rows = data.indices[split]
        if len(rows) > most:
            rows = np.sort(np.random.default_rng(0).choice(rows, most, replace=False))
        size = min(data.eval_batch_size, 256)
        starts = range(0, len(rows), size)
        return rows, (self._normalized(data.gather(rows[i : i + size])) for i in starts)

    def _normalized(self, pixels: Tensor) -> Tensor:
        return self._layout(self.parts.data.augment.normalize(pixels.to(self.device)))

    def _layout(self, image: Tensor) -> Tensor:
        channels_last = self.parts.module.channels_last
        return image.contiguous(memory_format=torch.channels_last) if channels_last else image


def open_run(run: str) -> Opened:
    """The run that a user means (`find_run`).

    Raises:
        UserError: as `mtlcar evaluate`: no such run, no checkpoint or another's, its data is missing, foreign code.
    """
    run_dir = find_run(run).directory
    cfg = without_weights(stored_config(run_dir, []))  # the checkpoint has them
    refuse_foreign(cfg, run_dir, EVALUATED)
    cfg.trainer.update({"devices": 1, "strategy": "auto"})
    if "placement" in cfg.data:  # each image is read once, and another run may be training there
        cfg.data.placement = "mmap"
    checkpoint = run_dir / "checkpoints" / "best.ckpt"
    if not checkpoint.is_file():
        raise UserError(f"{checkpoint}: no such checkpoint. The run has not finished its first epoch.")
    logging.basicConfig(level=logging.WARNING)
    quiet_lightning()
    torch.set_num_threads(cfg.threads)
    torch.manual_seed(cfg.seed)
    parts = build(cfg)
    load_weights(parts.module, checkpoint, cfg)
    device = torch.device("cuda" if torch.cuda.is_available() and cfg.trainer.accelerator != "cpu" else "cpu")
    parts.module.to(device)
    parts.data.device = device
    parts.data.augment.to(device)
    parts.module.eval()
    architecture = parts.module.architecture.pruned().eval()
    architecture.training = True  # of the root alone: teacher forcing; norms and dropout are in evaluation
    return Opened(run_dir, cfg, parts, architecture, device)
