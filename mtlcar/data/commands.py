"""`mtlcar data list | prepare | verify | show`: plain functions that print and return an exit status."""

import hashlib
import time
from pathlib import Path

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from mtlcar.config import conf_dir
from mtlcar.data.cache import ImageCache, decode_row
from mtlcar.data.datamodule import MultiTaskData
from mtlcar.data.parallel import in_parallel
from mtlcar.data.picture import open_picture
from mtlcar.data.sheet import contact_sheet
from mtlcar.errors import UserError

SAMPLE = 64
"""Images, spread over the set, that `verify` decodes in full."""


def list_datasets() -> int:
    """Prints the datasets of the group `data`: name and the first line of each yaml."""
    table = Table("data=", "what it is", box=None)
    for file in sorted((conf_dir() / "data").glob("*.yaml")):
        header = file.read_text(encoding="utf-8").splitlines()[0]
        table.add_row(file.stem, header.removeprefix("#").strip())
    Console().print(table)
    return 0


def prepare(node: DictConfig, cache_dir: Path) -> int:
    """Decodes the dataset of the composed group `data` into the cache and prints what is there."""
    data = make(node, cache_dir)
    start = time.monotonic()
    data.setup()
    console = Console()
    print_summary(data, console)
    if isinstance(data.store, ImageCache):
        size = data.store.images.nbytes / 1e6
        console.print(f"{size:.0f} MB of decoded images in {data.store.folder} ({time.monotonic() - start:.1f} s)")
    return 0


def verify(node: DictConfig, cache_dir: Path) -> int:
    """Opens every file again, compares it with the cache and looks for leaks between the splits.

    JPEG files decoded smaller than they are make the cache differ from full decoding; a sample tells by how much.

    Raises:
        UserError: bad labels, damaged images, or a cache that no longer shows what the files do.
    """
    data = make(node, cache_dir)
    data.setup()
    console = Console()
    print_summary(data, console)
    n = len(data.annotations)
    digest: list[bytes] = [b""] * n
    sizes = np.zeros((n, 2), dtype=np.int64)
    stale: list[int] = []
    sample = set(np.linspace(0, n - 1, min(n, SAMPLE)).astype(int).tolist())
    differences: dict[int, float] = {}
    cached = data.store.images if isinstance(data.store, ImageCache) else None

    def check(row: int) -> None:
        if row in data.store.bad:
            return
        sizes[row] = open_picture(data.annotations.file(row)).size
        image_now = decode_row(data.annotations, row, data.decoder)
        digest[row] = hashlib.sha256(image_now.tobytes()).digest()
        if cached is not None and not np.array_equal(image_now, cached[row]):
            stale.append(row)
        if cached is not None and row in sample:
            in_full = decode_row(data.annotations, row, data.decoder, full=True)
            differences[row] = float(np.abs(in_full.astype(np.int16) - cached[row]).mean())

    in_parallel(check, n, f"Verifying {data.name}")
    if stale and isinstance(data.store, ImageCache):
        raise UserError(
            f"{len(stale)} images in the cache are not what their files show, the first: "
            f"{data.annotations.file(min(stale))}.\nDelete {data.store.folder} and prepare the data again."
        )
    good = sizes[sizes[:, 0] > 0]
    low, high = good.min(0), good.max(0)
    console.print(f"Pictures: {low[0]} to {high[0]} pixels wide, {low[1]} to {high[1]} high.")
    if cached is None:
        console.print("Cache: there is none (data.cache=false).")
    else:
        console.print(
            f"Cache: what the files show; {len(differences)} images decoded in full differ from it "
            f"by at most {max(differences.values(), default=0):.2f} of 255 on average."
        )
    for split, count in identical_images(data, digest).items():
        if count:
            console.print(f"[yellow]{count} images of {split} are pixel for pixel in train too.")
    console.print(f"{len(good)} images opened, {len(data.store.bad)} left out, no fault found.")
    return 0


def show(node: DictConfig, cache_dir: Path, *, output: Path, n: int = 48, augmented: bool = False) -> int:
    """Writes a contact sheet of n images, spread over the classes, to a PNG."""
    if n < 1:
        raise UserError(f"The number of images should be at least 1. Found {n}.")
    data = make(node, cache_dir)
    data.setup()
    contact_sheet(data, output, n, augmented)
    Console().print(f"{output}")
    return 0


def make(node: DictConfig, cache_dir: Path) -> MultiTaskData:
    """The data module of a composed group `data`."""
    data: MultiTaskData = instantiate(node, _partial_=True)(cache_dir=cache_dir)
    return data


def print_summary(data: MultiTaskData, console: Console) -> None:
    """Tables of the splits, tasks and labels of a data module that is set up."""
    table = Table("split", "images", "share", "groups", "images whose group is in train", box=None, title=data.name)
    total = sum(len(rows) for rows in data.indices.values())
    leaks = shared_groups(data)
    groups = data.annotations.groups
    for split, rows in data.indices.items():
        known = "-" if groups is None else str(len(np.unique(groups[rows].astype(str))))
        leak = "-" if groups is None or split == "train" else str(leaks[split])
        table.add_row(split, str(len(rows)), f"{len(rows) / total:.1%}", known, leak)
    console.print(table)
    table = Table("task", "labels", *(f"{split}: per class / range" for split in data.indices), "missing", box=None)
    for task in data.tasks:
        y = data.targets[task.name].numpy()  # without labels that data.label_fraction hides
        cells = []
        for rows in data.indices.values():
            known = y[rows][y[rows] >= 0] if task.kind == "classification" else y[rows][~np.isnan(y[rows])]
            if task.kind == "classification":
                count = np.bincount(known, minlength=len(task.classes))
                cells.append(f"{count.min()} to {count.max()}")
            else:
                cells.append(f"{known.min():.4g} to {known.max():.4g}" if len(known) else "-")
        missing = int((y < 0).sum() if task.kind == "classification" else np.isnan(y).sum())
        what = f"{len(task.classes)} classes" if task.kind == "classification" else f"value in {task.unit or '1'}"
        table.add_row(task.name, what, *cells, str(missing))
    console.print(table)


def shared_groups(data: MultiTaskData) -> dict[str, int]:
    """Split -> its images whose group (specimen, car) also has training images; 0 where there are no groups."""
    groups = data.annotations.groups
    if groups is None:
        return dict.fromkeys(data.indices, 0)
    train = np.unique(groups[data.indices["train"]].astype(str))
    return {split: int(np.isin(groups[rows].astype(str), train).sum()) for split, rows in data.indices.items()}


def identical_images(data: MultiTaskData, digest: list[bytes]) -> dict[str, int]:
    """Split other than train -> its images that training has too, by the digest of their pixels [N]."""
    train = {digest[row] for row in data.indices["train"]}
    others = {split: rows for split, rows in data.indices.items() if split != "train"}
    return {split: sum(digest[row] in train for row in rows) for split, rows in others.items()}
