"""The file behind the image cache: a .npy array that any thread writes and reads row by row, without mapping it."""

import errno
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from mtlcar.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT)


class RowWriter:
    """A new .npy file of uint8 zeros, its disk blocks reserved; on disk for good once `with` ends without an error.

    Rows go through the file descriptor: pages written through a mapping would count as this process's memory.

    Args:
        file: where.
        shape: of the array [N, ...].

    Raises:
        UserError: too little disk.
    """

    def __init__(self, file: Path, shape: tuple[int, ...]) -> None:
        self.folder, self.row_bytes = file.parent, int(np.prod(shape[1:]))
        self.need = shape[0] * self.row_bytes + 4096
        if self.need > shutil.disk_usage(self.folder).free:
            raise self._too_little_disk()
        self._file = file.open("w+b", buffering=0)
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        try:
            np.lib.format.write_array_header_1_0(self._file, header)
            self._start = self._file.tell()
            self._reserve(self._start + shape[0] * self.row_bytes)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                os.fsync(self._file.fileno())
        finally:
            self._file.close()

    def write(self, row: int, values: np.ndarray) -> None:
        """Row `row` of the array; `values` uint8, contiguous."""
        view, place = values.data.cast("B"), self._start + row * self.row_bytes
        while view:
            try:
                done = os.pwrite(self._file.fileno(), view, place)
            except OSError as error:
                raise self._explained(error) from None
            view, place = view[done:], place + done

    def _reserve(self, size: int) -> None:
        os.truncate(self._file.fileno(), size)
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(self._file.fileno(), 0, size)
            except OSError as error:
                if error.errno in FULL:
                    raise self._too_little_disk() from None
                # a file system that cannot reserve: what is free now, and the writes themselves, must tell

    def _explained(self, error: OSError) -> Exception:
        return self._too_little_disk() if error.errno in FULL else error

    def _too_little_disk(self) -> UserError:
        return UserError(
            f"Too little disk for the image cache under {self.folder.parent}: "
            f"{self.need / 1e9:.2f} GB needed, {shutil.disk_usage(self.folder).free / 1e9:.2f} GB free.\n"
            "Free some, choose another folder with paths.cache=..., a smaller data.image_size, "
            "or decode while training with data.cache=false."
        )


def read_row(descriptor: int, start: int, row: int, out: np.ndarray) -> None:
    """Row `row` of an array that begins `start` bytes into a file, into `out` (uint8, contiguous).

    Raises:
        OSError: the file ends before.
    """
    view = out.data.cast("B")
    place = start + row * len(view)
    while view:
        done = os.preadv(descriptor, [view], place)
        if not done:
            raise OSError(errno.EIO, f"the file ends before row {row}")
        view, place = view[done:], place + done
