"""The written trees look like the publishers' own, are the same each time, and never land on someone's data."""

from pathlib import Path

import numpy as np
import openpyxl
import pytest
import scipy.io
from PIL import Image

from mtlcar.data.car_drawing import fleet
from mtlcar.data.layout_cars import draw_cars, new_folder
from mtlcar.data.layouts import write_advanced_steel, write_compcars, write_stanford_cars
from mtlcar.errors import UserError
from tests.layout_samples import real_data, sample_cars


def test_stanford_mat_files_have_the_structure_of_the_real_ones(tmp_path):
    real = real_data("stanford_cars") / "devkit"
    ours = write_stanford_cars(tmp_path / "cars", sample_cars()) / "devkit"
    for name, variable in (("cars_train_annos.mat", "annotations"), ("cars_meta.mat", "class_names")):
        a, b = (scipy.io.loadmat(folder / name)[variable] for folder in (real, ours))
        assert (a.ndim, a.shape[0], a.dtype) == (b.ndim, b.shape[0], b.dtype)
        first = [x[0, 0].tolist() if x.dtype.names else x[0, 0] for x in (a, b)]
        if a.dtype.names:
            for x, y in zip(*first, strict=True):
                assert (x.shape, x.dtype.kind) == (y.shape, y.dtype.kind)
        else:
            assert (first[0].shape, first[0].dtype.kind) == (first[1].shape, first[1].dtype.kind)


def test_torchvision_reads_the_stanford_layout(tmp_path):
    from torchvision.datasets import StanfordCars

    write_stanford_cars(tmp_path / "stanford_cars", sample_cars())
    for split in ("train", "test"):
        data = StanfordCars(tmp_path, split=split)
        assert len(data) == len(sample_cars()) // 2
        assert data[0][0].size == (32, 32)
        assert len(data.classes) == 9


def test_steel_columns_are_the_real_ones(tmp_path):
    real = real_data("advanced_steel") / "validset.xlsx"
    ours = write_advanced_steel(tmp_path / "steel", sample_cars(), phantom_rows=7) / "validset.xlsx"
    a, b = (openpyxl.load_workbook(f).worksheets[0] for f in (real, ours))
    assert [c.value for c in a[1]] == [c.value for c in b[1]]
    assert a.title == b.title
    assert [type(c.value).__name__ for c in b[2]][:4] == [type(c.value).__name__ for c in a[2]][:4]
    assert all(c.value is None for c in b[b.max_row])
    tiles = [p.suffix for p in ours.parent.rglob("*____*")]
    assert tiles.count(".tif") == len(tiles) // 3


def test_old_stanford_layout_has_the_publishers_fields(tmp_path):
    content = scipy.io.loadmat(write_stanford_cars(tmp_path / "old", sample_cars(), layout="old") / "cars_annos.mat")
    fields = ("relative_im_path", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "test")
    assert content["annotations"].dtype.names == fields
    assert content["class_names"].shape == (1, 9)


def test_images_on_disk_are_those_drawn(tmp_path):
    root = write_stanford_cars(tmp_path / "cars", sample_cars(), test_share=0.0)
    assert not (root / "cars_test").exists()
    for i, car in enumerate(sample_cars()[:20]):
        with Image.open(root / "cars_train" / f"{i + 1:05d}.jpg") as image:
            off = np.abs(np.asarray(image, float) - np.asarray(car.image, float)).mean()
        assert off < 12


def test_pictures_of_one_car_share_its_weight_and_paint():
    cars = draw_cars(fleet(2, 2, 0), cars_per_model=2, pictures_per_car=3, size=32, seed=5)
    assert len(cars) == 24
    for k in range(0, 24, 3):
        assert len({(c.weight, c.paint, c.model.index, c.car) for c in cars[k : k + 3]}) == 1
    assert len({c.weight for c in cars}) == 8


def test_the_same_seed_draws_the_same_and_a_longer_series_starts_alike():
    short, long = (draw_cars(fleet(1, 2, 0), 1, n, 32, 7) for n in (1, 3))
    assert short[0].image.tobytes() == long[0].image.tobytes()
    assert short[1].image.tobytes() == long[3].image.tobytes()


@pytest.mark.parametrize("write", [write_stanford_cars, write_compcars, write_advanced_steel])
def test_a_folder_with_something_in_it_is_never_written_to(write, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        write(tmp_path, sample_cars())
    assert [f.name for f in tmp_path.iterdir()] == ["notes.txt"]


def test_a_write_that_fails_leaves_nothing(tmp_path):
    def fail() -> None:
        with new_folder(tmp_path / "out") as folder:
            (folder / "x").write_text("x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_filled(tmp_path: Path):
    assert (write_compcars(tmp_path, sample_cars()) / "data" / "image").is_dir()


@pytest.mark.parametrize(
    ("write", "options"),
    [
        (write_stanford_cars, {"layout": "newest"}),
        (write_stanford_cars, {"test_share": 1.0}),
        (write_compcars, {"part": "all"}),
    ],
)
def test_bad_options_are_refused(write, options, tmp_path):
    with pytest.raises(UserError, match="should be"):
        write(tmp_path / "out", sample_cars(), **options)
    assert list(tmp_path.iterdir()) == []
