"""Contact sheets: images as the network gets them, with their labels, for the eye to check."""

import textwrap
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from mtlcar.data.datamodule import MultiTaskData
from mtlcar.data.loader import AUGMENT, image_keys
from mtlcar.data.writing import must_be_writable


def choose_rows(data: MultiTaskData, n: int, seed: int = 0) -> np.ndarray:
    """Rows of n usable images, spread over the classes of the finest task and sorted by class.

    One image of every class (in random order of classes and images) before a second of any.
    """
    rows = np.concatenate([data.indices[split] for split in data.indices])
    rows = np.random.default_rng(seed).permutation(rows)
    finest = data.tasks.finest()
    if finest.kind == "regression":
        return np.sort(rows[:n])
    label = data.annotations.targets[finest.name][rows]
    turn = np.empty(len(rows), dtype=np.int64)  # how many images of its class come before each
    seen: dict[int, int] = {}
    for i, y in enumerate(label):
        turn[i] = seen[int(y)] = seen.get(int(y), -1) + 1
    chosen = np.argsort(turn, kind="stable")[:n]
    return rows[chosen[np.lexsort((rows[chosen], label[chosen]))]]


def caption(data: MultiTaskData, row: int) -> str:
    """Labels of a row in their own units, one line a task in the dataset's order; `?` is missing."""
    lines = []
    for task in data.tasks:
        y = data.annotations.targets[task.name][row]
        if task.kind == "classification":
            text = task.classes[int(y)] if y >= 0 else "?"
        else:
            text = "?" if np.isnan(y) else f"{y:.4g} {task.unit}".rstrip()
        lines += textwrap.wrap(f"{task.name}: {text}", 30)
    return "\n".join(lines)


def pixels(data: MultiTaskData, rows: np.ndarray, augmented: bool) -> np.ndarray:
    """uint8 [B, S, S, 3] as decoded, or as augmented for training (normalisation undone)."""
    image = data.gather(rows)
    if augmented:
        key = torch.from_numpy(image_keys(data.seed, 0, rows, AUGMENT).view(np.int64))
        x = data.augment(image, key)
        image = ((x - data.augment.shift) / data.augment.scale).round().clamp(0, 255).to(torch.uint8)
    return image.permute(0, 2, 3, 1).numpy()


def contact_sheet(data: MultiTaskData, output: Path, n: int = 48, augmented: bool = False, columns: int = 8) -> None:
    """Writes a PNG with n images of a data module that is set up."""
    rows = choose_rows(data, n)
    images = pixels(data, rows, augmented)
    split_of = {int(row): split for split, members in data.indices.items() for row in members}
    captions = [f"{caption(data, int(row))}\n[{split_of[int(row)]} {row}]" for row in rows]
    columns = min(columns, len(rows))
    lines = max(text.count("\n") + 1 for text in captions)
    count = -(-len(rows) // columns)
    side, text_height, title = 1.5, 0.12 * lines + 0.05, 0.4  # inches
    width, height = columns * (side + 0.08), count * (side + text_height) + title
    width = max(width, 5.0)
    figure = Figure(figsize=(width, height), dpi=110)
    counts = ", ".join(f"{len(members)} {split}" for split, members in data.indices.items())
    kind = "as augmented for training" if augmented else "as decoded"
    size = images.shape[1]
    heading = f"{data.name}: {counts}; {len(rows)} images {kind}, {size} x {size} px"
    figure.text(0.5, 1 - 0.2 / height, heading, ha="center", va="center", fontsize=9, parse_math=False, wrap=True)
    for k, (image, text) in enumerate(zip(images, captions, strict=True)):
        left, top = (k % columns) * (side + 0.08) + 0.04, title + (k // columns) * (side + text_height)
        bottom = height - top - side
        ax = figure.add_axes((left / width, bottom / height, side / width, side / height))
        ax.imshow(image, interpolation="nearest")
        ax.axis("off")
        ax.text(0.5, -0.02, text, transform=ax.transAxes, ha="center", va="top", fontsize=6, parse_math=False)
    temporary = output.with_name(f".{output.name}.tmp")
    with must_be_writable("The contact sheet", output.parent, "Choose another file with -o FILE."):
        output.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(temporary, format="png")
        temporary.replace(output)
