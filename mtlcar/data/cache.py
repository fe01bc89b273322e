"""Decode once: all images of a dataset as one memory-mapped uint8 array, shared by runs and processes."""

import json
import logging
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from PIL import features

from mtlcar.data.annotations import Annotations
from mtlcar.data.cache_key import cache_key, write_atomically
from mtlcar.data.decode import ImageDecoder
from mtlcar.data.file_bytes import shown
from mtlcar.data.parallel import in_parallel
from mtlcar.data.picture import DamagedImageError
from mtlcar.data.row_file import RowWriter
from mtlcar.data.stores import ImageCache, ImageStore, ImageStream, decode_row, read_meta
from mtlcar.data.writing import must_be_writable
from mtlcar.errors import UserError

log = logging.getLogger(__name__)

MAX_SKIPPED_SHARE, MAX_SKIPPED_ALWAYS = 0.01, 5
"""`on_bad_image=skip` leaves out at most 1 % of the images (or 5, if that is more): beyond, the set itself is wrong."""
SHOWN = 10
"""Images that a message names."""


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
    bad = read_meta(folder)
    if bad and on_bad_image == "error":
        raise damaged(bad, annotations)
    for row, reason in list(bad.items())[:SHOWN]:
        log.warning("Left out (data.on_bad_image=skip): %s: %s", shown(annotations.file(row)), reason)
    if len(bad) > SHOWN:
        log.warning(
            "Left out (data.on_bad_image=skip): %d more; a run lists all in its left_out.csv.", len(bad) - SHOWN
        )
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
    if not features.check_feature("libjpeg_turbo"):
        log.debug(
            "Pillow was built without libjpeg-turbo: JPEG files are decoded several times slower than they could be"
        )
    try:
        temporary.mkdir()
        with RowWriter(temporary / "images.npy", (n, 3, s, s)) if keep_images else nullcontext() as file:

            def decode(row: int) -> None:
                try:
                    pixels = decode_row(annotations, row, decoder)
                except DamagedImageError as error:
                    bad[row] = error.reason
                else:
                    if file is not None:
                        file.write(row, pixels)

            in_parallel(decode, n, f"Decoding {annotations.root.name} to {s} px")
            bad = dict(sorted(bad.items()))
            if len(bad) > max(MAX_SKIPPED_ALWAYS, MAX_SKIPPED_SHARE * n):
                raise damaged(bad, annotations)
        meta = {"images": n, "size": s, "bad": {str(row): why for row, why in bad.items()}}
        write_atomically(temporary / "meta.json", json.dumps(meta, indent=1))
        if folder.exists():
            shutil.rmtree(folder)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    log.info("Decoded %d images to %d px in %.1f s: %s", n, s, time.monotonic() - start, folder)


def damaged(bad: dict[int, str], annotations: Annotations) -> UserError:
    """The one message about all images that cannot be used: {row: reason}, the first `SHOWN` named."""
    total = len(annotations)
    limit = int(max(MAX_SKIPPED_ALWAYS, MAX_SKIPPED_SHARE * total))
    lines = [f"  {shown(annotations.file(row))}: {why}" for row, why in list(bad.items())[:SHOWN]]
    if len(bad) > SHOWN:
        lines.append(f"  ... and {len(bad) - SHOWN} more")
    if len(bad) <= limit:
        advice = "Replace these files, or leave the images out with data.on_bad_image=skip."
    else:
        advice = f"Replace these files: data.on_bad_image=skip leaves out at most {limit} of {total}."
    return UserError("\n".join([f"{len(bad)} of {total} images cannot be used:", *lines, advice]))


def _is_complete(folder: Path, annotations: Annotations, decoder: ImageDecoder, keep_images: bool) -> bool:
    try:
        read_meta(folder)
        if keep_images:
            shape = np.load(folder / "images.npy", mmap_mode="r").shape
            return shape == (len(annotations), 3, decoder.size, decoder.size)
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError):  # missing, cut off, or not ours
        return False
    return True
