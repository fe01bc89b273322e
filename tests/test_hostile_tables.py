"""Spreadsheets, MATLAB files and lists that are damaged, enormous, or not what they say."""

import struct
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openpyxl
import pytest
import scipy.io
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mtlcar.data import advanced_steel, compcars, compcars_lists, compcars_web, mat_sizes, matfile, spreadsheet
from mtlcar.data.advanced_steel import CLASS, PATH, PROPERTY
from mtlcar.data.layouts import write_advanced_steel, write_compcars
from mtlcar.data.listed_files import check_boxes, find_root, keep_present, nearest, present, safe_relative
from mtlcar.errors import UserError
from tests.layout_samples import copy_of, sample_cars

HEADER = ("Directory", "Filename", PATH, CLASS, PROPERTY)
COLUMNS = (PATH, CLASS, PROPERTY)


def book(file: Path, *rows: tuple[object, ...], header: tuple[object, ...] = HEADER) -> Path:
    made = openpyxl.Workbook()
    made.active.append(header)
    for row in rows:
        made.active.append(row)
    made.save(file)
    return file


def rewrite(file: Path, part: str, edit: Callable[[bytes], bytes]) -> Path:
    with zipfile.ZipFile(file) as whole:
        parts = {name: whole.read(name) for name in whole.namelist()}
    parts[part] = edit(parts[part])
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as whole:
        for name, data in parts.items():
            whole.writestr(name, data)
    return file


SHEET = "xl/worksheets/sheet1.xml"
ROW = ("a", "b.jpg", "trainset/0/b.jpg", 0, 120)


# Spreadsheets


def test_a_sheet_formatted_to_its_last_row_is_not_parsed_cell_by_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = book(tmp_path / "x.xlsx", ROW)
    rows = "".join(
        f'<row r="{i}">' + "".join(f'<c r="{c}{i}" s="0"/>' for c in "ABCDE") + "</row>" for i in range(3, 15_000)
    )
    last = '<row r="20000"><c r="A20000" s="0"/><c r="C20000"><v>7</v></c></row>'
    rewrite(file, SHEET, lambda x: x.replace(b"</sheetData>", f"{rows}{last}</sheetData>".encode()))
    seconds = []
    for above in (1_000_000, 10**9):  # with cells cut out, and as openpyxl reads them: 20 times as long
        monkeypatch.setattr(spreadsheet, "THIN_ABOVE", above)
        start = time.process_time()
        assert spreadsheet.read_columns(file, COLUMNS) == {2: ROW[2:], 20000: (7, None, None)}
        seconds.append(time.process_time() - start)
    assert seconds[0] < seconds[1] / 3


def test_cells_that_do_not_say_their_place_keep_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = book(tmp_path / "x.xlsx", ROW)
    # some cells say their place and some do not: those that do may not be cut out, or the others move
    cells = b'<row r="3"><c r="A3"/><c r="B3"/><c><v>7</v></c><c/><c><v>8</v></c></row>'
    rewrite(file, SHEET, lambda x: x.replace(b"</sheetData>", cells + b"</sheetData>"))
    monkeypatch.setattr(spreadsheet, "THIN_ABOVE", 0)
    assert spreadsheet.read_columns(file, COLUMNS) == {2: ROW[2:], 3: (7, None, 8)}


def test_thinning_a_sheet_changes_nothing_that_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    rows = [tuple(None if rng.random() < 0.4 else int(v) for v in rng.integers(0, 9, 5)) for _ in range(200)]
    file = book(tmp_path / "x.xlsx", *rows)
    made = openpyxl.load_workbook(file)
    for row in range(1, 400):
        for column in range(1, 9):
            made.active.cell(row, column).font = openpyxl.styles.Font(bold=True)
    made.save(file)
    plain = spreadsheet.read_columns(file, COLUMNS)
    monkeypatch.setattr(spreadsheet, "THIN_ABOVE", 0)
    assert spreadsheet.read_columns(file, COLUMNS) == plain
    assert plain == {i: row[2:] for i, row in enumerate(rows, start=2) if any(v is not None for v in row[2:])}


def test_one_stray_cell_in_the_last_column_costs_nothing(tmp_path: Path) -> None:
    file = book(tmp_path / "x.xlsx", ROW)
    stray = b'<row r="9"><c r="XFD9" t="inlineStr"><is><t>x</t></is></c></row>'
    rewrite(file, SHEET, lambda x: x.replace(b"</sheetData>", stray + b"</sheetData>"))
    assert list(spreadsheet.read_columns(file, COLUMNS)) == [2]


def test_a_sheet_that_says_it_is_of_another_size_is_read_whole(tmp_path: Path) -> None:
    file = book(tmp_path / "x.xlsx", ROW, ROW)
    for size in (b'ref="A1"', b'ref="A1:XFD1048576"'):
        rewrite(file, SHEET, lambda x, size=size: x.replace(b'ref="A1:E3"', size))
        assert len(spreadsheet.read_columns(file, COLUMNS)) == 2


@pytest.mark.parametrize("part", ["xl/sharedStrings.xml", SHEET, "xl/media/picture.png"])
def test_what_unpacks_to_too_much_is_refused_before_it_is_unpacked(part: str, tmp_path: Path) -> None:
    file = book(tmp_path / "x.xlsx", ROW)
    with zipfile.ZipFile(file, "a") as whole:
        whole.writestr("padding", b"")
    data = bytearray(file.read_bytes())
    at = data.rindex(b"PK\1\2")
    data[at + 24 : at + 28] = struct.pack("<I", 2**32 - 2)  # the size that the directory says
    file.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"x\.xlsx unpacks to 4295 MB, more than the 500 MB"):
        spreadsheet.read_columns(file, COLUMNS)


LAUGHS = b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a0 "ha">%s]>' % b"".join(
    b'<!ENTITY a%d "%s">' % (i, b"&a%d;" % (i - 1) * 10) for i in range(1, 12)
)


@pytest.mark.parametrize("part", ["xl/workbook.xml", SHEET, "[Content_Types].xml"])
def test_entities_of_entities_are_refused(part: str, tmp_path: Path) -> None:
    file = book(tmp_path / "x.xlsx", ROW)

    def bomb(xml: bytes) -> bytes:
        root = xml[xml.index(b"<", xml.find(b"?>") + 1 if xml.startswith(b"<?xml") else 0) :]
        return LAUGHS + root.replace(b"</", b"&a11;</", 1)

    rewrite(file, part, bomb)
    start = time.process_time()
    with pytest.raises(UserError, match=r"x\.xlsx cannot be read as a spreadsheet"):
        spreadsheet.read_columns(file, COLUMNS)
    assert time.process_time() - start < 5


def test_a_file_from_the_machine_is_not_drawn_into_a_sheet(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    file = book(tmp_path / "x.xlsx", ROW)
    entity = f'<!DOCTYPE x [<!ENTITY e SYSTEM "file://{tmp_path}/secret">]>'.encode()
    rewrite(file, SHEET, lambda x: entity + x[x.index(b"<worksheet") :].replace(b"<t>Full path<", b"<t>&e;<"))
    with zipfile.ZipFile(file) as whole:
        assert b"&e;" in whole.read(SHEET)
    with pytest.raises(UserError, match="cannot be read as a spreadsheet") as caught:
        spreadsheet.read_columns(file, COLUMNS)
    assert "secret" not in str(caught.value).replace(str(tmp_path), "")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ((PATH, CLASS, PROPERTY, PATH), "2 columns are named 'Full path'"),
        ((PATH, CLASS), r"no column 'regression label .property hardness.'\. Found Full path, class label"),
        ((), r"no column 'Full path'\. Found none"),
        (("x" * 500,) * 40, "no column 'Full path'"),
    ],
)
def test_columns_that_are_missing_or_there_twice_are_named(header: tuple, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        spreadsheet.read_columns(book(tmp_path / "x.xlsx", header=header), COLUMNS)
    assert len(str(caught.value)) < 1200


def test_of_several_sheets_the_first_is_read_and_the_others_are_spoken_of(tmp_path: Path) -> None:
    made = openpyxl.load_workbook(book(tmp_path / "x.xlsx", ROW))
    made.create_sheet("notes").append(["nothing"])
    made.save(tmp_path / "x.xlsx")
    assert len(spreadsheet.read_columns(tmp_path / "x.xlsx", COLUMNS)) == 1
    made.move_sheet("notes", -1)
    made.save(tmp_path / "x.xlsx")
    with pytest.raises(UserError, match=r"Found nothing\. Only the first of its 2 sheets is read"):
        spreadsheet.read_columns(tmp_path / "x.xlsx", COLUMNS)


@pytest.fixture(scope="module")
def steel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_advanced_steel(tmp_path_factory.mktemp("steel") / "data", sample_cars())


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (5, True, "positive number. Found True"),
        (5, "=1+1", "is empty or NaN.*formula needs a stored value"),
        (5, "#N/A", "positive number. Found '#N/A'"),
        (5, "12,5", "positive number. Found '12,5'"),
        (5, 1e309, "positive number|is empty"),
        (4, True, "label 'True' is out of range"),
        (4, "#REF!", "label '#REF!' is out of range"),
        (3, 17, "images listed in"),
        (3, "trainset\\..\\..\\x.jpg", "without '..'"),
        (3, "\\\\server\\share\\x.jpg", "without '..'"),
        (3, "x" * 400, "no file can have the name"),
    ],
)
def test_a_cell_of_the_wrong_kind_is_named_with_its_row(
    column: int, value: object, message: str, steel: Path, tmp_path: Path
) -> None:
    copy = copy_of(steel, tmp_path)
    made = openpyxl.load_workbook(copy / "trainset.xlsx")
    made.worksheets[0].cell(3, column).value = value
    made.save(copy / "trainset.xlsx")
    with pytest.raises(UserError, match=message) as caught:
        advanced_steel.read(copy)
    assert "row 3" in str(caught.value) or "images listed" in message


def test_merged_cells_are_named_by_the_first_row_without_a_value(steel: Path, tmp_path: Path) -> None:
    copy = copy_of(steel, tmp_path)
    made = openpyxl.load_workbook(copy / "trainset.xlsx")
    made.worksheets[0].merge_cells("E2:E4")
    made.save(copy / "trainset.xlsx")
    with pytest.raises(UserError, match=r"trainset\.xlsx, row 3: .*merged cells only the first"):
        advanced_steel.read(copy)


# Names


def test_a_name_that_differs_in_case_or_accents_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "Train"
    folder.mkdir()
    for name in ("A.JPG", "e\u0301e\u0301.jpg", "00017.jpg"):
        (folder / name).touch()
    assert nearest(tmp_path, "Train/a.jpg") == " There is 'Train/A.JPG'."
    assert nearest(tmp_path, "train/A.JPG") == " There is 'Train'."
    assert nearest(tmp_path, "Train/\u00e9\u00e9.jpg") == " There is 'Train/e\u0301e\u0301.jpg'."
    assert nearest(tmp_path, "Train/0017.jpg") == " There is 'Train/00017.jpg'."
    assert nearest(tmp_path, "Train/00016.jpg") == ""
    assert nearest(tmp_path, "Train/quite another.png") == ""
    names = ["Train/a.jpg", "Train/00017.jpg"]
    with pytest.raises(UserError, match=r"1 of the 2 images .* first: Train/a\.jpg\. There is 'Train/A\.JPG'"):
        keep_present(present(tmp_path, names), names, tmp_path, 0.0, "list.txt")


def test_a_list_of_nothing_and_folders_that_cannot_be_looked_into_are_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"list\.txt lists no images"):
        keep_present(np.zeros(0, dtype=bool), [], tmp_path, 0.0, "list.txt")
    with pytest.raises(UserError, match="cannot be listed"):
        present(tmp_path, ["x" * 300 + "/a.jpg"])
    (tmp_path / "file").touch()
    assert present(tmp_path, ["file/a.jpg", "none/a.jpg", "file"]).tolist() == [False, False, True]
    for root in ("~nobody-of-this-name", "x" * 300):
        with pytest.raises(UserError, match=r"data\.root=.* cannot be looked up"):
            find_root(root, [(".", "m")], "Cars", "How.")


@settings(max_examples=60)
@example("C:/x").via("a drive")
@example("a/../../x").via("upwards")
@given(st.text(max_size=40) | st.lists(st.sampled_from(["..", ".", "/", "\\", "a", "C:", " ", "\0", "~"])).map("".join))
def test_a_listed_path_never_leads_out_of_the_folder(text: str) -> None:
    try:
        path = safe_relative(text, "list.txt")
    except UserError:
        return
    assert (Path("/data/set") / path).resolve(strict=False).is_relative_to("/data/set")
    assert ".." not in Path(path).parts


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("corner", range(4))
def test_a_box_that_is_no_number_is_refused(value: float, corner: int) -> None:
    boxes = np.array([[0, 0, 9, 9], [1, 1, 5, 5]], dtype=np.float32)
    check_boxes(boxes, ["a", "b"], "file")
    boxes[1, corner] = value
    with pytest.raises(UserError, match=r"1 boxes .* b: \(x1, y1, x2, y2\)"):
        check_boxes(boxes, ["a", "b"], "file")


# MATLAB


MAT = b"MATLAB 5.0 MAT-file".ljust(116) + b"\0" * 8 + b"\0\1IM"


def element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + b"\0" * (-len(data) % 8)


def array(kind: int, sides: tuple[int, ...], *more: bytes, name: bytes = b"x") -> bytes:
    flags = element(6, struct.pack("<II", kind, 0))
    return element(14, flags + element(5, struct.pack(f"<{len(sides)}i", *sides)) + element(1, name) + b"".join(more))


def nested(depth: int) -> bytes:
    inner = array(1, (1, 1), name=b"")
    for _ in range(depth):
        inner = array(1, (1, 1), inner, name=b"")
    return array(1, (1, 1), inner)


def packed(data: bytes) -> bytes:
    small = zlib.compress(data)
    return struct.pack("<II", 15, len(small)) + small


FIELDS = element(5, struct.pack("<i", 4)) + element(1, b"a\0\0\0b\0\0\0")
MAT_BOMBS = {
    "cells": (array(1, (2**30, 1)), "1073741824 x 1 in"),
    "packed cells": (packed(array(1, (2**30, 1))), "1073741824 x 1 in"),
    "letters": (array(4, (2**30, 1), element(16, b"")), "1073741824 x 1 in"),
    "numbers": (array(6, (2**20, 2**20, 2**20), element(9, b"12345678")), "1048576 x 1048576 x 1048576 in"),
    "negative": (array(6, (-1, -1), element(9, b"12345678")), "-1 x -1 in"),
    "structures": (array(2, (2**30, 1), FIELDS), "1073741824 x 1 in"),
    "structures of many fields": (
        array(2, (20, 1), element(5, struct.pack("<i", 1)), element(1, b"a" * 500)),
        "20 x 1 in",
    ),
    "cells, a few too many": (array(1, (20, 1)), "20 x 1 in"),
    "objects": (array(3, (2**30, 1), element(1, b"car"), FIELDS), "1073741824 x 1 in"),
    "fields": (array(2, (1, 1), element(5, struct.pack("<i", 1)), element(1, b"a" * 5000)), "5000 fields"),
    "cells in a cell": (array(1, (1, 1), array(1, (2**30, 1), name=b"")), "1073741824 x 1 in"),
    "depth": (nested(5000), "more than 16 deep"),
    "no flags": (element(14, element(5, b"\1\0\0\0")), "without flags"),
    "no such type": (array(4, (2, 1), element(8, b"ab")), "type 8, which there is not"),
    "an array as text": (array(4, (1, 1), array(6, (1, 1), name=b"")), "where numbers should be"),
    "cut off": (array(6, (1, 1), element(9, b"12345678"))[:-4], "4 bytes too early"),
    "a part cut off": (element(14, element(6, b"\0" * 8)[:-4]), "a part of 8 bytes that ends too early"),
    "a torn part": (struct.pack("<II", 15, 8) + b"no zlib!", "damaged"),
}


@pytest.mark.parametrize("name", MAT_BOMBS)
def test_arrays_larger_than_their_file_are_refused_before_scipy_makes_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, message = MAT_BOMBS[name]
    (tmp_path / "x.mat").write_bytes(MAT + data)
    monkeypatch.setattr(scipy.io, "loadmat", lambda *a, **k: pytest.fail("scipy was given it"))
    with pytest.raises(UserError, match=rf"x\.mat cannot be read as a MATLAB file.*{message}"):
        matfile.load_variable(tmp_path / "x.mat", "x")


def test_what_unpacks_to_more_than_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matfile, "MAX_BYTES", 100_000)
    big = array(9, (60_000, 1), element(2, b"\0" * 60_000))
    (tmp_path / "x.mat").write_bytes(MAT + packed(big))
    assert matfile.load_variable(tmp_path / "x.mat", "x").shape == (60_000,)
    (tmp_path / "x.mat").write_bytes(MAT + packed(big) * 2)
    with pytest.raises(UserError, match="unpacks to more"):
        matfile.load_variable(tmp_path / "x.mat", "x")


VALUES = {
    "numbers": np.arange(12.0).reshape(3, 4),
    "empty": np.zeros((0, 5)),
    "text": "Citroën",
    "texts": np.array(["a", "bcd"]),
    "cells": np.array([["a", 1.5], [np.arange(3), np.array(["b"], dtype=object)]], dtype=object),
    "struct": {"a": 1, "b": {"c": "deep", "d": np.arange(4)}},
    "structs": np.array([(1, "x"), (2, "y")], dtype=[("n", object), ("s", object)]),
    "complex": np.array([1 + 2j]),
    "sparse": __import__("scipy.sparse").sparse.eye_array(300).tocsc(),
    "true": np.array([True, False]),
}


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("form", ["4", "5"])
def test_sound_files_pass(compress: bool, form: str, tmp_path: Path) -> None:
    simple = {k: v for k, v in VALUES.items() if form == "5" or k in ("numbers", "text", "sparse", "complex")}
    scipy.io.savemat(tmp_path / "x.mat", simple, format=form, do_compression=compress and form == "5")
    mat_sizes.check_sizes((tmp_path / "x.mat").read_bytes(), 10**6)
    assert matfile.load_variable(tmp_path / "x.mat", "numbers").shape == (3, 4)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1.5, 2.0**60, True, "3", 1 + 0j, [1, 2], None, {"a": 1}, b"3"])
def test_what_is_no_whole_number_is_named_with_its_row(value: object) -> None:
    with pytest.raises(UserError, match=r"a\.mat: 'class' of row 2 should be a whole number"):
        matfile.integers([np.array([[3]], dtype=np.uint8), value], "class", Path("a.mat"))


@pytest.mark.parametrize("value", [np.nan, np.arange(100_000), None, b"x", np.array(["a", "b"])])
def test_what_is_no_text_is_named_in_a_short_message(value: object) -> None:
    with pytest.raises(UserError, match=r"a\.mat: 'name' of row 2 should be text") as caught:
        matfile.strings(["x", value], "name", Path("a.mat"))
    assert len(str(caught.value)) < 200


# CompCars


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_compcars(tmp_path_factory.mktemp("compcars") / "web", sample_cars()[::3])


def test_a_byte_order_mark_and_windows_line_ends_change_nothing(web: Path, tmp_path: Path) -> None:
    expected = compcars.read(web)[0]
    copy = copy_of(web, tmp_path)
    for file in [*copy.rglob("train.txt"), *copy.rglob("test.txt"), *copy.rglob("label/**/*.txt")]:
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    found = compcars.read(copy)[0]
    assert found.paths == expected.paths
    assert found.boxes is not None
    assert np.array_equal(found.boxes, expected.boxes)


@pytest.mark.parametrize(
    "text",
    [
        "1" * 5000 + "\n1\n1 1 5 5\n",
        "1\n1\nnan nan nan nan\n",
        "1\n1\n1 1 inf inf\n",
        "1\n1\n1 1 1e400 5\n",
        "\0" * 50,
        "²\n1\n1 1 5 5",
    ],
)
def test_a_label_of_odd_numbers_is_named(text: str, web: Path, tmp_path: Path) -> None:
    copy = copy_of(web, tmp_path)
    next(iter(sorted(copy.rglob("label/**/*.txt")))).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"label.*(three lines|boxes are inverted)") as caught:
        compcars.read(copy)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "line", ["9" * 5000 + "/1/2000/a.jpg", "²/1/2000/a.jpg", "1/1/2000/" + "a" * 400, "1/1/2000/\0.jpg"]
)
def test_a_listed_path_of_odd_numbers_is_named(line: str, web: Path, tmp_path: Path) -> None:
    copy = copy_of(web, tmp_path)
    file = next(iter(copy.rglob("train.txt")))
    file.write_text(line + "\n" + file.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(UserError) as caught:
        compcars.read(copy, max_missing=0)
    assert len(str(caught.value)) < 600 + 5100 * ("9999" in line)


@pytest.mark.parametrize("cell", ["²", "9" * 5000, "nan", "-1", "1.5"])
def test_an_odd_type_of_the_attributes_is_named(cell: str, tmp_path: Path) -> None:
    lines = [" ".join(compcars_web.COLUMNS), f"1 200 1.6 4 5 {cell}"]
    (tmp_path / "attributes.txt").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(UserError, match="line 2: expected 6 numbers") as caught:
        compcars_web.read_attributes(tmp_path / "attributes.txt")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("cell", ["nan", "inf", "-3", "1e400", "fast"])
def test_an_attribute_that_is_no_positive_number_is_refused(cell: str) -> None:
    with pytest.raises(UserError, match=r"attributes\.txt: maximum_speed should be"):
        compcars_web.attribute_task("maximum_speed", {0: {"maximum_speed": cell}}, [0, 0])


def test_a_list_that_is_a_pipe_or_endless_is_not_read(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(UserError, match="cannot be read"):
            compcars_lists.text_lines(tmp_path / name)
