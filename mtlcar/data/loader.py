"""Batches without worker processes: images are already decoded, so a gather by index is all there is to do."""

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtlcar.data.placement import Placed
from mtlcar.data.staging import Batch, Staging, to_device
from mtlcar.errors import UserError

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
ORDER, AUGMENT = 0, 1
"""Streams of random keys: where an image comes in an epoch, and how it is augmented there."""


def image_keys(seed: int, epoch: int, rows: np.ndarray, stream: int) -> np.ndarray:
    """A random uint64 for each row [B], a function of its arguments alone (SplitMix64, Steele et al. 2014).

    So an image's place and augmentation in an epoch depend neither on the batch it is in nor on the number of
    processes, and a resumed run has nothing to restore. Bit-equal on every platform and library version.
    """
    with np.errstate(over="ignore"):
        key = _mix(np.full(1, seed & (2**64 - 1), np.uint64) + GOLDEN)
        key = _mix(key ^ np.uint64(epoch))
        key = _mix(key ^ np.uint64(stream))
        return _mix(key ^ np.asarray(rows).astype(np.uint64))


def _mix(x: np.ndarray) -> np.ndarray:
    x = x + GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class BatchLoader:
    """Iterable over batches; each `iter` that follows a started epoch begins the next one.

    A batch is `{"image": uint8 [B, 3, S, S], "target": {task: [B]}, "index": int64 [B]}`; one for training
    also has `"key": int64 [B]`, the random key of each image in this epoch, from which it is augmented.

    Its state (epoch, batches given out) is what Lightning saves and restores with the fit loop: a resumed loader
    goes on with the batch it would have given next.

    Args:
        images: the images, within reach of `device`.
        targets: task -> labels of all rows of the annotations [N].
        rows: the rows of this split [n], in order.
        batch_size: images of a batch, over all processes.
        seed: shuffles, with the epoch; None: rows in order, no keys (evaluation).
        drop_last: leave out the last batch of an epoch if it is not full.
        rank, world_size: this process takes every world_size-th image of each batch, from the rank-th on. No
            image is taken twice. A last batch with fewer images than processes joins the one before it.
        batches_per_epoch: batches after which the caller ends an epoch, if before the last.
        epoch: number of the first epoch.
        prefetch: batches made in advance by a thread.
        device: where batches are made, all of their tensors; None: on the host.
    """

    def __init__(
        self,
        images: Placed,
        targets: Mapping[str, Tensor],
        rows: np.ndarray,
        batch_size: int,
        *,
        seed: int | None = None,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        batches_per_epoch: int | None = None,
        epoch: int = 0,
        prefetch: int = 2,
        device: torch.device | None = None,
    ) -> None:
        if batch_size < world_size:
            raise UserError(f"A batch of {batch_size} images cannot be split over {world_size} processes.")
        self.images = images
        self.targets = {task: y if device is None else y.to(device) for task, y in targets.items()}
        self.rows = np.asarray(rows, dtype=np.int64)
        self.batch_size = batch_size
        self.seed = seed
        self.rank, self.world_size = rank, world_size
        self.prefetch = prefetch
        self.device = device
        self.bounds = batch_bounds(len(self.rows), batch_size, drop_last, world_size)
        self.batches_per_epoch = len(self.bounds) if batches_per_epoch is None else batches_per_epoch
        self.epoch = epoch
        self.position = 0
        self._started = False

    def __len__(self) -> int:
        return len(self.bounds)

    def __iter__(self) -> Iterator[Batch]:
        # Lightning calls iter() more than once before it takes a batch: only a started epoch is followed by the next
        if self._started or (self.position and self.position >= self.batches_per_epoch):
            self.epoch += 1
            self.position = 0
        self._started = False
        return self._batches(self.epoch, self.position)

    def state_dict(self) -> dict[str, int]:
        """Epoch and batches given out; and what must be the same when it is loaded."""
        return {
            "epoch": self.epoch,
            "position": self.position,
            "images": len(self.rows),
            "batch_size": self.batch_size,
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """The next `iter` goes on where `state` was taken.

        Raises:
            UserError: the state is of another split or batch size.
        """
        for key, now in (("images", len(self.rows)), ("batch_size", self.batch_size)):
            if state[key] != now:
                raise UserError(
                    f"The checkpoint was written with other training data: {key} {state[key]}, now {now}.\n"
                    "Resume with the configuration it was written with, or start a new run."
                )
        self.epoch, self.position = int(state["epoch"]), int(state["position"])
        self._started = False

    def order(self, epoch: int) -> np.ndarray:
        """The rows [n] in the order of an epoch."""
        if self.seed is None:
            return self.rows
        return self.rows[np.argsort(image_keys(self.seed, epoch, self.rows, ORDER), kind="stable")]

    def _batches(self, epoch: int, first: int) -> Iterator[Batch]:
        rows = self.order(epoch)
        columns = self._columns(epoch, rows)
        with Staging(self.device) as staging:
            queue: deque[Any] = deque()
            submitted = first
            for k in range(first, len(self.bounds)):
                while submitted < min(k + 1 + self.prefetch, len(self.bounds)):
                    queue.append(staging.submit(self._make, rows, columns, submitted))
                    submitted += 1
                batch = staging.take(queue.popleft())
                self._started, self.position = True, k + 1
                yield batch

    def _columns(self, epoch: int, rows: np.ndarray) -> dict[str, Tensor]:
        """All of an epoch's batches but the images, on the device. A batch is a slice of them, so that the thread that
        makes it runs next to no Python, during which the step's thread would have to wait."""
        index = to_device(torch.from_numpy(rows.copy()), self.device)
        columns = {f"target/{task}": y.index_select(0, index) for task, y in self.targets.items()}
        if self.seed is not None:
            keys = image_keys(self.seed, epoch, rows, AUGMENT).view(np.int64)
            columns["key"] = to_device(torch.from_numpy(keys), self.device)
        return {"index": index, **columns}

    def _make(self, rows: np.ndarray, columns: dict[str, Tensor], k: int) -> Batch:
        start, stop = self.bounds[k]
        own = slice(start + self.rank, stop, self.world_size)
        mine = {name: column[own] for name, column in columns.items()}
        targets = {name.removeprefix("target/"): mine.pop(name) for name in columns if name.startswith("target/")}
        return {"image": self.images.batch(rows[own], mine["index"]), "target": targets, **mine}


def batch_bounds(n: int, batch_size: int, drop_last: bool, world_size: int = 1) -> list[tuple[int, int]]:
    """Where each batch of n images starts and ends in their order.

    A set smaller than one batch is one batch, whatever `drop_last`: dropping it would leave nothing to train on.
    """
    if n < world_size:
        raise UserError(f"{n} images cannot be split over {world_size} processes.")
    bounds = [(start, min(start + batch_size, n)) for start in range(0, n, batch_size)]
    if len(bounds) > 1:
        start, stop = bounds[-1]
        if drop_last and stop - start < batch_size:
            bounds.pop()
        elif stop - start < world_size:
            bounds[-2:] = [(bounds[-2][0], stop)]
    return bounds
