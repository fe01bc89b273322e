"""Advanced Steel Property: the real spreadsheets, one written by ourselves, and damaged copies."""

from pathlib import Path

import numpy as np
import openpyxl
import pytest

from mtlcar.data import advanced_steel
from mtlcar.data.layouts import write_advanced_steel
from mtlcar.data.splits import make_splits
from mtlcar.errors import UserError
from tests.layout_samples import copy_of, output_with_hash_seed, real_data, sample_cars


@pytest.fixture(scope="module")
def steel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_advanced_steel(tmp_path_factory.mktemp("steel") / "data", sample_cars())


def set_cell(file: Path, row: int, column: int, value: object) -> None:
    book = openpyxl.load_workbook(file)
    book.worksheets[0].cell(row=row, column=column).value = value
    book.save(file)


def test_real_data_has_the_published_sizes_ranges_and_specimens():
    annotations, tasks = advanced_steel.read(real_data("advanced_steel"))
    assert {s: int((annotations.split == s).sum()) for s in ("train", "val", "test")} == {
        "train": 3240,
        "val": 648,
        "test": 648,
    }
    assert tasks["class"].classes == ("0", "1", "2", "3", "4", "5")
    assert tasks.names == ("class", "property")
    train = annotations.split == "train"
    y, hardness = annotations.targets["class"][train], annotations.targets["property"][train]
    ranges = [(hardness[y == c].min(), hardness[y == c].max()) for c in range(6)]
    assert ranges == [(179, 240), (403, 446), (538, 572), (677, 794), (818, 961), (887, 1146)]
    assert annotations.groups is not None
    assert len(set(annotations.groups)) == 252
    specimens = set(annotations.groups[train])
    shared = {s: sum(g in specimens for g in annotations.groups[annotations.split == s]) for s in ("val", "test")}
    assert shared == {"val": 644, "test": 61}


def test_grouped_split_of_the_real_data_keeps_specimens_apart():
    annotations, tasks = advanced_steel.read(real_data("advanced_steel"))
    rows = make_splits(annotations, tasks, "grouped", [0.7, 0.15, 0.15], 0)
    assert annotations.groups is not None
    sets = [set(annotations.groups[r]) for r in rows.values()]
    assert len(set.union(*sets)) == sum(map(len, sets)) == 252
    for r, share in zip(rows.values(), (0.7, 0.15, 0.15), strict=True):
        assert np.bincount(annotations.targets["class"][r]) / 756 == pytest.approx(np.full(6, share), abs=0.03)


def test_what_was_drawn_comes_back(steel):
    annotations, tasks = advanced_steel.read(steel)
    cars = sample_cars()
    assert len(annotations) == len(cars)
    assert len(tasks["class"].classes) == 9
    found = sorted(zip(annotations.targets["class"].tolist(), annotations.targets["property"].tolist(), strict=True))
    assert found == sorted((c.model.index, float(np.float32(c.weight))) for c in cars)
    assert annotations.groups is not None
    assert len(set(annotations.groups)) == 27
    assert set(annotations.split) == {"train", "val", "test"}
    assert {Path(p).suffix for p in annotations.paths} == {".tif", ".jpg"}


def test_ten_classes_are_in_numerical_order(steel, tmp_path):
    copy = copy_of(steel, tmp_path)
    (copy / "trainset" / "10").mkdir()
    (copy / "trainset" / ".cache").mkdir()
    assert advanced_steel.class_names(copy) == (*"012345678", "10")


def test_phantom_rows_are_dropped(tmp_path):
    root = write_advanced_steel(tmp_path / "phantom", sample_cars(), phantom_rows=300)
    file = root / "trainset.xlsx"
    last = openpyxl.load_workbook(file).worksheets[0].max_row
    assert last > 300
    set_cell(file, last, 3, "  ")  # a cell of blanks is as empty
    assert len(advanced_steel.read(root)[0]) == len(sample_cars())


def test_windows_separators_are_read(steel, tmp_path):
    copy = copy_of(steel, tmp_path)
    file = copy / "trainset.xlsx"
    path = openpyxl.load_workbook(file).worksheets[0].cell(row=2, column=3).value
    set_cell(file, 2, 3, str(path).replace("/", "\\"))
    assert advanced_steel.read(copy)[0].paths == advanced_steel.read(steel)[0].paths


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (3, "../../etc/passwd", r"trainset\.xlsx, row 3: .*without '\.\.'"),
        (3, "/etc/passwd", "row 3"),
        (3, "C:\\data\\x.jpg", "drive"),
        (3, None, r"row 3: 'Full path' is empty"),
        (3, "trainset/0/none.tif", r"1 of the 108 images.*trainset/0/none\.tif"),
        (4, 9, r"row 3: label '9' is out of range; the class folders are 0, 1"),
        (4, 1.5, r"label '1\.5' is out of range"),
        (4, None, "'class label .object.' is empty"),
        (5, None, r"row 3: 'regression label .property hardness.' is empty or NaN"),
        (5, "nan", "empty or NaN"),
        (5, "hard", "should be a positive number. Found 'hard'"),
        (5, -4, "should be a positive number"),
    ],
)
def test_a_bad_row_is_named(steel, tmp_path, column, value, message):
    copy = copy_of(steel, tmp_path)
    set_cell(copy / "trainset.xlsx", 3, column, value)
    with pytest.raises(UserError, match=message):
        advanced_steel.read(copy)


def test_an_image_in_two_splits_is_refused(steel, tmp_path):
    copy = copy_of(steel, tmp_path)
    path = openpyxl.load_workbook(copy / "trainset.xlsx").worksheets[0].cell(row=2, column=3).value
    set_cell(copy / "testset.xlsx", 2, 3, path)
    with pytest.raises(UserError, match="listed more than once"):
        advanced_steel.read(copy)


def test_a_missing_column_is_named_with_those_found(steel, tmp_path):
    copy = copy_of(steel, tmp_path)
    set_cell(copy / "validset.xlsx", 1, 5, "hardness")
    with pytest.raises(UserError, match=r"validset\.xlsx: no column 'regression label.*Found Directory.*hardness"):
        advanced_steel.read(copy)


def test_a_missing_or_damaged_spreadsheet_is_named(steel, tmp_path):
    copy = copy_of(steel, tmp_path)
    (copy / "testset.xlsx").write_bytes(b"not a spreadsheet")
    with pytest.raises(UserError, match=r"testset\.xlsx cannot be read as a spreadsheet"):
        advanced_steel.read(copy)
    (copy / "testset.xlsx").unlink()
    with pytest.raises(UserError, match=r"no file .*testset\.xlsx"):
        advanced_steel.read(copy)


def test_a_missing_data_set_says_where_it_is_published(tmp_path):
    with pytest.raises(UserError, match=r"(?s)Looked there for trainset\.xlsx.*fastcandr/Advanced-Steel"):
        advanced_steel.read(tmp_path)


def test_a_sheet_without_rows_is_refused(steel, tmp_path):
    copy = copy_of(steel, tmp_path)
    book = openpyxl.load_workbook(copy / "testset.xlsx")
    book.worksheets[0].delete_rows(2, 1000)
    book.save(copy / "testset.xlsx")
    with pytest.raises(UserError, match="lists no images"):
        advanced_steel.read(copy)


def test_a_class_only_in_the_test_sheet_is_refused_by_the_split(steel, tmp_path):
    copy = copy_of(steel, tmp_path)
    book = openpyxl.load_workbook(copy / "trainset.xlsx")
    sheet = book.worksheets[0]
    for row in range(sheet.max_row, 1, -1):
        if sheet.cell(row=row, column=4).value == 4:
            sheet.delete_rows(row)
    book.save(copy / "trainset.xlsx")
    annotations, tasks = advanced_steel.read(copy)
    with pytest.raises(UserError, match=r"Task 'class': 1 class \('4'\) in the test split, never seen in training"):
        make_splits(annotations, tasks, "official", [0.7, 0.15, 0.15], 0)


def test_order_does_not_depend_on_the_hash_seed(steel):
    code = f"from mtlcar.data import advanced_steel as s\na, t = s.read({str(steel)!r})\nprint(a.digest(), t.to_dict())"
    assert output_with_hash_seed(code, 1) == output_with_hash_seed(code, 2)
