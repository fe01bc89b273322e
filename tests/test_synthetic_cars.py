"""The embedded dataset: same options, same bytes, whatever draws them; labels that can be read off the pictures."""

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from mtlcar.data import car_drawing, drawn, synthetic_cars
from mtlcar.data.car_drawing import CarBuild, build_car, draw_car, fleet
from mtlcar.data.car_styles import MAX_MAKES, MAX_MODELS, TYPES
from mtlcar.data.car_writer import CarSet, write_pictures
from mtlcar.data.options import read_annotations
from mtlcar.data.synthetic_cars import read
from mtlcar.errors import UserError

SMALL = {"makes": 2, "models_per_make": 2, "images": 32, "images_per_car": 2, "size": 32}
REPO = Path(__file__).parents[1]


def digest(folder: Path) -> str:
    """Of all files' names and bytes under a folder."""
    h = hashlib.sha256()
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        h.update(f"{file.relative_to(folder)}".encode() + file.read_bytes())
    return h.hexdigest()


def car_set(**changes) -> CarSet:
    return CarSet(**{**SMALL, "difficulty": 0.5, "draw_seed": 0, **changes})


# --- determinism ---------------------------------------------------------------------------------------------------


def test_same_options_give_the_same_bytes_and_another_seed_others(tmp_path):
    one, _ = read(tmp_path / "a", **SMALL)
    two, _ = read(tmp_path / "b", **SMALL)
    other, _ = read(tmp_path / "c", **SMALL, draw_seed=1)
    assert digest(one.root) == digest(two.root)
    assert one.digest() == two.digest()
    assert one.file(0).read_bytes() != other.file(0).read_bytes()


def test_bytes_do_not_depend_on_the_number_of_processes(tmp_path):
    write_pictures(car_set(), tmp_path / "one", processes=1)
    write_pictures(car_set(), tmp_path / "three", processes=3)
    assert digest(tmp_path / "one") == digest(tmp_path / "three")


@pytest.mark.parametrize("hash_seed", ["1", "77"])
def test_bytes_do_not_depend_on_the_hash_seed(tmp_path, hash_seed):
    here, tasks = read(tmp_path / "here", levels=["year", "model", "type"], **SMALL)
    code = (
        "from pathlib import Path; from mtlcar.data.synthetic_cars import read\n"
        f"a, t = read(Path({str(tmp_path / 'there')!r}), levels=['year', 'model', 'type'], **{SMALL!r})\n"
        "print(a.root.name, a.digest(), t.to_dict())"
    )
    env = {**os.environ, "PYTHONHASHSEED": hash_seed}
    said = subprocess.run([sys.executable, "-c", code], env=env, cwd=REPO, check=True, capture_output=True, text=True)
    assert said.stdout.strip() == f"{here.root.name} {here.digest()} {tasks.to_dict()}"
    assert digest(here.root) == digest(tmp_path / "there" / here.root.name)


def test_a_picture_and_its_labels_stay_when_more_are_asked_for(tmp_path):
    few, _ = read(tmp_path, levels=["model", "weight"], **SMALL)
    many, _ = read(tmp_path, levels=["model", "weight"], **{**SMALL, "images": 48})
    for i in range(len(few)):
        assert few.file(i).read_bytes() == many.file(i).read_bytes()
    for column in ("model", "weight"):
        np.testing.assert_array_equal(few.targets[column], many.targets[column][: len(few)])
    np.testing.assert_array_equal(few.split, many.split[: len(few)])


def test_a_model_does_not_depend_on_the_size_of_the_fleet():
    small, large = fleet(2, 3, seed=4), fleet(9, 5, seed=4)
    for car in small:
        twin = next(c for c in large if c.name == car.name)
        assert replace(twin, index=car.index) == car


def test_the_drawing_is_the_one_of_its_version():
    """Fails when pictures change: then raise DRAWING_VERSION, or old folders are taken for new ones."""
    assert synthetic_cars.DRAWING_VERSION == 1
    seen = [car_set(size=64).picture(i).image.convert("L").resize((4, 4), Image.Resampling.BOX) for i in (0, 9)]
    found = np.stack([np.asarray(image) for image in seen]).astype(int).reshape(2, -1)
    np.testing.assert_allclose(found, EXPECTED, atol=3)


EXPECTED = [
    [159, 154, 157, 141, 164, 125, 105, 114, 90, 112, 70, 79, 76, 76, 86, 89],
    [104, 95, 97, 96, 126, 120, 125, 141, 88, 85, 97, 117, 88, 85, 83, 100],
]


# --- the fleet -----------------------------------------------------------------------------------------------------


def test_names_are_unique_and_stable_and_styles_differ():
    cars = fleet(MAX_MAKES, MAX_MODELS, seed=3)
    assert len({c.name for c in cars}) == len({c.model for c in cars}) == len(cars) == MAX_MAKES * MAX_MODELS
    assert [c.name for c in cars] == [c.name for c in fleet(MAX_MAKES, MAX_MODELS, seed=8)]
    assert [c.index for c in cars] == list(range(len(cars)))
    styles = [c.style for c in cars[::MAX_MODELS]]
    shapes = [(s.grille, s.lamp, s.badge, s.rim) for s in styles]
    for i, one in enumerate(shapes):
        for two in shapes[:i]:
            assert sum(a == b for a, b in zip(one, two, strict=True)) <= 1
    for part in zip(*shapes[:8], strict=True):
        assert len(set(part)) == 8


def test_the_weight_lies_in_a_range_of_its_model_and_grows_with_the_trim():
    cars = fleet(6, 4, seed=0)
    rng = np.random.default_rng(0)
    ranges = []
    for car in cars:
        builds = [build_car(car, rng) for _ in range(60)]
        weights = np.array([b.weight for b in builds])
        assert np.corrcoef([b.trim for b in builds], weights)[0, 1] > 0.98
        assert weights.min() >= 0.9 * car.weight
        assert weights.max() <= 1.11 * car.weight
        ranges.append((weights.min(), weights.max()))
    pairs = [(a, b) for i, a in enumerate(ranges) for b in ranges[:i]]
    apart = [a[1] < b[0] or b[1] < a[0] for a, b in pairs]
    assert 0.2 < np.mean(apart) < 0.9
    assert min(low for low, _ in ranges) > 700
    assert max(high for _, high in ranges) < 3500


# --- the pictures --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", [None, *car_drawing.VIEWS])
@pytest.mark.parametrize("size", [32, (160, 90)])
@pytest.mark.parametrize("difficulty", [0.0, 1.0])
def test_every_model_is_drawn_inside_its_box_in_every_view(view, size, difficulty):
    for car in fleet(8, 7, seed=1)[::5]:
        picture = draw_car(car, np.random.default_rng(car.index), size, difficulty, view=view)
        width, height = (size, size) if isinstance(size, int) else size
        assert picture.image.size == (width, height)
        assert picture.image.mode == "RGB"
        x1, y1, x2, y2 = picture.box
        assert 0 <= x1 < x2 <= width
        assert 0 <= y1 < y2 <= height
        assert max((x2 - x1) / width, (y2 - y1) / height) > 0.6
        assert picture.view in car_drawing.VIEWS
        assert view is None or picture.view == view


def test_the_box_holds_the_car_and_little_else(monkeypatch):
    """What changes when the car is left out lies in the box, apart from its shadow on the ground."""
    for car in fleet(6, 1, seed=0):
        with_car = draw_car(car, np.random.default_rng(7), 96, 0.0)
        with monkeypatch.context() as patch:
            patch.setattr(car_drawing, "draw_parts", lambda *_: None)
            without = draw_car(car, np.random.default_rng(7), 96, 0.0)
        changed = np.abs(np.asarray(with_car.image, int) - np.asarray(without.image, int)).max(-1) > 40
        y, x = np.nonzero(changed)
        x1, y1, x2, y2 = with_car.box
        inside = (x >= x1) & (x < x2) & (y >= y1) & (y < y2)
        assert inside.mean() > 0.93
        assert abs(y.min() - y1) <= 3
        assert changed[y1:y2, x1:x2].mean() > 0.4


def test_difficulty_moves_pictures_of_a_model_apart_and_models_together():
    cars = fleet(3, 3, seed=0)

    def unlikeness(difficulty: float) -> float:
        """1 - the mean correlation between pictures of the same model."""
        found = []
        for car in cars[::2]:
            rngs = [np.random.default_rng([car.index, i]) for i in range(10)]
            same = np.corrcoef([np.asarray(draw_car(car, r, 32, difficulty).image, float).ravel() for r in rngs])
            found.append(1 - same[np.triu_indices(10, 1)].mean())
        return float(np.mean(found))

    at = [unlikeness(d) for d in (0.0, 0.25, 0.5, 1.0)]
    assert all(b > 1.05 * a for a, b in pairwise(at)), at

    def likeness(difficulty: float) -> float:
        shapes = [car_drawing._dressed(car, 0.5, difficulty) for car in cars]
        return float(np.std([s.roof_rear for s in shapes]))

    assert likeness(0.0) > likeness(0.5) > likeness(1.0) > 0


def test_the_trim_shows():
    car = fleet(6, 4, seed=0)[0]
    paint = (180.0, 40.0, 40.0)
    bare, full = (
        draw_car(car, np.random.default_rng(3), 96, 0.0, build=CarBuild(paint, trim, car.weight)) for trim in (0.0, 1.0)
    )
    again = draw_car(car, np.random.default_rng(3), 96, 0.0, build=CarBuild(paint, 0.0, car.weight))
    assert bare.image.tobytes() == again.image.tobytes()
    assert np.abs(np.asarray(bare.image, int) - np.asarray(full.image, int)).mean() > 4


def small_grey(picture, side: int) -> np.ndarray:
    return np.asarray(picture.image.convert("L").resize((side, side), Image.Resampling.BOX), float).ravel() / 255


def ridge(x: np.ndarray, y: np.ndarray, to: np.ndarray, strength: float = 10.0) -> np.ndarray:
    """Ridge regression of y [N, K] on x [N, D], predicted at `to` [M, D]; on the kernel, as D > N."""
    mean, middle = x.mean(0), y.mean(0)
    kernel = (x - mean) @ (x - mean).T
    alpha = np.linalg.solve(kernel + strength * np.eye(len(x)), y - middle)
    return (to - mean) @ (x - mean).T @ alpha + middle


def test_a_linear_classifier_tells_makes_and_models_at_low_difficulty():
    cars = fleet(4, 4, seed=0)
    x, y = [], []
    for i in range(16 * 18):
        car = cars[i % 16]
        x.append(small_grey(draw_car(car, np.random.default_rng([5, i]), 48, 0.05), 24))
        y.append(car.index)
    x, y = np.stack(x), np.array(y)
    train = np.arange(len(x)) < 16 * 12
    model = ridge(x[train], np.eye(16)[y[train]], x[~train]).argmax(1)
    make = ridge(x[train], np.eye(4)[y[train] // 4], x[~train]).argmax(1)
    assert (model == y[~train]).mean() > 0.8  # chance 0.06
    assert (make == y[~train] // 4).mean() > 0.8  # chance 0.25


def test_the_weight_can_be_read_beyond_the_models_mean():
    car = fleet(6, 4, seed=0)[3]
    pictures = [draw_car(car, np.random.default_rng([6, i]), 64, 0.0) for i in range(180)]
    x = np.stack([small_grey(p, 32) for p in pictures])
    y = np.array([[p.weight] for p in pictures])
    error = np.abs(ridge(x[:140], y[:140], x[140:], 0.1) - y[140:]).mean()
    assert error < 0.4 * np.abs(y[140:] - y[:140].mean()).mean()


# --- the table -----------------------------------------------------------------------------------------------------


def test_levels_become_tasks_in_the_order_asked_for(tmp_path):
    annotations, tasks = read(tmp_path, levels=["weight", "model", "type", "make", "year"], **SMALL)
    assert tasks.names == ("weight", "model", "type", "make", "year") == tuple(annotations.targets)
    assert (tasks["weight"].kind, tasks["weight"].unit) == ("regression", "kg")
    assert tasks["model"].parent == "make"
    assert tasks.parent_of["model"] == (0, 0, 1, 1)
    assert set(tasks["type"].classes) <= set(TYPES)
    cars = fleet(2, 2, 0)
    for i, m in enumerate(annotations.targets["model"]):
        car = cars[m]
        assert tasks["make"].classes[annotations.targets["make"][i]] == car.make
        assert tasks["type"].classes[annotations.targets["type"][i]] == car.type
        assert tasks["year"].classes[annotations.targets["year"][i]] == str(car.year)
    assert annotations.targets["weight"].dtype == np.float32
    assert np.all(annotations.targets["weight"] > 500)
    assert read(tmp_path, levels=["weight"], **SMALL)[1].names == ("weight",)
    assert read(tmp_path, levels=["model"], **SMALL)[1]["model"].parent is None


def test_every_class_is_in_every_split_and_no_car_in_two(tmp_path):
    annotations, _ = read(tmp_path, levels=["make", "model", "weight"], **SMALL)
    for part in ("train", "val", "test"):
        at = annotations.split == part
        assert set(annotations.targets["model"][at]) == set(range(4))
    for car in np.unique(annotations.groups):
        rows = annotations.groups == car
        assert rows.sum() == 2
        assert len(set(annotations.split[rows])) == 1
        assert len(set(annotations.targets["weight"][rows])) == 1
        assert len(set(annotations.targets["model"][rows])) == 1
    first = annotations.select(annotations.groups == annotations.groups[0])
    assert first.file(0).read_bytes() != first.file(1).read_bytes()
    assert annotations.boxes.shape == (32, 4)


def test_the_yaml_names_every_option(tmp_path):
    data = OmegaConf.load(REPO / "conf" / "data" / "synthetic_cars.yaml")
    assert data.name == "synthetic_cars"
    data.merge_with(SMALL)
    annotations, tasks = read_annotations(data, tmp_path)
    assert len(annotations) == 32
    assert tasks.names == ("make", "model")
    assert annotations.root.parent == tmp_path / "synthetic_cars"


# --- the folder ----------------------------------------------------------------------------------------------------


def test_a_complete_folder_is_reused(tmp_path, monkeypatch):
    first, _ = read(tmp_path, **SMALL)
    monkeypatch.setattr(synthetic_cars, "write_pictures", lambda *_: pytest.fail("drew again"))
    second, _ = read(tmp_path, levels=["type"], **SMALL)
    assert first.root == second.root


def test_an_interrupted_write_is_not_taken_for_complete(tmp_path, monkeypatch):
    def interrupted(cars, folder):
        (folder / "images").mkdir(parents=True)
        cars.picture(0).image.save(folder / "images" / "000000.png")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(synthetic_cars, "write_pictures", interrupted)
        with pytest.raises(KeyboardInterrupt):
            read(tmp_path, **SMALL)
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]
    annotations, _ = read(tmp_path, **SMALL)
    whole = digest(annotations.root)
    # A killed process leaves its part; later somebody deletes a picture, then the labels.
    (tmp_path / f"{annotations.root.name}.part1" / "images").mkdir(parents=True)
    for lost in ("images/000005.png", "labels.csv"):
        (annotations.root / lost).unlink()
        read(tmp_path, **SMALL)
        assert digest(annotations.root) == whole
    assert not list(tmp_path.glob("*.part*"))


def test_two_processes_may_draw_at_once(tmp_path):
    code = (
        "from pathlib import Path; from mtlcar.data.synthetic_cars import read\n"
        f"print(read(Path({str(tmp_path)!r}), **{SMALL!r})[0].digest())"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code], cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    said = [p.communicate() for p in both]
    assert [p.returncode for p in both] == [0, 0], said
    assert said[0][0] == said[1][0] == (read(tmp_path, **SMALL)[0].digest() + "\n").encode()
    assert sum(p.is_dir() for p in tmp_path.iterdir()) == 1


def test_a_failing_helper_process_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(CarSet, "picture", lambda *_: Image)  # here only: helpers are other processes
    with pytest.raises(AttributeError):
        write_pictures(car_set(), tmp_path / "a", processes=2)
    monkeypatch.undo()
    monkeypatch.setenv("PYTHONHASHSEED", "not a number")
    with pytest.raises(RuntimeError, match="drawing synthetic cars"):
        write_pictures(car_set(), tmp_path / "b", processes=2)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"levels": []}, "at least one"),
        ({"levels": ["modle"]}, "model"),
        ({"levels": ["make", "make"]}, "once"),
        ({"makes": 0}, "data.makes should be a whole number from 1 to 24"),
        ({"makes": 25}, "makes"),
        ({"makes": 2.0}, "makes"),
        ({"makes": True}, "makes"),
        ({"makes": 1}, "at least 2 classes"),
        ({"models_per_make": 13}, "models_per_make"),
        ({"images": 31}, "at least 32"),
        ({"images": "many"}, "images"),
        ({"images_per_car": 0}, "images_per_car"),
        ({"size": 8}, "size"),
        ({"draw_seed": -1}, "draw_seed"),
        ({"difficulty": 1.5}, "difficulty"),
        ({"difficulty": float("nan")}, "difficulty"),
        ({"difficulty": "hard"}, "difficulty"),
    ],
)
def test_a_bad_option_is_a_user_error_before_anything_is_drawn(tmp_path, options, says):
    with pytest.raises(UserError, match=says):
        read(tmp_path, **{**SMALL, **options})
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "synthetic_cars", Path("/proc/nope/synthetic_cars")):
        with pytest.raises(UserError, match=r"cannot be written[^§]*paths\.cache"):
            read(folder, **SMALL)


def test_a_wrong_option_is_explained_and_a_bug_of_the_reader_is_not_taken_for_one(tmp_path, monkeypatch):
    data = OmegaConf.create(
        {"name": "synthetic_cars", "root": str(tmp_path), "read": {"_target_": f"{read.__module__}.read"}, **SMALL}
    )
    data.read._partial_ = True
    with pytest.raises(UserError, match="'colours'"):
        read_annotations(OmegaConf.merge(data, {"colours": 3}), tmp_path)
    with pytest.raises(UserError, match=r"data\.levels should be a list"):
        read_annotations(OmegaConf.merge(data, {"levels": 3}), tmp_path)
    monkeypatch.setattr(synthetic_cars, "drawn_folder", lambda: None)
    with pytest.raises(TypeError, match="positional"):
        read_annotations(data, tmp_path)


def test_too_little_disk_and_no_root_are_user_errors(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"data\.root"):
        read(None, **SMALL)
    usage = drawn.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(drawn.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(UserError, match="MB left"):
        read(tmp_path, **SMALL)
