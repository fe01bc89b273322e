"""Advanced Steel's table: the bytes of a spreadsheet (those that begin with PK), or of the XML of its first sheet."""

import io
import zipfile
from collections.abc import Iterable
from unittest.mock import patch

import openpyxl

from fuzz.folders import folder
from mtlcar.data import advanced_steel, spreadsheet
from mtlcar.errors import UserError

INSTRUMENT = ("mtlcar.data", "openpyxl", "zipfile")
SHEET = "xl/worksheets/sheet1.xml"
file = folder("steel") / "trainset.xlsx"


def book() -> bytes:
    made = openpyxl.Workbook()
    sheet = made.worksheets[0]
    sheet.append(("Directory", "Filename", advanced_steel.PATH, advanced_steel.CLASS, advanced_steel.PROPERTY))
    sheet.append(("a", "b.jpg", "trainset/0/b____1_2.jpg", 0, 120.5))
    sheet.append(("a", "c.jpg", "trainset\\1\\c.jpg", "1", True))
    sheet["E5"] = "=1+1"
    sheet["C6"] = "#N/A"
    sheet.merge_cells("A7:E8")
    out = io.BytesIO()
    made.save(out)
    return out.getvalue()


def parts() -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(book())) as whole:
        return {name: whole.read(name) for name in whole.namelist()}


PARTS = parts()


def try_one(data: bytes) -> None:
    if data.startswith(b"PK"):
        file.write_bytes(data)
    else:
        with zipfile.ZipFile(file, "w") as whole:
            for name, content in PARTS.items():
                whole.writestr(name, data if name == SHEET else content)
    try:
        with patch.object(spreadsheet, "THIN_ABOVE", 3000):  # so that small sheets are thinned too
            rows = advanced_steel.read_sheet(file)
        for row, (path, kind, value) in rows.items():
            where = f"row {row}"
            advanced_steel.safe_relative(str(path), where)
            advanced_steel.class_index(kind, ("0", "1"), where)
            advanced_steel.hardness(value, where)
    except UserError as error:
        said = str(error)
        assert len(said) < 4000


def seeds() -> Iterable[bytes]:
    yield book()
    sheet = PARTS[SHEET]
    yield sheet
    empty = b"".join(b'<row r="%d"><c r="A%d" s="1"/><c r="E%d"/></row>' % (i, i, i) for i in range(20, 80))
    yield sheet.replace(b"</sheetData>", empty + b"</sheetData>")
    yield sheet.replace(b' r="', b' q="')
