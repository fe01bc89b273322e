"""Draws a set of pictures into a folder, spread over processes; also the command that each helper process runs."""

import csv
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mtlcar.data.car_drawing import CarBuild, CarModel, CarPicture, build_car, draw_car, fleet
from mtlcar.data.drawn import file_name
from mtlcar.data.parallel import PROGRESS_AFTER, cpus

log = logging.getLogger(__name__)

PER_PROCESS = 200
"""Pictures below which another process is not worth its start."""
COLUMNS = ("file", "make", "model", "type", "year", "weight", "car", "split", "x1", "y1", "x2", "y2")
SPLITS = ("train", "test", "train", "val", "train", "train", "test", "train", "train", "train")
"""Split of a model's 1st, 2nd, ... car, over and over: four cars are enough for all three."""


@dataclass(frozen=True)
class CarSet:
    """What is drawn: `images` pictures of `size` px, the cars going through the models in turn.

    Picture i shows car `i // images_per_car`; both have random generators of their own, so neither depends on how
    many others there are or on which process draws them.
    """

    makes: int
    models_per_make: int
    images: int
    images_per_car: int
    size: int
    difficulty: float
    draw_seed: int

    @cached_property
    def models(self) -> tuple[CarModel, ...]:
        return fleet(self.makes, self.models_per_make, self.draw_seed)

    def _rng(self, stream: int, number: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence((self.draw_seed, stream, number)))

    def car(self, i: int) -> tuple[int, CarModel, CarBuild]:
        """Number, model and build of the car on picture i."""
        number = i // self.images_per_car
        model = self.models[number % len(self.models)]
        return number, model, build_car(model, self._rng(1, number))

    def picture(self, i: int) -> CarPicture:
        _, model, build = self.car(i)
        return draw_car(model, self._rng(2, i), self.size, self.difficulty, build=build)

    def row(self, i: int, picture: CarPicture) -> tuple[object, ...]:
        """Picture i's line of the label file, in the order of `COLUMNS`."""
        number, model, build = self.car(i)
        split = SPLITS[number // len(self.models) % len(SPLITS)]
        labels = (model.make, model.name, model.type, model.year, build.weight)
        return (file_name(i), *labels, f"car{number:06d}", split, *picture.box)


def write_pictures(cars: CarSet, folder: Path, processes: int | None = None) -> None:
    """All pictures to `folder/images` and their labels to `folder/labels.csv`.

    The bytes do not depend on `processes` (None: one per processor, fewer for few pictures).
    """
    (folder / "images").mkdir(parents=True)
    count = processes or max(1, min(cpus(), cars.images // PER_PROCESS))
    # Plain commands, not multiprocessing: forking after torch has threads can hang, and spawning re-runs __main__.
    code = str(Path(__file__).parents[2])
    path = os.pathsep.join(p for p in (code, os.environ.get("PYTHONPATH")) if p)
    helpers = [
        subprocess.Popen(
            [sys.executable, "-m", "mtlcar.data.car_writer", str(folder), json.dumps(asdict(cars)), f"{k}", f"{count}"],
            env={**os.environ, "PYTHONPATH": path},
            stderr=subprocess.PIPE,
            text=True,
        )
        for k in range(1, count)
    ]
    try:
        _show_progress(_write_share(cars, folder, 0, count), len(range(0, cars.images, count)))
        for helper in helpers:
            _, said = helper.communicate()
            if helper.returncode:
                raise RuntimeError(f"A process drawing synthetic cars failed:\n{said}")
    finally:
        for helper in helpers:
            if helper.poll() is None:
                helper.kill()
            helper.wait()
            assert helper.stderr is not None
            helper.stderr.close()
    rows = []
    for k in range(count):
        part = _part(folder, k)
        with part.open(newline="", encoding="utf-8") as file:
            rows += list(csv.reader(file))
        part.unlink()
    _write_csv(folder / "labels.csv", [COLUMNS, *sorted(rows)])


def _part(folder: Path, share: int) -> Path:
    return folder / f"labels-{share}.csv"


def _write_csv(path: Path, rows: list) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def _write_share(cars: CarSet, folder: Path, share: int, of: int) -> Iterator[None]:
    """Pictures share, share + of, ...; yields after each."""
    rows = []
    for i in range(share, cars.images, of):
        picture = cars.picture(i)
        picture.image.save(folder / file_name(i), compress_level=1)
        rows.append(cars.row(i, picture))
        yield
    _write_csv(_part(folder, share), rows)


def _show_progress(work: Iterator[None], count: int) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=Console(stderr=True), transient=True)
    task = progress.add_task("drawing synthetic cars", total=count)
    begin, shown = time.monotonic(), False
    try:
        for _ in work:
            progress.update(task, advance=1)
            if not shown and time.monotonic() - begin > PROGRESS_AFTER:
                shown = True
                if sys.stderr.isatty():
                    progress.start()
                else:
                    log.info("drawing synthetic cars (once)")
    finally:
        progress.stop()


if __name__ == "__main__":
    for _ in _write_share(CarSet(**json.loads(sys.argv[2])), Path(sys.argv[1]), int(sys.argv[3]), int(sys.argv[4])):
        pass
