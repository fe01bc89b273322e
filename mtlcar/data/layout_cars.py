"""Drawn cars to write to disk in a publisher's layout, and the means to write them."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from PIL import Image

from mtlcar.data.car_drawing import CarModel, build_car, draw_car
from mtlcar.errors import UserError


@dataclass(frozen=True)
class DrawnCar:
    """One picture of one individual car.

    Attributes:
        model: the car's model, with make, body type, year, number of doors.
        car: number of the individual among those of its model; its pictures share paint and weight.
        image: RGB.
        box: (x1, y1, x2, y2) in pixels, x2 and y2 exclusive.
        weight: kerb weight in kg.
        view: CompCars' viewpoint: front, rear, side, front-side or rear-side.
        paint: RGB, 0 to 255.
    """

    model: CarModel
    car: int
    image: Image.Image
    box: tuple[int, int, int, int]
    weight: float
    view: str
    paint: tuple[float, float, float]


def draw_cars(
    models: Sequence[CarModel],
    cars_per_model: int,
    pictures_per_car: int,
    size: int,
    seed: int,
    difficulty: float = 0.5,
    view: str | None = None,
) -> list[DrawnCar]:
    """`cars_per_model * pictures_per_car` pictures [size x size] of each model, in the order of the models.

    A picture depends on `seed`, its model and its numbers alone.
    """
    drawn = []
    for model in models:
        for car in range(cars_per_model):
            build = build_car(model, np.random.default_rng([seed, model.index, car]))
            for k in range(pictures_per_car):
                rng = np.random.default_rng([seed, model.index, car, k])
                p = draw_car(model, rng, size, difficulty, build=build, view=view)
                drawn.append(DrawnCar(model, car, p.image, p.box, p.weight, p.view, build.paint))
    return drawn


@contextmanager
def new_folder(root: Path) -> Iterator[Path]:
    """A temporary folder beside `root` that becomes `root` once all is written, so that none is ever half there.

    Raises:
        UserError: `root` is there already and is not an empty folder.
    """
    root = Path(root)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(f"{root} is there already. Give a new or empty folder to write the images to.")
    root.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{root.name}.", suffix=".tmp", dir=root.parent))
    try:
        yield work
        work.chmod(0o755)
        if root.exists():
            root.rmdir()
        work.replace(root)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def save_image(image: Image.Image, file: Path) -> None:
    """JPEG of quality 92, or LZW-compressed TIFF, by the suffix; makes the folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".tif":
        image.save(file, compression="tiff_lzw")
    else:
        image.save(file, quality=92)


def save_mat(file: Path, **variables: Any) -> None:
    """A MATLAB 5 file; makes the folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(file, variables)


def cells(values: Sequence[Any], column: bool = False) -> np.ndarray:
    """A MATLAB cell array [1, N], or [N, 1]; [N, K] where the values are tuples of K."""
    wide = [v if isinstance(v, tuple) else (v,) for v in values]
    out = np.empty((len(wide), len(wide[0])), dtype=object)
    for i, row in enumerate(wide):
        for j, v in enumerate(row):
            out[i, j] = v
    return out if column or out.shape[1] > 1 else out.T


def structs(rows: Sequence[dict[str, Any]]) -> np.ndarray:
    """A MATLAB struct array [1, N] with the fields of the first row, in its order; numbers as small as they allow,
    like the publishers'."""
    out = np.empty((1, len(rows)), dtype=[(name, object) for name in rows[0]])
    for i, row in enumerate(rows):
        out[0, i] = tuple(v if isinstance(v, str) else np.array(v, np.min_scalar_type(v)) for v in row.values())
    return out
