"""`mtlcar explain RUN IMAGE...`: where each task's network looks (Grad-CAM), side by side."""

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mtlcar.errors import UserError, did_you_mean
from mtlcar.inference.cam import load_package, task_cam, view_of
from mtlcar.inference.images import picture_files
from mtlcar.inference.network import Said, TrainedNetwork, load_network
from mtlcar.inference.overlay import overlay_figure, to_size
from mtlcar.listing.finding import find_run
from mtlcar.runs.evaluate import stored_config
from mtlcar.runs.files import replacing
from mtlcar.tasks import Task, TaskSet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 16
"""Most pictures of one figure."""
TITLE = 30
"""Most characters in a line of a title."""


def command(run: str, images: Sequence[str], *, output: str = "explained.png", tasks: Sequence[str] | None) -> int:
    """Writes the figure and prints its path.

    Raises:
        UserError: no such run, task or picture; a damaged picture; the package is missing; a name that is no PNG's.
    """
    path = Path(output)
    if path.suffix.lower() != ".png" or path.is_dir():
        raise UserError(f"-o {output}: the figure is written as PNG. Give a file name that ends in .png.")
    load_package()
    run_dir = find_run(run).directory
    files = picture_files(images)
    if len(files) > MOST:
        print(f"One figure shows {MOST} pictures: the first of {len(files)}.", file=sys.stderr)
        files = files[:MOST]
    network = load_network(run_dir, stored_config(run_dir, []))
    chosen = chosen_tasks(network.architecture.tasks, tasks)
    network.to("cuda" if torch.cuda.is_available() else "cpu")
    pixels = torch.stack([network.read(file) for file in files])
    figure = explained(network, pixels, [file.name for file in files], chosen)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, bbox_inches="tight", pad_inches=0.06)
    print(path)
    return 0


def chosen_tasks(trained: TaskSet, wanted: Sequence[str] | None) -> list[str]:
    """The trained tasks of these names in their own order; None: all.

    Raises:
        UserError: one that is not trained.
    """
    for name in wanted or ():
        if name not in trained:
            raise UserError(
                f"--tasks {name}: this network has no such output.{did_you_mean(name, trained.names)} It was trained "
                f"on {', '.join(trained.names)}."
            )
    return [name for name in trained.names if not wanted or name in wanted]


def explained(network: TrainedNetwork, pixels: Tensor, names: Sequence[str], tasks: Sequence[str]) -> "Figure":
    """The figure: a row a picture, the picture and a column for each of `tasks`.

    Classes are explained by the logit of the predicted class, which is the one that the title names; values by
    themselves. Test-time augmentation counts in the titles alone: maps are of the picture as it is.

    Args:
        pixels: uint8 [B, 3, S, S].
        names: of the pictures.
        tasks: of those that are trained.
    """
    said = network(pixels)
    image = network.augment.normalize(pixels.to(network.device))
    with torch.no_grad():
        outputs = network.outputs(image)
    predicted, scores = network.losses.predictions(outputs), network.losses.scores(outputs)
    shares, titles, grids = [], [], []
    for name in tasks:
        task = network.architecture.tasks[name]
        view = view_of(network.architecture, name, image[:1])
        cam = task_cam(view, image, predicted[name] if task.classes else None)
        grids.append(f"{cam.shape[1]} x {cam.shape[2]}")
        shares.append(list(to_size(cam, network.image_size)))
        values = predicted[name] if task.classes or name not in said.predictions else said.predictions[name]
        titles.append(_titles(task, values, scores.get(name), name in network.tasks))
    pictures = [np.asarray(p) for p in pixels.permute(0, 2, 3, 1)]
    grid = " and ".join(dict.fromkeys(grids))
    return overlay_figure(pictures, _picture_titles(network, said, names), shares, titles, grid)


def _titles(task: Task, values: Tensor, scores: Tensor | None, of_data: bool) -> list[str]:
    """What is predicted: the class and its probability, the value with its unit, or the position on FastCAR's axis."""
    if scores is None:
        what = task.name if of_data else f"position on the {task.name}"
        return [f"{what}\n{value:.4g} {task.unit}".rstrip() for value in values.tolist()]
    sure = scores.gather(1, values[:, None])[:, 0].tolist()
    return [
        f"{task.name} ({100 * p:.0f} %)\n{_short(task.classes[c])}" for c, p in zip(values.tolist(), sure, strict=True)
    ]


def _picture_titles(network: TrainedNetwork, said: Said, names: Sequence[str]) -> list[str]:
    """The pictures' names; and, where other tasks are trained than the data has, what is decoded from them."""
    found = [_short(name) for name in names]
    for task in network.tasks:
        if task.name in network.architecture.tasks or task.name not in said.predictions:
            continue
        found = [
            f"{title}\n{_short(_decoded(task, value))}"
            for title, value in zip(found, said.predictions[task.name].tolist(), strict=True)
        ]
    return found


def _decoded(task: Task, value: float) -> str:
    if task.classes:
        return f"{task.name}: {'none' if value < 0 else task.classes[int(value)]}"
    return f"{task.name}: {value:.4g} {task.unit}".rstrip()


def _short(text: str) -> str:
    return textwrap.shorten(text, TITLE, placeholder="…") if " " in text else text[:TITLE]
