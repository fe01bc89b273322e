"""Some columns of an Excel file, read so that what lies around the table costs neither minutes nor memory."""

import io
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtlcar.data.file_bytes import regular_bytes
from mtlcar.errors import UserError

MAX_BYTES = 500_000_000
"""Of all that a file unpacks to. A million rows of this project's tables have 150 MB; a zip bomb names any number."""
THIN_ABOVE = 1_000_000
"""Bytes of a sheet above which cells without a value are cut out before it is parsed. A sheet that somebody has
formatted down to its last row has millions: parsing them takes half a minute, cutting them out two seconds."""
NO_VALUE = re.compile(rb'<c r="[A-Z]+[0-9]+"[^<>]*/>')
NO_CELLS = re.compile(rb'<row r="[0-9]+"[^<>]*(?:/>|></row>)')
MAX_COLUMNS = 1000
SHOWN_COLUMNS = 12


def read_columns(file: Path, columns: Sequence[str]) -> dict[int, tuple[Any, ...]]:
    """{row of the sheet: its values in `columns`} for all rows of the first sheet that have one in any of them.

    The first row names the columns; blanks in names count once. A formula stands for the value that was stored with
    it, None where there is none. Cells that were merged have their value in the first one alone.

    Args:
        file: an .xlsx file; the header is row 1.
        columns: names, each of which the header must have once.

    Raises:
        UserError: no spreadsheet, one that unpacks to too much, or one without these columns.
    """
    import openpyxl

    try:
        with _opened(file) as data:
            book = openpyxl.load_workbook(data, read_only=True, data_only=True)
            sheet = book.worksheets[0]
            sheet.reset_dimensions()  # type: ignore[attr-defined]  # what a file says of its size is often wrong
            header = next(iter(sheet.iter_rows(max_row=1, max_col=MAX_COLUMNS, values_only=True)), ())
            names = [" ".join(str(name).split()) if name is not None else "" for name in header]
            at = [_place(file, names, column, len(book.worksheets)) for column in columns]
            rows = sheet.iter_rows(min_row=2, max_col=max(at) + 1, values_only=True)
            found = {}
            for number, row in enumerate(rows, start=2):
                if row:
                    values = tuple(row[i] if i < len(row) else None for i in at)
                    if not all(is_blank(v) for v in values):
                        found[number] = values
            return found
    except (UserError, MemoryError):
        raise
    except Exception as e:  # openpyxl raises many kinds on damaged bytes; all of them mean the same to the user
        reason = " ".join(str(e).split())[:200]
        raise UserError(f"{file} cannot be read as a spreadsheet ({type(e).__name__}: {reason}). Copy it again.") from e


def is_blank(value: Any) -> bool:
    """Nothing, blanks, or what was not a number when the file was written."""
    return value is None or value != value or (isinstance(value, str) and value.strip().lower() in ("", "nan"))


def _place(file: Path, names: Sequence[str], column: str, sheets: int) -> int:
    if names.count(column) == 1:
        return names.index(column)
    named = [name for name in names if name]
    more = ", ..." if len(named) > SHOWN_COLUMNS else ""
    listed = ", ".join(name[:60] for name in named[:SHOWN_COLUMNS]) + more or "none"
    first = f" Only the first of its {sheets} sheets is read." if sheets > 1 else ""
    if column in names:
        raise UserError(f"{file}: {names.count(column)} columns are named {column!r}. Delete all but one.{first}")
    raise UserError(f"{file}: no column {column!r}. Found {listed}.{first}")


def _opened(file: Path) -> io.BytesIO:
    """The file in memory, its large sheets without the cells that hold nothing.

    Raises:
        UserError: it unpacks to more than `MAX_BYTES`, by what its parts say of themselves, which bounds what is read.
    """
    data = io.BytesIO(regular_bytes(file, MAX_BYTES))
    with zipfile.ZipFile(data) as parts:
        entries = parts.infolist()
        size = sum(entry.file_size for entry in entries)
        if size > MAX_BYTES:
            raise UserError(
                f"{file} unpacks to {size / 1e6:.0f} MB, more than the {MAX_BYTES / 1e6:.0f} MB that are read. "
                "Copy the table alone to a new file."
            )
        large = [e for e in entries if e.filename.startswith("xl/worksheets/") and e.file_size > THIN_ABOVE]
        if not large:
            return data
        thin = io.BytesIO()
        with zipfile.ZipFile(thin, "w") as copy:
            for entry in entries:
                content = parts.read(entry)
                copy.writestr(entry.filename, _thinned(content) if entry in large else content)
    return thin


def _thinned(sheet: bytes) -> bytes:
    """XML of a sheet without cells and rows that hold nothing; as it is where a cell does not say its place."""
    if sheet.count(b'<c r="') < sheet.count(b"<c ") + sheet.count(b"<c>") or sheet.count(b'<row r="') < sheet.count(
        b"<row"
    ):
        return sheet
    return NO_CELLS.sub(b"", NO_VALUE.sub(b"", sheet))
