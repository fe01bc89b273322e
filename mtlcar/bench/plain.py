"""The yardstick of `mtlcar bench pipeline`: torchvision transforms in the worker processes of a DataLoader."""

from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, v2

from mtlcar.data.augment import Augment
from mtlcar.data.datamodule import MultiTaskData
from mtlcar.data.decode import PAD_COLOUR
from mtlcar.data.window import crop_window

PREFETCH = 2
"""Batches that each worker process makes in advance: torch's default."""


class PlainImages(Dataset[dict[str, Any]]):
    """The training images of a data module, opened and augmented whenever they are asked for.

    An item is `{"image": float32 [3, S, S], "target": {task: scalar}, "index": int}`. A box is cut out as our decoder
    cuts it; EXIF orientations and 16-bit pictures, which it also handles, are not.
    """

    def __init__(self, data: MultiTaskData, transform: nn.Module) -> None:
        self.rows = data.indices["train"]
        self.files = [data.annotations.file(int(row)) for row in self.rows]
        self.margin = data.decoder.margin
        self.boxes = None if self.margin is None else data.annotations.boxes
        self.targets = data.annotations.targets
        self.transform = transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        row = int(self.rows[i])
        with Image.open(self.files[i]) as opened:
            image: Image.Image = opened
            if self.boxes is not None and self.margin is not None and not np.isnan(self.boxes[row]).any():
                image = image.crop(crop_window(self.files[i], image.size, self.boxes[row], self.margin))
            image = image.convert("RGB")
        return {
            "image": self.transform(image),
            "target": {task: values[row] for task, values in self.targets.items()},
            "index": row,
        }


class PadToSquare(nn.Module):
    """A PIL picture in the middle of grey bars."""

    def forward(self, image: Image.Image) -> Image.Image:
        side = max(image.size)
        left, top = (side - image.width) // 2, (side - image.height) // 2
        padding = [left, top, side - image.width - left, side - image.height - top]
        padded: Image.Image = v2.functional.pad(image, padding, fill=list(PAD_COLOUR))  # type: ignore[assignment,arg-type]
        return padded


def transforms(augment: Augment, size: int, resize: str, mean: Sequence[float], std: Sequence[float]) -> v2.Compose:
    """What a careful researcher writes for these settings: uint8 tensors from the start, as torchvision advises, but
    with colour jitter the PIL picture up to its end: it takes longer on tensors.

    Large JPEG files are decoded in full, as torchvision does; ours are decoded smaller, once, or with data.cache=false
    every time. A random crop is cut from the picture itself here and not from its resized copy; a rotation leaves black
    corners.

    Args:
        size: S, pixels.
        resize: `stretch`, `pad` or `crop`.
        mean, std: normalisation per RGB channel on the 0..1 scale.
    """
    colour = {name: getattr(augment, name) for name in ("brightness", "contrast", "saturation", "hue")}
    steps: list[nn.Module] = [PadToSquare()] if resize == "pad" else []
    if not any(colour.values()):
        steps.append(v2.ToImage())
    if augment.crop_scale is not None:
        steps.append(v2.RandomResizedCrop((size, size), scale=augment.crop_scale, ratio=augment.crop_ratio))
    elif resize == "crop":
        steps += [v2.Resize(size), v2.CenterCrop(size)]
    else:
        steps.append(v2.Resize((size, size)))
    if augment.rotation:
        steps.append(v2.RandomRotation(augment.rotation, interpolation=InterpolationMode.BILINEAR))
    if augment.quarter_turns:
        steps.append(v2.RandomChoice([v2.Identity(), *(v2.RandomRotation((a, a)) for a in (90, 180, 270))]))
    if augment.flip:
        steps.append(v2.RandomHorizontalFlip(augment.flip))
    if augment.vertical_flip:
        steps.append(v2.RandomVerticalFlip(augment.vertical_flip))
    if any(colour.values()):
        steps += [v2.ColorJitter(**colour), v2.ToImage()]
    if augment.grayscale:
        steps.append(v2.RandomGrayscale(augment.grayscale))
    steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))]
    if augment.erasing:
        steps.append(v2.RandomErasing(augment.erasing, scale=augment.erasing_scale, ratio=(0.3, 3.3)))
    return v2.Compose(steps)


class PlainLoader:
    """Epochs of a DataLoader whose worker processes live as long as an iteration over `batches` does.

    Args:
        workers: worker processes; 0: images are made in the training process.
        pin_memory: page-locked batches, for asynchronous copies to a GPU.
    """

    def __init__(self, images: PlainImages, batch_size: int, *, workers: int, pin_memory: bool, seed: int) -> None:
        self.images = images
        self.options: dict[str, Any] = {
            "batch_size": batch_size,
            "shuffle": True,
            "drop_last": len(images) >= batch_size,  # as our loader, which makes one batch of a smaller set
            "num_workers": workers,
            "pin_memory": pin_memory,
            "persistent_workers": workers > 0,
            "prefetch_factor": PREFETCH if workers else None,
            "generator": torch.Generator().manual_seed(seed),  # one for all iterations: each has batches of its own
        }

    @property
    def ahead(self) -> int:
        """Batches that its queue holds."""
        return PREFETCH * int(self.options["num_workers"])

    def batches(self) -> Generator[dict[str, Any], None, None]:
        """Epoch after epoch; `close()` ends the worker processes."""
        loader = DataLoader(self.images, **self.options)
        while True:
            yield from loader
