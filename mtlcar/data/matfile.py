"""MATLAB files as columns of numbers and strings, with errors that name the file and the row."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io

from mtlcar.errors import UserError


def load_variable(path: Path, name: str) -> np.ndarray:
    """The variable `name` of a .mat file (MATLAB 4 to 7.2), singleton dimensions removed, at least 1-D.

    Raises:
        UserError: no such file, a damaged or non-MATLAB file, or no such variable in it.
    """
    if not path.is_file():
        raise UserError(f"No file {path}.")
    try:
        content: dict[str, Any] = scipy.io.loadmat(path, squeeze_me=True)
    except NotImplementedError as e:
        raise UserError(f"{path} is a MATLAB 7.3 file; expected the publisher's own file, which is older.") from e
    except Exception as e:  # scipy raises many kinds on damaged bytes; all of them mean the same to the user
        raise UserError(
            f"{path} cannot be read as a MATLAB file ({type(e).__name__}: {e}). It is damaged or something else "
            "(a saved web page, an unfinished download): copy or unpack it again."
        ) from e
    if name not in content:
        found = ", ".join(k for k in content if not k.startswith("__")) or "nothing"
        raise UserError(f"{path} should hold a variable {name!r}. Found {found}.")
    return np.atleast_1d(content[name])


def field(structs: np.ndarray, name: str, path: Path) -> np.ndarray:
    """Field `name` of a struct array [N], as objects [N]; `path` is for the message.

    Raises:
        UserError: not a struct array, or no such field.
    """
    names = structs.dtype.names
    if not names or name not in names:
        found = ", ".join(names) if names else "no fields at all"
        raise UserError(f"{path}: every annotation should have a field {name!r}. Found {found}.")
    return structs[name].reshape(-1)


def integers(column: Iterable[Any], name: str, path: Path) -> np.ndarray:
    """A column as int64 [N].

    Raises:
        UserError: naming the first row that is not a whole number.
    """
    out = []
    for row, value in enumerate(column, start=1):
        number = np.asarray(value)
        if number.size != 1 or number.dtype.kind not in "iuf" or number.item() != round(number.item()):
            raise UserError(f"{path}: {name!r} of row {row} should be a whole number. Found {value!r}.")
        out.append(int(number.item()))
    return np.asarray(out, dtype=np.int64)


def strings(column: Iterable[Any], name: str, path: Path) -> list[str]:
    """A cell array or column as strings, stripped, with single spaces; an empty cell is an empty string.

    Raises:
        UserError: naming the first row that is not a string.
    """
    out = []
    for row, value in enumerate(column, start=1):
        if isinstance(value, np.ndarray) and value.size == 0:
            value = ""
        if not isinstance(value, str):
            raise UserError(f"{path}: {name!r} of row {row} should be text. Found {value!r}.")
        out.append(" ".join(value.split()))
    return out
