"""Where the batches of a measured training come from, and the time that a stretch of it takes."""

import time
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device

from mtlcar.bench.plain import PlainImages, PlainLoader, transforms
from mtlcar.bench.rig import Rig
from mtlcar.build import Parts
from mtlcar.data.datamodule import MultiTaskData

Batch = dict[str, Any]


@dataclass
class Feed:
    """One way to get batches.

    Args:
        name: of its row.
        batches: begins an endless iteration, whose `close()` ends every thread and process behind it.
        ready: a batch of it -> the same on the device, normalised and augmented.
        ahead: batches that are made in advance.
        image_bytes: what the loader makes of an image, bytes.
    """

    name: str
    batches: Callable[[], Generator[Batch, None, None]]
    ready: Callable[[Batch], Batch]
    ahead: int
    image_bytes: int


def endless(epochs: Iterable[Batch]) -> Generator[Batch, None, None]:
    while True:
        yield from epochs  # hands close() on to the epoch that is under way


def feeds(parts: Parts, rig: Rig, workers: int) -> tuple[Feed, Feed, Feed]:
    """One resident batch, our loader, and the plain one with `workers` processes.

    Args:
        parts: of the run whose network the rig trains.
    """
    data, device, size = parts.data, rig.device, parts.image_size
    loader = data.train_dataloader()
    backbone = parts.module.architecture.backbone
    images = PlainImages(data, transforms(data.augment, size, data.decoder.resize, backbone.mean, backbone.std))
    plain = PlainLoader(
        images, data.batch_size, workers=workers, pin_memory=device.type == "cuda", seed=int(rig.cfg.seed)
    )
    pixels = 3 * size**2

    def ours(batch: Batch) -> Batch:
        return on_device(data, batch, device)

    with closing(endless(loader)) as first:
        resident = ours(next(first))
    return (
        Feed("model", lambda: endless([resident]), lambda batch: batch, 1, 0),
        Feed("mtlcar" if data.cache else "mtlcar streamed", lambda: endless(loader), ours, loader.prefetch + 1, pixels),
        Feed("plain", plain.batches, lambda batch: move_data_to_device(batch, device), plain.ahead, 4 * pixels),
    )


def on_device(data: MultiTaskData, batch: Batch, device: torch.device) -> Batch:
    """What Lightning does with a batch before the step: the data module's three hooks."""
    batch = data.on_before_batch_transfer(batch, 0)
    batch = data.transfer_batch_to_device(batch, device, 0)
    return data.on_after_batch_transfer(batch, 0)


@dataclass
class Stretch:
    """Milliseconds a batch: `ms` altogether, of which the training's thread waited `wait_ms` for the loader."""

    ms: float
    wait_ms: float


def stretch(feed: Feed, step: Callable[[Batch], None], n: int, synchronize: Callable[[], None]) -> Stretch:
    """n steps in the middle of a training: as many as its queue holds come before them, untimed.

    So a loader that is faster than the model begins with a full queue and a slower one with an empty one, as it would
    go on. When it returns, the feed's threads and processes are gone.
    """
    waited = 0.0
    with closing(feed.batches()) as batches:
        for _ in range(feed.ahead + 1):
            step(feed.ready(next(batches)))
        synchronize()
        start = time.perf_counter()
        for _ in range(n):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            step(feed.ready(batch))
        synchronize()
        seconds = time.perf_counter() - start
    return Stretch(1e3 * seconds / n, 1e3 * waited / n)


def read_files(files: Iterable[Path], seconds: float) -> None:
    """Brings the files into the system's cache, where they are in all but the first epoch of a run; as many as there is
    time for."""
    end = time.perf_counter() + seconds
    for file in files:
        file.read_bytes()
        if time.perf_counter() > end:
            break


def read_through(feed: Feed, images: int, batch_size: int, seconds: float) -> None:
    """One epoch without a model, or `seconds` of it, so that code and kernels are loaded."""
    end = time.perf_counter() + seconds
    with closing(feed.batches()) as batches:
        for _ in range(images // batch_size):
            if time.perf_counter() > end:
                break
            next(batches)
