"""Where batches come from: the cache's file, or the picture files themselves."""

import json
import os
import resource
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mtlcar.data.annotations import Annotations
from mtlcar.data.decode import ImageDecoder
from mtlcar.data.parallel import cpus
from mtlcar.data.row_file import read_row

READERS = 8
"""Rows read from the disk at once: disks answer many requests sooner than one after another. 8 read 1.8 times as many
images a second as one; 16 were no faster."""


class ImageStore(Protocol):
    """Where batches come from.

    Attributes:
        shape: (3, S, S).
        bad: row -> why its image is unusable; such rows must not be asked for.
    """

    shape: tuple[int, ...]
    bad: dict[int, str]

    def gather(self, rows: np.ndarray, out: Tensor | None = None) -> Tensor:
        """Rows [B] -> uint8 [B, 3, S, S], written into `out` if given."""
        ...


class ImageCache:
    """The decoded images of `folder`, read through the page cache: processes share one copy in memory.

    Rows in memory, and rows side by side, are copied from a mapping of the file, which is fastest. Rows scattered over
    the disk are read through the file by several threads: a mapping would read up to megabytes around each of them,
    one after another. Whether the next batch is taken to be on the disk follows from whether this one was.

    Attributes:
        images: uint8 [N, 3, S, S], read-only.
        bad: row -> why its image could not be decoded; those rows are zero.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bad = read_meta(folder)
        mapped = np.load(folder / "images.npy", mmap_mode="r")
        self.images: np.ndarray = mapped.view(np.ndarray)
        self.shape: tuple[int, ...] = self.images.shape[1:]
        self._start = mapped.offset
        self._file = os.open(folder / "images.npy", os.O_RDONLY)
        # not at exit: a thread may still be reading
        weakref.finalize(self, os.close, self._file).atexit = False
        self._on_disk = True

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        return ImageCache, (self.folder,)  # another process maps the file; the array itself does not travel

    def gather(self, rows: np.ndarray, out: Tensor | None = None) -> Tensor:
        """Rows [B] -> uint8 [B, 3, S, S]; `out` contiguous."""
        if out is None:
            out = torch.empty((len(rows), *self.shape), dtype=torch.uint8)
        images = out.numpy()
        if self._on_disk and len(rows) and np.ptp(rows) > 2 * len(rows):
            parts = zip(np.array_split(rows, READERS), np.array_split(images, READERS), strict=True)
            with ThreadPoolExecutor(READERS, thread_name_prefix="read") as pool:  # a lasting one would break in a fork
                read = sum(pool.map(lambda part: self._read(*part), parts))
        else:
            before = blocks_read()
            # any mode but the default "raise" spares a buffer and a second copy; the loader's rows are in range
            np.take(self.images, rows, axis=0, out=images, mode="clip")
            read = blocks_read() - before
        self._on_disk = read > 0
        return out

    def _read(self, rows: np.ndarray, images: np.ndarray) -> int:
        before = blocks_read()
        for row, image in zip(rows.tolist(), images, strict=True):
            read_row(self._file, self._start, row, image)
        return blocks_read() - before


class ImageStream:
    """The same images decoded whenever they are asked for, for sets that do not fit the disk or memory."""

    def __init__(self, annotations: Annotations, decoder: ImageDecoder, bad: dict[int, str]) -> None:
        self.annotations = annotations
        self.decoder = decoder
        self.bad = bad
        self.shape: tuple[int, ...] = (3, decoder.size, decoder.size)
        self._pool = ThreadPoolExecutor(cpus(), thread_name_prefix="decode")

    def __reduce__(self) -> tuple[type, tuple[Annotations, ImageDecoder, dict[int, str]]]:
        return ImageStream, (self.annotations, self.decoder, self.bad)

    def gather(self, rows: np.ndarray, out: Tensor | None = None) -> Tensor:
        """Rows [B] -> uint8 [B, 3, S, S]."""
        if out is None:
            out = torch.empty((len(rows), *self.shape), dtype=torch.uint8)
        images = out.numpy()

        def fill(k: int) -> None:
            images[k] = decode_row(self.annotations, int(rows[k]), self.decoder)

        list(self._pool.map(fill, range(len(rows))))
        return out


def decode_row(annotations: Annotations, row: int, decoder: ImageDecoder, *, full: bool = False) -> np.ndarray:
    """Image of one row, uint8 [3, S, S], contiguous; `full` as in `ImageDecoder`."""
    box = None if annotations.boxes is None else annotations.boxes[row]
    return np.ascontiguousarray(decoder(annotations.file(row), box, full=full).transpose(2, 0, 1))


def read_meta(folder: Path) -> dict[int, str]:
    """What a complete cache in `folder` says of its unusable images: row -> why."""
    bad = json.loads((folder / "meta.json").read_text())["bad"]
    return {int(row): str(why) for row, why in bad.items()}


def blocks_read() -> int:
    """Disk blocks that this thread has had read; 0 where the system does not count them."""
    if not hasattr(resource, "RUSAGE_THREAD"):
        return 0
    return resource.getrusage(resource.RUSAGE_THREAD).ru_inblock
