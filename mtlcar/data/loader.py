"""Batches without worker processes: images are already decoded, so a gather by index is all there is to do."""

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtlcar.data.cache import ImageStore
from mtlcar.errors import UserError

Batch = dict[str, Any]
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
        store: the images.
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
        pin_memory: page-locked images, for asynchronous copies to a GPU.
    """

    def __init__(
        self,
        store: ImageStore,
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
        pin_memory: bool = False,
    ) -> None:
        if batch_size < world_size:
            raise UserError(f"A batch of {batch_size} images cannot be split over {world_size} processes.")
        self.store = store
        self.targets = dict(targets)
        self.rows = np.asarray(rows, dtype=np.int64)
        self.batch_size = batch_size
        self.seed = seed
        self.rank, self.world_size = rank, world_size
        self.prefetch = prefetch
        self.pin_memory = pin_memory
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
        order = self.order(epoch)
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
            queue: deque[Future[Batch]] = deque()
            submitted = first
            try:
                for k in range(first, len(self.bounds)):
                    while submitted < min(k + 1 + self.prefetch, len(self.bounds)):
                        queue.append(pool.submit(self._make, order, epoch, submitted))
                        submitted += 1
                    batch = queue.popleft().result()
                    self._started, self.position = True, k + 1
                    yield batch
            finally:
                for future in queue:
                    future.cancel()

    def _make(self, order: np.ndarray, epoch: int, k: int) -> Batch:
        start, stop = self.bounds[k]
        rows = order[start:stop][self.rank :: self.world_size]
        index = torch.from_numpy(rows.copy())
        out = None
        if self.pin_memory:
            out = torch.empty((len(rows), *self.store.shape), dtype=torch.uint8, pin_memory=True)
        batch: Batch = {
            "image": self.store.gather(rows, out),
            "target": {task: y[index] for task, y in self.targets.items()},
            "index": index,
        }
        if self.seed is not None:
            batch["key"] = torch.from_numpy(image_keys(self.seed, epoch, rows, AUGMENT).view(np.int64))
        return batch


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
