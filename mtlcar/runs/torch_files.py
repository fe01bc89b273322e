"""Files of torch.save, read so that nothing in them runs and none takes more memory than it has bytes."""

import errno
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SLACK = 2**20
"""Bytes by which the entries of an archive may exceed the file."""


class UnreadableError(Exception):
    """The message says what is wrong with the file."""


def read_torch(path: Path, *, whole: bool = False) -> Any:
    """What `torch.save` wrote to `path`: plain containers and tensors, on the CPU.

    Args:
        whole: also compare every entry with its checksum, and leave the tensors on the disk until they are used.

    Raises:
        UnreadableError: it is damaged, compressed (torch never does that, and little could unfold to much), or holds
            anything but plain containers and tensors, which could run code.
        OSError, MemoryError: it cannot be read now.
    """
    if not path.is_file():
        raise UnreadableError("is no file")
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size + SLACK:
                    raise UnreadableError("is compressed, so torch did not write it")
                if whole and archive.testzip():
                    raise UnreadableError("is damaged")
        elif whole:
            raise UnreadableError("cannot be read (damaged, or not written by torch)")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=whole)
    except (OSError, MemoryError, UnreadableError) as error:
        if getattr(error, "errno", None) == errno.EINVAL:  # an offset within the archive that no file has
            raise UnreadableError("is damaged") from error
        raise
    except Exception as error:  # a torn file fails in many ways, a malicious one is refused by weights_only
        raise UnreadableError(f"cannot be read ({type(error).__name__})") from error


def tensors(state: Any) -> dict[str, Tensor]:
    """A state_dict: names and plain tensors.

    Raises:
        UnreadableError: it is none.
    """
    if not isinstance(state, Mapping):
        raise UnreadableError(f"should hold names and tensors; found {type(state).__name__}")
    for name, value in state.items():
        plain = isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"
        if not isinstance(name, str) or not plain or value.is_quantized:
            what = (
                f"{type(value).__name__}" if not isinstance(value, Tensor) else "a tensor that is sparse or has no data"
            )
            raise UnreadableError(f"should hold names and tensors; {str(name)[:60]!r} is {what}")
    return dict(state)
