"""MATLAB files as columns of numbers and strings, with errors that name the file and the row."""

import io
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
import scipy.io.matlab

from mtlcar.data.file_bytes import regular_bytes
from mtlcar.data.mat_sizes import check_sizes
from mtlcar.errors import UserError

MAX_BYTES = 200_000_000
"""Of a file, packed and unpacked: the publishers' have at most a few MB."""
LARGEST = 2**53
"""Of a whole number: above, MATLAB's own numbers are not exact."""


def load_variable(path: Path, name: str) -> np.ndarray:
    """The variable `name` of a .mat file (MATLAB 4 to 7.2), singleton dimensions removed, at least 1-D.

    Raises:
        UserError: no such file, a damaged or non-MATLAB file, or no such variable in it.
    """
    if not path.is_file():
        raise UserError(f"No file {path}.")
    try:
        data = regular_bytes(path, MAX_BYTES)
        check_sizes(data, MAX_BYTES)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of number formats of old machines
            warnings.simplefilter("error", scipy.io.matlab.MatReadWarning)
            content: dict[str, Any] = scipy.io.loadmat(io.BytesIO(data), squeeze_me=True, variable_names=[name])
            if name not in content:
                there = ", ".join(excerpt(variable)[1:-1] for variable, *_ in scipy.io.whosmat(io.BytesIO(data))[:20])
                raise UserError(f"{path} should hold a variable {name!r}. Found {there or 'nothing'}.")
        return np.atleast_1d(content[name])
    except (UserError, MemoryError):
        raise
    except NotImplementedError as e:
        raise UserError(f"{path} is a MATLAB 7.3 file; expected the publisher's own file, which is older.") from e
    except Exception as e:  # scipy raises many kinds on damaged bytes; all of them mean the same to the user
        reason = " ".join(str(e).split())[:200]
        raise UserError(
            f"{path} cannot be read as a MATLAB file ({type(e).__name__}: {reason}). It is damaged or something else "
            "(a saved web page, an unfinished download): copy or unpack it again."
        ) from e


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
        whole = number.item() if number.size == 1 and number.dtype.kind in "iuf" else np.nan
        if not np.isfinite(whole) or whole != round(whole) or abs(whole) > LARGEST:
            raise UserError(f"{path}: {name!r} of row {row} should be a whole number. Found {excerpt(value)}.")
        out.append(int(whole))
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
            raise UserError(f"{path}: {name!r} of row {row} should be text. Found {excerpt(value)}.")
        out.append(" ".join(value.split()))
    return out


def excerpt(value: Any) -> str:
    """What a message shows of a value: its repr in one line, cut."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
