"""The name of a set of decoded images: a digest of all that their pixels depend on."""

import hashlib
import json
import logging
import os
import uuid
from dataclasses import asdict
from pathlib import Path

import numpy as np
import PIL

from mtlcar.data.annotations import Annotations
from mtlcar.data.decode import DECODE_VERSION, ImageDecoder
from mtlcar.data.file_bytes import regular_bytes
from mtlcar.data.parallel import in_parallel
from mtlcar.data.picture import MAX_BYTES

log = logging.getLogger(__name__)


def cache_key(annotations: Annotations, decoder: ImageDecoder, cache_dir: Path) -> str:
    """16 hex digits of everything the pixels depend on: the files' bytes, the boxes, the decoder's settings.

    Reading all files takes a while, so the digest of their bytes is remembered under a quick fingerprint of
    their paths, sizes and modification times. Where the files lie, and when they were touched, is not in the key.
    """
    files = [annotations.file(i) for i in range(len(annotations))]
    # folders, not files: resolving a path costs many system calls, and images share few folders
    real = {folder: os.path.realpath(folder) for folder in {file.parent for file in files}}
    quick = hashlib.sha256()
    for file in files:
        try:
            stat = file.stat()
            state = f"{stat.st_size}\0{stat.st_mtime_ns}"
        except OSError:
            state = "missing"
        quick.update(f"{real[file.parent]}/{file.name}\0{state}\n".encode("utf-8", "surrogateescape"))
    known = cache_dir / "digests" / quick.hexdigest()[:32]
    content = _remembered(known)
    if content is None:
        digests: list[bytes] = [b""] * len(files)

        def digest(i: int) -> None:
            try:
                digests[i] = hashlib.sha256(regular_bytes(files[i], MAX_BYTES)).digest()
            except OSError:  # reported, with its reason, when it is decoded
                digests[i] = b"missing"

        in_parallel(digest, len(files), "Reading image files")
        content = hashlib.sha256(b"\n".join(digests)).hexdigest()
        try:
            write_atomically(known, content)
        except OSError as error:  # a complete cache can be used all the same
            log.debug("The digest of the image files is not remembered: %s", error)
    settings = {"content": content, "decode": DECODE_VERSION, "pillow": PIL.__version__, **asdict(decoder)}
    h = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    if annotations.boxes is not None and decoder.margin is not None:
        h.update(np.ascontiguousarray(annotations.boxes, dtype=np.float32).tobytes())
    return h.hexdigest()[:16]


def _remembered(known: Path) -> str | None:
    try:
        content = known.read_text()
    except (OSError, ValueError):
        return None
    return content if len(content) == 64 else None


def write_atomically(file: Path, text: str) -> None:
    """Writes under a temporary name in the same folder, then renames."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.{uuid.uuid4().hex[:8]}.tmp")
    temporary.write_text(text)
    temporary.replace(file)
