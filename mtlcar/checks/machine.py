"""What this machine lacks: folders that can be written, disk, devices."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

BYTES = 4
"""Of a parameter in a checkpoint, at the least: the weights in float32. An optimizer's averages come on top; what is
refused here is what cannot fit."""


def folders(cfg: DictConfig) -> Iterator[str]:
    """What can be known of `paths` without writing anything."""
    for key in ("runs", "cache"):
        folder = Path(cfg.paths[key])
        there = existing(folder)
        if any(len(part.encode()) > 255 for part in folder.parts):
            yield f"paths.{key}={folder}: File name too long. Choose another folder with paths.{key}=..."
        elif not there.is_dir():
            yield f"paths.{key}={folder}: {there} is a file. Choose a folder with paths.{key}=..."
        elif key == "runs" and not os.access(there, os.W_OK | os.X_OK):
            yield f"paths.runs={folder}: {there} cannot be written. Choose another folder with paths.runs=..."


def existing(path: Path) -> Path:
    """The path itself or the nearest above it that exists."""
    while not os.path.exists(path) and path != path.parent:  # noqa: PTH110 - Path's raises where it may not look
        path = path.parent
    return path


def disk(cfg: DictConfig, *, images: int = 0, checkpoints: int = 0) -> Iterator[str]:
    """
    Args:
        images: rows of the dataset, 0 if they need no room.
        checkpoints: parameters of the networks that have no checkpoint yet, all together.
    """
    cache, runs = existing(Path(cfg.paths.cache)), existing(Path(cfg.paths.runs))
    size = cfg.data.image_size
    pixels = images * 3 * size**2 if cfg.data.cache and not is_decoded(Path(cfg.paths.cache), images, size) else 0
    states = checkpoints * BYTES
    same = cache.stat().st_dev == runs.stat().st_dev
    free = {folder: shutil.disk_usage(folder).free for folder in (cache, runs)}
    if pixels > free[cache]:
        yield (
            f"data.image_size={size}: {images} decoded images need {gigabytes(pixels)}, and {gigabytes(free[cache])} "
            f"are free for paths.cache={cfg.paths.cache}. Free some, choose another folder with paths.cache=..., a "
            "smaller data.image_size, or decode while training with data.cache=false."
        )
    elif states + same * pixels > free[runs]:
        yield (
            f"paths.runs={cfg.paths.runs}: checkpoints need at least {gigabytes(states)}"
            f"{f' and decoded images {gigabytes(pixels)}' if same and pixels else ''}, and {gigabytes(free[runs])} are "
            "free. Free some, or choose another folder with paths.runs=..."
        )


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.3g} GB"


def is_decoded(cache: Path, images: int, size: int) -> bool:
    """Whether some set of as many images of this size is there: most likely this one, which then needs no room."""
    for file in cache.glob("images/images-*/images.npy"):
        try:
            if np.load(file, mmap_mode="r").shape == (images, 3, size, size):
                return True
        except (OSError, ValueError, EOFError):
            continue
    return False


def typed_devices(devices: object) -> Any:
    """trainer.devices: a number, "auto", or a list of indices, also where the number or list is a word ("2", "0,1").
    What is none of them is returned, alone or in the list, as it is."""
    if OmegaConf.is_list(devices):
        return list(devices)  # type: ignore[call-overload]
    if isinstance(devices, str) and "," in devices:
        return [_number(part.strip()) for part in devices.split(",") if part.strip()]
    return _number(devices)


def _number(word: object) -> object:
    return int(word) if isinstance(word, str) and re.fullmatch(r"-?\d+", word) else word


def devices(cfg: DictConfig) -> Iterator[str]:
    """GPUs that were asked for and are not here, and a precision that they lack. Touches CUDA."""
    import torch

    accelerator, wanted = cfg.trainer.accelerator, typed_devices(cfg.trainer.devices)
    if accelerator == "mps" and not torch.backends.mps.is_available():
        yield "trainer.accelerator=mps asks for Apple's GPU and there is none. Use trainer=cpu, or accelerator=auto."
    if accelerator not in ("gpu", "cuda", "auto"):
        return
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not there:
        if accelerator != "auto":
            yield (
                f"trainer.accelerator={accelerator} asks for a GPU and there is none here. Use trainer=cpu or "
                "trainer.accelerator=auto; if there should be one, `nvidia-smi` and CUDA_VISIBLE_DEVICES say more."
            )
        elif cfg.trainer.precision == "16-mixed":
            yield "trainer.precision=16-mixed is for GPUs and there is none here. Use 32-true, bf16-mixed or auto."
        return
    indices = [i for i in wanted if isinstance(i, int)] if isinstance(wanted, list) else []
    most = max(indices) + 1 if indices else wanted
    if isinstance(most, int) and most > there:
        found = cfg.trainer.devices
        yield f"trainer.devices={found}: there are {there} GPUs here. Use at most that many, or auto for all."
    if cfg.trainer.precision == "bf16-mixed" and not torch.cuda.is_bf16_supported(including_emulation=False):
        yield (
            "trainer.precision=bf16-mixed: this GPU has no bf16 and would be slower than without. Use 16-mixed, "
            "32-true or auto."
        )
