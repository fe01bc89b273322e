"""One data module for every dataset: annotations -> splits -> decoded images -> augmented batches."""

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from omegaconf import OmegaConf
from torch import Tensor

from mtlcar.data.annotations import Annotations
from mtlcar.data.augment import Augment
from mtlcar.data.cache import ImageStore, open_store
from mtlcar.data.decode import ImageDecoder
from mtlcar.data.left_out import without, write_left_out
from mtlcar.data.loader import BatchLoader, batch_bounds
from mtlcar.data.missing_labels import thin_labels
from mtlcar.data.options import PLACEMENTS
from mtlcar.data.placement import Placed, place
from mtlcar.data.splits import make_splits
from mtlcar.data.staging import Batch
from mtlcar.errors import UserError, did_you_mean
from mtlcar.tasks import TaskSet


class MultiTaskData(LightningDataModule):
    """Batches `{"image": [B, 3, S, S], "target": {task: [B]}, "index": [B]}` of one dataset.

    Args:
        name: the dataset's name.
        root: folder of the data as published; None: `cache_dir / name`, for a dataset that makes its own.
        read: `read(root, **options) -> (Annotations, TaskSet)`.
        image_size: side S of the square images, pixels.
        batch_size: images of a training batch over all processes (so results do not depend on their number).
        eval_batch_size: the same for evaluation; None: as `batch_size`.
        cache_dir: decoded images go to `cache_dir / "images"`.
        seed: of the order of training images and of augmentation.
        split, fractions, split_seed: see `mtlcar.data.splits.make_splits`.
        label_fraction: task -> share of the training images that keep their label, chosen by `split_seed`; see
            `mtlcar.data.missing_labels.thin_labels`. Tasks that are not named keep all.
        resize, box_margin: see `mtlcar.data.decode.ImageDecoder`.
        on_bad_image: `error`, or `skip` to leave a few damaged images out.
        cache: keep decoded images in a memory-mapped file; False: decode while training.
        placement: where training reads them from, see `mtlcar.data.placement.place`.
        sharing: runs that share this machine's memory with this one.
        augment: arguments of `mtlcar.data.augment.Augment`.
        options: the reader's own.

    Attributes:
        annotations, tasks: what `read` gave, checked; every row is there, also those that `skip` left out.
        indices: split -> int64 rows of the annotations.
        targets: task -> labels of all rows [N]; class -1 and value NaN are missing, or hidden by `label_fraction`.
        store, decoder, augment: where images come from, how files become images, how images become input.
        device: where batches are made without a trainer; with one it is the trainer's.
    """

    annotations: Annotations
    tasks: TaskSet
    indices: dict[str, np.ndarray]
    targets: dict[str, Tensor]
    store: ImageStore

    def __init__(
        self,
        *,
        name: str,
        root: str | Path | None,
        read: Callable[..., tuple[Annotations, TaskSet]],
        image_size: int,
        batch_size: int,
        cache_dir: str | Path,
        seed: int = 0,
        eval_batch_size: int | None = None,
        split: str = "stratified",
        fractions: Sequence[float] = (0.8, 0.1, 0.1),
        split_seed: int = 0,
        label_fraction: Mapping[str, float] | None = None,
        resize: str = "stretch",
        box_margin: float | None = 0.0,
        on_bad_image: str = "error",
        cache: bool = True,
        placement: str = "auto",
        sharing: int = 1,
        augment: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        for key, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size or batch_size)):
            if value < 1:
                raise UserError(f"data.{key} should be at least 1. Found {value}.")
        if placement not in PLACEMENTS:
            raise UserError(f"data.placement should be one of {', '.join(PLACEMENTS)}. Found {placement!r}.")
        self.placement, self.sharing = placement, sharing
        self.device = torch.device("cpu")
        self._placed: tuple[torch.device, Placed] | None = None
        self.name = name
        if not re.fullmatch(r"\w[\w.-]*", str(name)):
            raise UserError(f"data.name should be a plain word, because a folder is named after it. Found {name!r}.")
        self.root = Path(cache_dir) / name if root is None else Path(root)
        self.read = read
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.cache_dir, self.cache, self.on_bad_image = Path(cache_dir), cache, on_bad_image
        self.seed = seed
        self.split, self.fractions, self.split_seed = split, plain(fractions), split_seed
        self.label_fraction = plain(label_fraction)
        self.options = {key: plain(value) for key, value in options.items()}
        self.decoder = ImageDecoder(image_size, resize, box_margin)
        self.augment = make_augment(plain(augment or {}))

    def load(self) -> None:
        """Annotations, tasks and splits; no image is opened. Does nothing the second time."""
        if hasattr(self, "indices"):
            return
        annotations, tasks = self.read(self.root, **self.options)
        annotations.check(tasks)
        self.annotations, self.tasks = annotations, tasks
        indices = make_splits(annotations, tasks, self.split, self.fractions, self.split_seed)
        self.targets = self._labels(indices["train"])
        self.indices = self._every = indices

    def _labels(self, train: np.ndarray) -> dict[str, Tensor]:
        """The labels of all rows, those of the training rows thinned out."""
        known, paths = self.annotations.targets, self.annotations.paths
        kept = thin_labels(known, self.tasks, paths, train, self.label_fraction, self.split_seed)
        return {task: torch.from_numpy(np.array(kept[task])) for task in self.tasks.names}

    def prepare_data(self) -> None:
        """`setup` on one process first, so that the others find the decoded images."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        """All that `load` does, and the images decoded (or found decoded). Does nothing the second time."""
        self.load()
        if hasattr(self, "store"):
            return
        folder = self.cache_dir / "images"
        store = open_store(self.annotations, self.decoder, folder, cache=self.cache, on_bad_image=self.on_bad_image)
        if store.bad:
            self.indices = without(store.bad, self.indices, self.annotations, self.tasks, self.split)
            self.targets = self._labels(self.indices["train"])  # the only label of a class may have been among them
        self.store = store

    def write_left_out(self, run_dir: Path) -> None:
        """What `on_bad_image=skip` left out of a run, into its directory."""
        self.setup()
        write_left_out(run_dir, self.store.bad, self._every, self.annotations)

    @property
    def steps_per_epoch(self) -> int:
        """Training batches an epoch, limits and accumulation aside; known without a Trainer, whose own count
        (`estimated_stepping_batches`) keeps Lightning from restoring a loader's state."""
        self.setup()
        return len(batch_bounds(len(self.indices["train"]), self.batch_size, drop_last=True))

    @property
    def train_targets(self) -> dict[str, Tensor]:
        """task -> labels of the training images [n]."""
        rows = torch.from_numpy(self.indices["train"])
        return {task: y[rows] for task, y in self.targets.items()}

    def digest(self) -> str:
        """16 hex digits that change with any label, path, box, group, published split, class or task."""
        self.load()
        text = self.annotations.digest() + json.dumps(self.tasks.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def gather(self, rows: np.ndarray) -> Tensor:
        """Images of rows [B] as uint8 [B, 3, S, S], for figures."""
        return self.store.gather(np.asarray(rows))

    def set_normalization(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """The input normalisation that the backbone's weights expect, per RGB channel on the 0..1 scale."""
        self.augment.set_normalization(mean, std)

    def placed(self, device: torch.device) -> Placed:
        """The images, where batches for `device` are made from; put there the first time."""
        if self._placed is None or self._placed[0] != device:
            self._placed = None  # what another device held can go
            self._placed = device, place(self.store, device, self.placement, self.sharing)
        return self._placed[1]

    def train_dataloader(self) -> BatchLoader:
        return self._loader("train")

    def val_dataloader(self) -> BatchLoader | list[BatchLoader]:
        return self._loader("val") if len(self.indices["val"]) else []

    def test_dataloader(self) -> BatchLoader | list[BatchLoader]:
        return self._loader("test") if len(self.indices["test"]) else []

    def _loader(self, split: str) -> BatchLoader:
        self.setup()
        training, trainer = split == "train", self.trainer
        device = self.device if trainer is None else trainer.strategy.root_device
        loader = BatchLoader(
            self.placed(device),
            self.targets,
            self.indices[split],
            self.batch_size if training else self.eval_batch_size,
            seed=self.seed if training else None,
            drop_last=training,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            # not trainer.current_epoch: it lags behind when a run goes on from the end of an epoch, and Lightning
            # restores the loader's state only within one
            epoch=trainer.fit_loop.epoch_progress.current.processed if trainer and training else 0,  # type: ignore[attr-defined]
            device=device,
        )
        if training and trainer is not None:
            limit = trainer.limit_train_batches
            n = len(loader)
            loader.batches_per_epoch = min(n, limit) if isinstance(limit, int) else int(n * (limit or 1.0))
        return loader

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int = 0) -> Batch:
        """uint8 images to normalised float32 ones on the batch's device, augmented where the batch has keys."""
        image = batch["image"]
        if image.dtype != torch.uint8:
            return batch
        if self.augment.scale.device != image.device:
            self.augment.to(image.device)
        rest = {name: value for name, value in batch.items() if name != "key"}
        with torch.no_grad():
            out = self.augment(image, batch["key"]) if "key" in batch else self.augment.normalize(image)
        return {**rest, "image": out}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must have in common with the one that was stopped."""
        return {"digest": self.digest()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises a UserError when training would go on with other data than it began with."""
        fitting = self.trainer is not None and self.trainer.state.fn == "fit"
        if fitting and state["digest"] != self.digest():
            raise UserError(
                f"The checkpoint was trained on other data: the labels or files under {self.root} have changed since.\n"
                "Restore them, or start a new run."
            )


def make_augment(arguments: Mapping[str, Any]) -> Augment:
    """`Augment(**arguments)`, with a UserError that names a key it does not have."""
    known = [key for key in inspect.signature(Augment).parameters if key not in ("mean", "std")]
    for key in arguments:
        if key not in known:
            raise UserError(
                f"data.augment has no key {key!r}.{did_you_mean(key, known)} There are: {', '.join(known)}."
            )
    return Augment(**{key: value for key, value in arguments.items() if value is not None})


def plain(value: Any) -> Any:
    """OmegaConf's lists and dictionaries as Python's."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
