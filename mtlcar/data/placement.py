"""Where the decoded images lie while a run reads them, and how a batch of them gets to the device."""

import logging
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mtlcar.data.cache import ImageCache, ImageStore
from mtlcar.errors import UserError

log = logging.getLogger("mtlcar")

PLACEMENTS = ("auto", "device", "pinned", "mmap")
SHARE = 0.25
"""Of the memory that is free before a training begins: what its images may take by themselves. The network, its
optimizer and its activations need the rest, and nobody knows yet how much."""
CHUNK = 64 * 2**20
"""Bytes that are copied at a time."""
GROUP = Path("/sys/fs/cgroup")
LIMITS = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)
"""Files of a control group, of either version: the limit and what is used of it, bytes."""


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
        images: uint8 [N, 3, S, S].
    """

    def __init__(self, images: Tensor, device: torch.device) -> None:
        self.images = images
        self.device = device

    def batch(self, rows: np.ndarray, index: Tensor) -> Tensor:
        out = torch.empty((len(rows), *self.images.shape[1:]), dtype=torch.uint8, device=self.device)
        torch._foreach_copy_(list(out.unbind()), [self.images[row] for row in rows.tolist()], non_blocking=True)
        return out


def place(store: ImageStore, device: torch.device, wanted: str = "auto", sharing: int = 1) -> Placed:
    """The images of `store` where they are best read from, or where they were asked to be.

    Args:
        device: where the batches are needed.
        wanted: `device`, `pinned` (page-locked memory of the host), `mmap` (the file, through the system's cache, which
            other runs share), or `auto`: the first of these that takes a quarter of what is free at most; on a CPU,
            which reads the file's pages themselves, `mmap`.
        sharing: runs that share the device and the host with this one.

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
    if free and size > free:
        needed = f"the images take {size / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free on {where}"
        raise UserError(f"data.placement={wanted}: {needed}. Use data.placement=auto, or a smaller data.image_size.")
    how = "on" if chosen == "device" else "page-locked on"
    log.info("images: %.2f GB %s %s (%.1f GB were free)", size / 1e9, how, where, free / 1e9)
    if chosen == "device":
        return Resident(copied(store, torch.empty(store.images.shape, dtype=torch.uint8, device=device)))
    return PageLocked(copied(store, page_locked(store.images.shape)), device)


def automatic(size: int, device: torch.device, sharing: int = 1) -> str:
    """`device`, `pinned` or `mmap` for images of `size` bytes."""
    if device.type != "cuda":
        return "mmap"
    if size <= SHARE * free_on(device) / sharing:
        return "device"
    return "pinned" if size <= SHARE * free_on_host() / sharing else "mmap"


def copied(store: ImageStore, to: Tensor) -> Tensor:
    """`to`, with all images of the store in it, when they are there."""
    n = len(to)
    step = max(1, CHUNK // max(1, int(np.prod(store.shape))))
    buffer = torch.empty((min(step, n), *store.shape), dtype=torch.uint8, pin_memory=to.is_cuda)
    for start in range(0, n, step):
        rows = np.arange(start, min(start + step, n))
        to[start : start + len(rows)].copy_(store.gather(rows, buffer[: len(rows)]))
    if to.is_cuda:
        torch.cuda.synchronize(to.device)  # streams other than this one will read it
    return to


def page_locked(shape: tuple[int, ...]) -> Tensor:
    """uint8 zeros. Torch's own page-locked tensors are rounded up to a power of two, which may be gigabytes."""
    images = torch.zeros(shape, dtype=torch.uint8)
    failed = int(torch.cuda.cudart().cudaHostRegister(images.data_ptr(), images.numel(), 0))  # type: ignore[no-untyped-call]
    if failed:
        raise UserError(
            f"data.placement=pinned: the system does not lock {images.numel() / 1e9:.2f} GB in memory (CUDA error "
            f"{failed}; `ulimit -l` may say why). Use data.placement=mmap."
        )
    return images


def free_on(device: torch.device) -> int:
    """Bytes."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_on_host()


def free_on_host() -> int:
    """Bytes that a process here can still take, as Linux and its control groups see it; 0 where nobody knows."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return 0
    for limit, used in LIMITS:
        try:
            free = min(free, int((GROUP / limit).read_text()) - int((GROUP / used).read_text()))
        except (OSError, ValueError):  # no such group, or no limit
            continue
    return max(1, free)
