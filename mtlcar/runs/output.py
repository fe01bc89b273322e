"""A sweep outlives the terminal or pipe that it prints to; runs that print to the same one sign their lines."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, cast

BESIDE = "MTLCAR_BESIDE"
"""In the environment of jobs that other jobs may run beside."""


def signature(run_dir: Path) -> str:
    """What a run's lines begin with: its name where others print to the same place, else nothing."""
    return run_dir.name if BESIDE in os.environ else ""


class Signed(logging.Formatter):
    """`name message`, unless the message begins with the name."""

    def __init__(self, name: str) -> None:
        super().__init__("%(message)s")
        self._name = name

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if text.startswith(self._name) else f"{self._name} {text}"


class Lasting:
    """A text stream whose reader may go away: from then on, what is written here or by a child process is lost, and
    nothing is raised."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._whatever_happens():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._whatever_happens():
            self._stream.flush()

    @contextmanager
    def _whatever_happens(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            with suppress(OSError, ValueError):  # a stream without a file below it
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._stream.fileno())
                os.close(nowhere)


@contextmanager
def lasting_output() -> Iterator[None]:
    """Whatever is printed inside cannot fail."""
    with redirect_stdout(cast(Any, Lasting(sys.stdout))), redirect_stderr(cast(Any, Lasting(sys.stderr))):
        yield
