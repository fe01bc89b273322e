"""CompCars' text files and the paths they list. The first byte says which file the rest is."""

from collections.abc import Iterable
from pathlib import Path

from fuzz.folders import folder
from mtlcar.data import compcars_lists, compcars_web
from mtlcar.data.listed_files import check_boxes, keep_present, nearest, present
from mtlcar.errors import UserError

root = folder("lists")
(root / "image/1/2/2009").mkdir(parents=True)
(root / "image/1/2/2009/a.jpg").touch()
MAKES, MODELS = ("Acura", "", "Audi"), ("RL", "A4", "")


def lists(file: Path) -> None:
    paths, split = compcars_lists.read_lists({"train": file}, parts=4)
    assert len(split) == len(paths)
    for path in paths:
        assert (root / path).resolve().is_relative_to(root.resolve())
    ids = [compcars_web._ids(path, MAKES, MODELS) for path in paths]
    compcars_web._names(ids, MAKES, MODELS)


def missing(file: Path) -> None:
    paths = [f"image/{p}" for p in compcars_lists.read_lists({"train": file}, parts=4)[0]]
    keep_present(present(root, paths), paths, root, 0.5, "list")
    for path in paths:
        nearest(root, path)


def labels(file: Path) -> None:
    view, boxes = compcars_web.read_labels(root, [file.name])
    assert view[0] in compcars_web.VIEWS
    check_boxes(boxes, [file.name], "labels")


def attributes(file: Path) -> None:
    table = compcars_web.read_attributes(file)
    for name in (*compcars_web.UNITS, *compcars_web.COUNTS):
        compcars_web.attribute_task(name, table, [0, 1, 2, 0])
    for model in table:
        assert compcars_web.model_type(table, model) >= 0


READERS = (lists, missing, labels, attributes)


def try_one(data: bytes) -> None:
    file = root / "file.txt"
    file.write_bytes(data[1:])
    try:
        READERS[data[0] % len(READERS) if data else 0](file)
    except UserError as error:
        said = str(error)
        assert len(said) < 4000


def seeds() -> Iterable[bytes]:
    for which in (b"0", b"1"):
        yield which + b"1/2/2009/a.jpg\r\n1/2/unknown/b.jpg\n\n3/1/2010/c.jpg"
        yield which + b"\xef\xbb\xbf1\\2\\2009\\A.JPG\n../../x/y\n/etc/passwd/x/y\nC:/a/b/c"
    yield b"2-1\n1\n10 20 30 40\n"
    yield b"23\n1\n0 0 1e3 nan\n"
    header = " ".join(compcars_web.COLUMNS).encode()
    yield b"3" + header + b"\n1 200 1.6 4 5 3\n2 0 0 0 0 0\n3 180.5 2.0 5 7 12\n"
