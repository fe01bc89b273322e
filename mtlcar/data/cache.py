"""Decode once: all images of a dataset as one memory-mapped uint8 array, shared by runs and processes."""

import errno
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from mtlcar.data.annotations import Annotations
from mtlcar.data.cache_key import cache_key, write_atomically
from mtlcar.data.decode import DamagedImageError, ImageDecoder
from mtlcar.data.parallel import cpus, in_parallel
from mtlcar.data.writing import must_be_writable
from mtlcar.errors import UserError

log = logging.getLogger(__name__)

MAX_SKIPPED_SHARE, MAX_SKIPPED_ALWAYS = 0.01, 5
"""`on_bad_image=skip` leaves out at most 1 % of the images (or 5, if that is more): beyond, the set itself is wrong."""


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

    Attributes:
        images: uint8 [N, 3, S, S], read-only.
        bad: row -> why its image could not be decoded; those rows are zero.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bad = _read_meta(folder)
        self.images: np.ndarray = np.load(folder / "images.npy", mmap_mode="r").view(np.ndarray)
        self.shape: tuple[int, ...] = self.images.shape[1:]

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        return ImageCache, (self.folder,)  # another process maps the file; the array itself does not travel

    def gather(self, rows: np.ndarray, out: Tensor | None = None) -> Tensor:
        """Rows [B] -> uint8 [B, 3, S, S]."""
        if out is None:
            out = torch.empty((len(rows), *self.shape), dtype=torch.uint8)
        # any mode but the default "raise" spares a buffer and a second copy; the loader's rows are in range
        np.take(self.images, rows, axis=0, out=out.numpy(), mode="clip")
        return out


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


def decode_row(annotations: Annotations, row: int, decoder: ImageDecoder) -> np.ndarray:
    """Image of one row, uint8 [3, S, S]."""
    box = None if annotations.boxes is None else annotations.boxes[row]
    return decoder(annotations.file(row), box).transpose(2, 0, 1)


def open_store(
    annotations: Annotations,
    decoder: ImageDecoder,
    cache_dir: Path,
    *,
    cache: bool = True,
    on_bad_image: str = "error",
) -> ImageStore:
    """The images of `annotations`, decoded now if no earlier run or process has done it.

    Every image is decoded once before this returns, also for streaming (`cache=False`, which keeps only the
    list of damaged images), so a damaged one is reported before training and not in the middle of it. A complete
    cache is only read, so it may lie in a folder that cannot be written.

    Raises:
        UserError: damaged images, boxes outside their picture, too little disk, a cache folder that cannot be written.
    """
    if on_bad_image not in ("error", "skip"):
        raise UserError(f"data.on_bad_image should be error or skip. Found {on_bad_image!r}.")
    with must_be_writable("The image cache", cache_dir, "Choose another folder with paths.cache=..."):
        cache_dir.mkdir(parents=True, exist_ok=True)
        key = cache_key(annotations, decoder, cache_dir)
        folder = cache_dir / (f"images-{key}" if cache else f"checked-{key}")
        if not _is_complete(folder, annotations, decoder, cache):
            with _locked(cache_dir / f"{folder.name}.lock"):
                if not _is_complete(folder, annotations, decoder, cache):  # nobody built it while this process waited
                    _build(folder, annotations, decoder, cache)
    bad = _read_meta(folder)
    if bad and on_bad_image == "error":
        raise damaged(bad, annotations)
    for row, reason in bad.items():
        log.warning("Left out (data.on_bad_image=skip): %s: %s", annotations.file(row), reason)
    return ImageCache(folder) if cache else ImageStream(annotations, decoder, bad)


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    lock = FileLock(file)
    try:
        lock.acquire(timeout=1)
    except Timeout:
        log.info("Another process is decoding the same images; waiting for it (%s)", file)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _build(folder: Path, annotations: Annotations, decoder: ImageDecoder, keep_images: bool) -> None:
    """Decodes everything into a temporary folder, then renames it to `folder`. The caller holds the lock."""
    for stale in folder.parent.glob(f"{folder.name}*.tmp"):
        shutil.rmtree(stale)  # left by a build that was killed: a living one would hold the lock
    n, s = len(annotations), decoder.size
    temporary = folder.parent / f"{folder.name}-{uuid.uuid4().hex[:8]}.tmp"
    start = time.monotonic()
    bad: dict[int, str] = {}
    try:
        temporary.mkdir()
        images = _reserve(temporary / "images.npy", (n, 3, s, s)) if keep_images else None

        def decode(row: int) -> None:
            try:
                pixels = decode_row(annotations, row, decoder)
            except DamagedImageError as error:
                bad[row] = error.reason
            else:
                if images is not None:
                    images[row] = pixels

        in_parallel(decode, n, f"Decoding {annotations.root.name} to {s} px")
        bad = dict(sorted(bad.items()))
        if len(bad) > max(MAX_SKIPPED_ALWAYS, MAX_SKIPPED_SHARE * n):
            raise damaged(bad, annotations)
        if isinstance(images, np.memmap):
            images.flush()
        meta = {"images": n, "size": s, "bad": {str(row): why for row, why in bad.items()}}
        write_atomically(temporary / "meta.json", json.dumps(meta, indent=1))
        if folder.exists():
            shutil.rmtree(folder)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    log.info("Decoded %d images to %d px in %.1f s: %s", n, s, time.monotonic() - start, folder)


def _reserve(file: Path, shape: tuple[int, ...]) -> np.memmap:
    """A new .npy file of uint8 zeros whose disk blocks are already ours: a full disk would kill a mapped write."""
    need = int(np.prod(shape)) + 4096
    free = shutil.disk_usage(file.parent).free
    if need > free:
        raise _too_little_disk(file.parent, need, free)
    images = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with file.open("r+b") as handle:
            try:
                os.posix_fallocate(handle.fileno(), 0, file.stat().st_size)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise _too_little_disk(file.parent, need, shutil.disk_usage(file.parent).free) from None
                # a file system that cannot reserve: the check above must do
    return images


def _too_little_disk(folder: Path, need: int, free: int) -> UserError:
    return UserError(
        f"Too little disk for the image cache under {folder.parent}: "
        f"{need / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free.\n"
        "Free some, choose another folder with paths.cache=..., a smaller data.image_size, "
        "or decode while training with data.cache=false."
    )


def damaged(bad: dict[int, str], annotations: Annotations, shown: int = 10) -> UserError:
    """The one message about all images that cannot be used: {row: reason}, the first `shown` named."""
    total = len(annotations)
    limit = int(max(MAX_SKIPPED_ALWAYS, MAX_SKIPPED_SHARE * total))
    lines = [f"  {annotations.file(row)}: {why}" for row, why in list(bad.items())[:shown]]
    if len(bad) > shown:
        lines.append(f"  ... and {len(bad) - shown} more")
    if len(bad) <= limit:
        advice = "Replace these files, or leave the images out with data.on_bad_image=skip."
    else:
        advice = f"Replace these files: data.on_bad_image=skip leaves out at most {limit} of {total}."
    return UserError("\n".join([f"{len(bad)} of {total} images cannot be used:", *lines, advice]))


def _is_complete(folder: Path, annotations: Annotations, decoder: ImageDecoder, keep_images: bool) -> bool:
    try:
        _read_meta(folder)
        if keep_images:
            shape = np.load(folder / "images.npy", mmap_mode="r").shape
            return shape == (len(annotations), 3, decoder.size, decoder.size)
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError):  # missing, cut off, or not ours
        return False
    return True


def _read_meta(folder: Path) -> dict[int, str]:
    bad = json.loads((folder / "meta.json").read_text())["bad"]
    return {int(row): str(why) for row, why in bad.items()}
