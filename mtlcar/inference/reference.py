"""What a run keeps of its training images, so that pictures unlike them are found: made, and kept with the run."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from mtlcar.errors import UserError
from mtlcar.inference.network import TrainedNetwork, load_network
from mtlcar.inference.unlike import FILE, Reference, fit, read_reference, save, threshold
from mtlcar.listing.tables import notice

if TYPE_CHECKING:
    from mtlcar.data.datamodule import MultiTaskData

MOST = 2048
"""Training images looked at, at most: evenly spaced among all."""
FEWEST = 50
"""Validation images that are needed: the largest score of fewer would flag more than one in fifty that is alike."""
BATCH = 64


def make_reference(network: TrainedNetwork, data: "MultiTaskData") -> Reference | None:
    """The reference of a network from its run's training and validation images, without augmentation. None where there
    is nothing to tell by: no features, or too few images for training or validation. No random number is drawn."""
    finest = network.tasks.finest()
    rows = data.indices["train"]
    labels = data.targets[finest.name][torch.from_numpy(rows)] if finest.classes else torch.zeros(len(rows)).long()
    rows, labels = rows[(labels >= 0).numpy()], labels[labels >= 0]
    chosen = _spaced(len(rows))
    rows, labels = rows[chosen], labels[torch.from_numpy(chosen)]
    held_out = data.indices["val"][_spaced(len(data.indices["val"]))]
    if not network.architecture.backbone.stages or len(held_out) < FEWEST or not len(rows):
        return None
    try:
        found = fit(_features(network, data, rows), labels)
    except ValueError:
        return None
    limit = threshold(found.scores(_features(network, data, held_out)))
    return replace(found, threshold=limit, held_out=len(held_out), mark=mark_of(network))


def write_reference(
    run_dir: Path, cfg: DictConfig, data: "MultiTaskData", device: torch.device | str = "cpu"
) -> Path | None:
    """Write `reference.safetensors` to a run's directory, once its best checkpoint is there: one forward pass over at
    most 2,048 training images and as many validation images. The network is one of its own, and the state of torch's
    random numbers is as before. None where there is nothing to tell by.

    Args:
        cfg: the run's.
        data: the run's, set up.
    """
    with torch.random.fork_rng():
        made = make_reference(load_network(run_dir, cfg, device), data)
    return None if made is None else save(made, run_dir)


def mark_of(network: TrainedNetwork) -> str:
    """16 hex digits that change whenever the network has learnt something more: of its heads' parameters."""
    digest = hashlib.sha256()
    for value in network.architecture.heads.state_dict().values():
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def reference_of(network: TrainedNetwork) -> Reference | None:
    """The run's reference, made now (and kept, where the directory can be written to) if it has none of this checkpoint
    and its data can be opened; else None."""
    try:
        kept = read_reference(network.directory)
    except UserError as error:
        notice(f"{str(error).splitlines()[0]} It is made again.")
        kept = None
    if kept is not None and kept.mark == mark_of(network):
        return kept
    if not network.architecture.backbone.stages:
        return None
    from mtlcar.build import build_data

    cfg = network.cfg.copy()
    if "placement" in cfg.data:  # each image is read once
        cfg.data.placement = "mmap"
    try:
        notice("Looking at the run's training images once, to tell pictures that are unlike them.")
        made = make_reference(network, build_data(cfg))
    except Exception as error:  # whatever is wrong with the data now, the prediction does not need it
        notice(f"They cannot be looked at: {(str(error).splitlines() or [type(error).__name__])[0]}")
        return None
    if made is not None:
        try:
            save(made, network.directory)
        except OSError as error:
            notice(f"{FILE} cannot be kept in the run ({error.strerror}); the next time takes as long.")
    return made


def _spaced(n: int) -> np.ndarray:
    """At most `MOST` of n rows, evenly."""
    return np.arange(n) if n <= MOST else np.linspace(0, n - 1, MOST).round().astype(np.int64)


def _features(network: TrainedNetwork, data: "MultiTaskData", rows: np.ndarray) -> Tensor:
    """[n, D] on the CPU."""

    def batches() -> Iterator[Tensor]:
        for start in range(0, len(rows), BATCH):
            yield network.features(data.gather(rows[start : start + BATCH])).cpu()

    return torch.cat(list(batches()))
