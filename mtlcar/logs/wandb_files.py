"""The files that W&B keeps below a run directory: what of a run is in them, and what an interruption left of them.

Each session of a run has its own `wandb/[offline-]run-<time>-<id>/run-<id>.wandb`. W&B writes it from a process of its
own, in blocks of 32 KiB, so a killed job leaves one that ends in the middle of a record.
`python -m mtlcar.logs.wandb_files RUN_DIR` prints a run's rows; with `--mend` it first cuts torn ends, without which
`wandb sync` would refuse the file and the sessions after it.
"""

import argparse
import json
import os
import struct
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROW, ROW_STEP = "trainer/row", "trainer/row_step"
"""A row's number, and its W&B step, as W&B has them; what callbacks log directly into the W&B run has none."""
BLOCK, FILE_HEADER, CHUNK_HEADER = 32 * 1024, struct.Struct("<4sHB"), struct.Struct("<IHB")
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4
WRITER_SECONDS = 15
"""How long to wait for the W&B process of a killed job; it ends within a second."""


def run_files(run_dir: Path, run_id: str = "*") -> list[Path]:
    """The .wandb files of a run, oldest session first, as `wandb sync` orders them."""
    return sorted(run_dir.glob(f"wandb/*run-*/run-{run_id}.wandb"), key=lambda path: (_started(path), str(path)))


def _started(path: Path) -> float:
    for record in read_records(path):
        if record.HasField("run"):
            return float(record.run.start_time.seconds + record.run.start_time.nanos / 1e9)
    return 0.0


def _chunks(content: bytes) -> Iterator[tuple[bytes, int]]:
    """Whole records of a file in LevelDB's log format as W&B has it, each with the offset at which it ends."""
    if len(content) < FILE_HEADER.size or FILE_HEADER.unpack_from(content) != (b":W&B", 0xBEE1, 0):
        return
    at, parts = FILE_HEADER.size, b""
    while True:
        if BLOCK - at % BLOCK < CHUNK_HEADER.size:  # the rest of a block that has no room for a header
            at += BLOCK - at % BLOCK
        if at + CHUNK_HEADER.size > len(content):
            return
        checksum, length, kind = CHUNK_HEADER.unpack_from(content, at)
        end = at + CHUNK_HEADER.size + length
        if end > len(content) or zlib.crc32(content[end - length - 1 : end]) != checksum:
            return
        payload, at = content[end - length : end], end
        parts = payload if kind in (FULL, FIRST) else parts + payload
        if kind in (FULL, LAST):
            yield parts, at


def read_records(path: Path) -> Iterator[Any]:
    """W&B's records (`wandb_internal_pb2.Record`) of one file, as far as it is whole."""
    from google.protobuf.message import DecodeError
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    for data, _ in _chunks(path.read_bytes()):
        record = Record()
        try:
            record.ParseFromString(data)
        except DecodeError:
            return
        yield record


def _histories(path: Path) -> Iterator[Any]:
    return (record.history for record in read_records(path) if record.HasField("history"))


def read_history(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of one file: metric -> value, with W&B's own `_step`."""
    for history in _histories(path):
        yield {item.key or "/".join(item.nested_key): _value(item) for item in history.item}


def _value(item: Any) -> Any:
    if item.value_json:
        return json.loads(item.value_json)
    kind = item.WhichOneof("value")
    return None if kind in (None, "none") else json.loads(item.json) if kind == "json" else getattr(item, kind)


@dataclass
class Logged:
    """What W&B has of a run: rows before row `rows`, the first free W&B step, and the keys that others logged."""

    rows: int = 0
    next_step: int = 0
    keys: set[str] = field(default_factory=set)


def what_is_logged(files: Sequence[Path]) -> Logged:
    found = Logged()
    for file in files:
        for history in _histories(file):
            row = {item.key or item.nested_key[0]: _value(item) for item in history.item}  # a figure is nested
            found.next_step = max(found.next_step, int(row.get("_step", -1)) + 1)
            if ROW in row:
                found.rows = max(found.rows, int(row[ROW]) + 1)
            else:
                found.keys.update(row)
    return found


def mend(files: Sequence[Path]) -> list[Path]:
    """Cut what is torn off the ends of files that nobody writes any more; one without any record gets another name.

    Without that `wandb sync` stops at the first torn file of a run and uploads nothing of its later sessions.

    Returns:
        The files that are left.
    """
    wait_for_writers(files)
    left = []
    for file in files:
        content = file.read_bytes()
        if len(content) >= FILE_HEADER.size and not content.startswith(b":W&B\xe1\xbe\x00"):
            left.append(file)  # of another version of W&B: not ours to judge
            continue
        if not any(record.HasField("run") for record in read_records(file)):
            file.rename(file.with_suffix(".wandb.empty"))
            continue
        end = max(end for _, end in _chunks(content))
        if end < len(content):
            os.truncate(file, end)
        left.append(file)
    return left


def wait_for_writers(files: Sequence[Path]) -> None:
    """Wait until no process has one of `files` open: W&B's outlives a killed job for a moment.

    Where the system does not say (no /proc), a file that was written less than two seconds ago counts as open.
    """
    until = time.monotonic() + WRITER_SECONDS
    while files and time.monotonic() < until and _open_somewhere(files):
        time.sleep(0.1)


def _open_somewhere(files: Sequence[Path]) -> bool:
    proc = Path("/proc")
    if not (proc / "self" / "fd").is_dir():
        return any(time.time() - file.stat().st_mtime < 2 for file in files)
    wanted = {os.path.realpath(file) for file in files}
    for process in proc.glob("[0-9]*"):
        try:
            for descriptor in (process / "fd").iterdir():
                if os.path.realpath(descriptor) in wanted:
                    return True
        except OSError:  # it has ended, or is another user's
            continue
    return False


def mark_synced(files: Sequence[Path]) -> None:
    """Have `wandb sync` pass over offline files whose rows have gone to the server otherwise."""
    for file in files:
        if file.parent.name.startswith("offline-"):
            Path(f"{file}.synced").touch()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mtlcar.logs.wandb_files", description=__doc__)
    parser.add_argument("run_dir", type=Path, help="a run directory, with wandb/ in it")
    parser.add_argument("--mend", action="store_true", help="cut torn ends first; not while the run is going on")
    options = parser.parse_args(arguments)
    files = run_files(options.run_dir)
    for file in mend(files) if options.mend else files:
        for row in read_history(file):
            print(json.dumps({"session": file.parent.name, **row}, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
