"""Where the decoded images lie while a run reads them, and how a batch of them gets to the device."""

import logging
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mtlcar.data.cache import ImageCache, ImageStore
from mtlcar.data.free_memory import free_on, free_on_host
from mtlcar.errors import UserError
from mtlcar.runs.gpus import listed

log = logging.getLogger("mtlcar")

SHARE = 0.25
"""Of the memory that is free before a training begins: what its images may take by themselves. The network, its
optimizer and its activations need the rest, and nobody knows yet how much."""
PORTION = 2**28
"""Bytes of page-locked memory that are asked for at a time, and about that many are copied at a time."""


class Placed(Protocol):
    """The images of a set, within reach of a device."""

    def batch(self, rows: np.ndarray, index: Tensor) -> Tensor:
        """Rows [B], on the host and as int64 on the device -> uint8 [B, 3, S, S] on the device."""
        ...


class Gathered:
    """Images gathered on the host, from the memory-mapped file or as they are decoded, and then copied.

    For a GPU a batch is gathered into page-locked memory, from which the copy waits for nobody.
    """

    def __init__(self, store: ImageStore, device: torch.device) -> None:
        self.store = store
        self.device = device

    def batch(self, rows: np.ndarray, index: Tensor) -> Tensor:
        if self.device.type != "cuda":
            return self.store.gather(rows).to(self.device)
        buffer = torch.empty((len(rows), *self.store.shape), dtype=torch.uint8, pin_memory=True)
        return self.store.gather(rows, buffer).to(self.device, non_blocking=True)


class Resident:
    """All images in the device's own memory: a batch is one gather by index there.

    Args:
        images: uint8 [N, 3, S, S].
    """

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def batch(self, rows: np.ndarray, index: Tensor) -> Tensor:
        return self.images.index_select(0, index)


class PageLocked:
    """All images in page-locked memory of the host: the device fetches each by itself, and no processor touches it.

    Args:
        portions: uint8 [n, 3, S, S], the same n for all but the last. (Torch rounds a page-locked tensor up to a power
            of two bytes, and the whole set in one could take twice its size.)
    """

    def __init__(self, portions: Sequence[Tensor], device: torch.device) -> None:
        self.portions = portions
        self.device = device

    def batch(self, rows: np.ndarray, index: Tensor) -> Tensor:
        n = len(self.portions[0])
        out = torch.empty((len(rows), *self.portions[0].shape[1:]), dtype=torch.uint8, device=self.device)
        images = [self.portions[row // n][row % n] for row in rows.tolist()]
        torch._foreach_copy_(list(out.unbind()), images, non_blocking=True)
        return out


def place(store: ImageStore, device: torch.device, wanted: str = "auto", sharing: int = 1) -> Placed:
    """The images of `store` where they are best read from, or where they were asked to be.

    Args:
        device: where the batches are needed.
        wanted: `device`, `pinned` (page-locked memory of the host), `mmap` (the file, through the system's cache, which
            other runs share), or `auto`: the first of these that takes a quarter of what is free at most; on a CPU,
            which reads the file's pages themselves, `mmap`.
        sharing: runs that share the device with this one.

    Raises:
        UserError: a place that is too small, or does not exist.
    """
    if not isinstance(store, ImageCache):
        if wanted in ("device", "pinned"):
            raise UserError(f"data.placement={wanted} keeps decoded images, and data.cache=false keeps none: use one.")
        return Gathered(store, device)
    size = store.images.nbytes
    chosen = automatic(size, device, sharing) if wanted == "auto" else wanted
    if chosen == "mmap":
        return Gathered(store, device)
    if chosen == "pinned" and device.type != "cuda":
        raise UserError("data.placement=pinned is for copies to a GPU, and this run has none: use auto or mmap.")
    where, free = (str(device), free_on(device)) if chosen == "device" else ("the host", free_on_host())
    try:
        if free and size > free:
            raise torch.OutOfMemoryError(f"the images take {size / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free")
        placed = Resident(on_device(store, device)) if chosen == "device" else PageLocked(page_locked(store), device)
    except RuntimeError as error:  # torch's own for memory that it cannot have or lock
        reason = f"The images do not fit on {where}: {str(error).splitlines()[0]}"
        if wanted != "auto":
            raise UserError(
                f"data.placement={wanted}: {reason}. Use auto, mmap, or a smaller data.image_size."
            ) from error
        log.warning("%s. They are read from the file.", reason)
        return Gathered(store, device)
    how = "on" if chosen == "device" else "page-locked on"
    log.info("images: %.2f GB %s %s (data.placement=mmap leaves them in the file)", size / 1e9, how, where)
    return placed


def automatic(size: int, device: torch.device, sharing: int = 1) -> str:
    """`device`, `pinned` or `mmap` for images of `size` bytes."""
    if device.type != "cuda":
        return "mmap"
    if size <= SHARE * free_on(device) / sharing:
        return "device"
    # page-locked memory is a process's own, and every GPU of this machine may have as many runs at this moment
    return "pinned" if size <= SHARE * free_on_host() / (sharing * max(1, len(listed()))) else "mmap"


def on_device(store: ImageCache, device: torch.device) -> Tensor:
    """All images of the store, uint8 [N, 3, S, S], when they are there."""
    n, step = len(store.images), per_portion(store)
    images = torch.empty((n, *store.shape), dtype=torch.uint8, device=device)
    buffer = torch.empty((min(step, n), *store.shape), dtype=torch.uint8, pin_memory=images.is_cuda)
    for start in range(0, n, step):
        rows = np.arange(start, min(start + step, n))
        images[start : start + len(rows)].copy_(store.gather(rows, buffer[: len(rows)]))
    if images.is_cuda:
        torch.cuda.synchronize(device)  # streams other than this one will read them
    return images


def page_locked(store: ImageCache) -> list[Tensor]:
    """All images of the store in portions, as `PageLocked` has them."""
    n, step = len(store.images), per_portion(store)
    portions, pin = [], torch.cuda.is_available()
    for start in range(0, n, step):
        rows = np.arange(start, min(start + step, n))
        portions.append(store.gather(rows, torch.empty((len(rows), *store.shape), dtype=torch.uint8, pin_memory=pin)))
    return portions


def per_portion(store: ImageCache) -> int:
    return max(1, PORTION // max(1, int(np.prod(store.shape))))
