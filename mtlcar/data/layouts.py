"""Drawn cars on disk in each publisher's own layout: what the readers are tested with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl

from mtlcar.data.advanced_steel import CLASS, PATH, PROPERTY, SPLITS
from mtlcar.data.car_drawing import VIEWS, CarModel
from mtlcar.data.compcars_surveillance import COLORS
from mtlcar.data.compcars_web import COLUMNS
from mtlcar.data.layout_cars import DrawnCar, cells, new_folder, save_image, save_mat, structs
from mtlcar.errors import UserError

STANFORD_TYPE = {"suv": "SUV", "pickup": "Crew Cab"}
COMPCARS_TYPES = (
    *("MPV", "SUV", "sedan", "hatchback", "minibus", "fastback", "estate", "pickup"),
    *("hardtop convertible", "sports", "crossover", "convertible"),
)
COMPCARS_TYPE = {"van": "MPV", "suv": "SUV", "wagon": "estate", "coupe": "sports"}
COLOR_RGB = np.array(
    [
        *((35, 35, 40), (235, 235, 235), (175, 30, 35), (222, 180, 40), (40, 75, 150)),
        *((45, 115, 90), (95, 30, 95), (96, 62, 44), (200, 185, 160), (160, 165, 170)),
    ]
)
"""A typical paint for each of the surveillance part's colours."""


def class_name(model: CarModel) -> str:
    """The name that Stanford Cars would give a model: `<make> <model> <Type> <year>`."""
    return f"{model.name} {STANFORD_TYPE.get(model.type, model.type.title())} {model.year}"


def write_stanford_cars(root: Path, cars: Sequence[DrawnCar], *, layout: str = "new", test_share: float = 0.5) -> Path:
    """Stanford Cars: of each model the last `test_share` of the pictures are test images.

    Args:
        root: a new or empty folder.
        cars: the pictures.
        layout: `new` (cars_train/, cars_test/, devkit/) or `old` (car_ims/, cars_annos.mat).
        test_share: 0 to below 1; 0 leaves out the test images' files altogether.
    """
    if layout not in ("new", "old"):
        raise UserError(f"The layout should be new or old. Found {layout!r}.")
    models = _models(cars)
    test = _last_share(cars, test_share)
    names = cells([class_name(m) for m in models])
    with new_folder(root) as folder:
        rows: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
        for i, car in enumerate(cars):
            split = "test" if test[i] else "train"
            x1, y1, x2, y2 = car.box
            box = {"bbox_x1": x1 + 1, "bbox_y1": y1 + 1, "bbox_x2": x2, "bbox_y2": y2}  # as MATLAB counts
            label = {"class": models.index(car.model) + 1}
            if layout == "old":
                path = f"car_ims/{i + 1:06d}.jpg"
                rows["train"].append({"relative_im_path": path} | box | label | {"test": int(test[i])})
            else:
                name = f"{len(rows[split]) + 1:05d}.jpg"
                path = f"cars_{split}/{name}"
                rows[split].append(box | label | {"fname": name})
            save_image(car.image, folder / path)
        if layout == "old":
            save_mat(folder / "cars_annos.mat", annotations=structs(rows["train"]), class_names=names)
        else:
            save_mat(folder / "devkit" / "cars_meta.mat", class_names=names)
            save_mat(folder / "devkit" / "cars_train_annos.mat", annotations=structs(rows["train"]))
            if rows["test"]:
                save_mat(folder / "cars_test_annos_withlabels.mat", annotations=structs(rows["test"]))
    return root


def write_compcars(
    root: Path, cars: Sequence[DrawnCar], *, part: str = "web", misc_at_root: bool = False, test_share: float = 0.5
) -> Path:
    """CompCars, the web part under `data/` or the surveillance part under `sv_data/`.

    As in the real lists, model ids have gaps (the ids between have empty names), some images' year is unknown, and
    a model is built in two years.

    Args:
        root: a new or empty folder.
        cars: the pictures.
        part: `web` or `surveillance`.
        misc_at_root: web: `misc/` beside `data/` instead of in it.
        test_share: of each model's pictures the last go to the test list.
    """
    if part not in ("web", "surveillance"):
        raise UserError(f"The part should be web or surveillance. Found {part!r}.")
    with new_folder(root) as folder:
        if part == "web":
            _write_web(folder / "data", folder / "misc" if misc_at_root else folder / "data" / "misc", cars, test_share)
        else:
            _write_surveillance(folder / "sv_data", cars, test_share)
    return root


def _write_web(base: Path, misc: Path, cars: Sequence[DrawnCar], test_share: float) -> None:
    models = _models(cars)
    makes = list(dict.fromkeys(m.make for m in models))
    test = _last_share(cars, test_share)
    lists: dict[bool, list[str]] = {False: [], True: []}
    for i, car in enumerate(cars):
        year = "unknown" if i % 7 == 6 else car.model.year + i % 2
        path = f"{makes.index(car.model.make) + 1}/{2 * models.index(car.model) + 2}/{year}/{i:014x}"
        lists[bool(test[i])].append(f"{path}.jpg")
        save_image(car.image, base / "image" / f"{path}.jpg")
        x1, y1, x2, y2 = car.box
        _write_text(
            base / "label" / f"{path}.txt", [str(VIEWS.index(car.view) + 1), "1", f"{x1 + 1} {y1 + 1} {x2} {y2}"]
        )
    for name, chosen in (("train", False), ("test", True)):
        _write_text(base / "train_test_split" / "classification" / f"{name}.txt", lists[chosen])
    names = [name for m in models for name in ("", f"{m.make} {m.model}")]
    save_mat(misc / "make_model_name.mat", make_names=cells(makes, column=True), model_names=cells(names, column=True))
    save_mat(misc / "car_type.mat", types=cells(COMPCARS_TYPES))
    lines = [" ".join(COLUMNS)]
    for k, m in enumerate(models):
        kind = COMPCARS_TYPES.index(COMPCARS_TYPE.get(m.type, m.type)) + 1
        lines.append(f"{2 * k + 2} {150 + 10 * (k % 9)} {1 + k % 4}.{k % 10} {m.doors} {(5, 7, 5, 4, 0)[k % 5]} {kind}")
    _write_text(misc / "attributes.txt", lines)


def _write_surveillance(base: Path, cars: Sequence[DrawnCar], test_share: float) -> None:
    models = _models(cars)
    test = _last_share(cars, test_share)
    names = [f"{models.index(car.model) + 1}/{i:014x}.jpg" for i, car in enumerate(cars)]
    for name, car in zip(names, cars, strict=True):
        save_image(car.image, base / "image" / name)
    for split, chosen in (("train", False), ("test", True)):
        _write_text(base / f"{split}_surveillance.txt", [n for n, t in zip(names, test, strict=True) if t == chosen])
    rows = [(m.make, m.model, 2 * k + 2) for k, m in enumerate(models)]
    save_mat(base / "sv_make_model_name.mat", sv_make_model_name=cells(rows))
    nearest = [int(((COLOR_RGB - np.array(car.paint)) ** 2).sum(1).argmin()) for car in cars]
    assert max(nearest) < len(COLORS)
    colors = [(n, -1 if i % 9 == 8 else c) for i, (n, c) in enumerate(zip(names, nearest, strict=True))]
    save_mat(base / "color_list.mat", color_list=cells(colors))


def write_advanced_steel(root: Path, cars: Sequence[DrawnCar], *, phantom_rows: int = 0) -> Path:
    """Advanced Steel Property: a model is a class, an individual car a specimen, its weight (kg) the hardness.

    As published, validation tiles come from training specimens: every fifth one; the last specimen of each class is
    tested. The first third of the classes are TIFF files.

    Args:
        root: a new or empty folder.
        cars: the pictures, at least two individuals a model and five pictures of all but the last.
        phantom_rows: formatted but empty spreadsheet rows after the data.
    """
    models = _models(cars)
    last = {m.index: max(c.car for c in cars if c.model == m) for m in models}
    rows: dict[str, list[tuple[Any, ...]]] = {name: [] for name in SPLITS}
    tiles = dict.fromkeys(last, 0)
    with new_folder(root) as folder:
        for car in cars:
            k, tile = models.index(car.model), tiles[car.model.index]
            tiles[car.model.index] += 1
            train = "validset" if tile % 5 == 4 else "trainset"
            part = "testset" if car.car == last[car.model.index] else train
            suffix = ".tif" if 3 * k < len(models) else ".jpg"
            name = f"{car.model.model}-{car.car + 1:02d}____{tile // 10}_{tile % 10}{suffix}"
            save_image(car.image, folder / part / str(k) / name)
            rows[part].append((f"{part}/{k}", name, f"{part}/{k}/{name}", k, car.weight))
        for part, lines in rows.items():
            book = openpyxl.Workbook()
            sheet = book.worksheets[0]
            sheet.title = "sheet1"
            for line in [("Directory", "Filename", PATH, CLASS, PROPERTY), *lines]:
                sheet.append(line)
            for k in range(phantom_rows):
                sheet.cell(row=len(lines) + 2 + k, column=5).number_format = "0.0"
            book.save(folder / f"{part}.xlsx")
    return root


def _models(cars: Sequence[DrawnCar]) -> list[CarModel]:
    """The models, each once, in the order of the fleet."""
    return sorted({c.model.index: c.model for c in cars}.values(), key=lambda m: m.index)


def _last_share(cars: Sequence[DrawnCar], share: float) -> np.ndarray:
    """bool [N]: the last `share` of each model's pictures."""
    if not 0 <= share < 1:
        raise UserError(f"test_share should be from 0 to below 1. Found {share}.")
    model = np.array([c.model.index for c in cars])
    chosen = np.zeros(len(cars), dtype=bool)
    for k in np.unique(model):
        rows = np.flatnonzero(model == k)
        chosen[rows[len(rows) - round(share * len(rows)) :]] = True
    return chosen


def _write_text(file: Path, lines: Sequence[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
