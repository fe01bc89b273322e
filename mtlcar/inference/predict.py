"""`mtlcar predict RUN IMAGE...`: what a trained network says of pictures."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from mtlcar.errors import UserError
from mtlcar.inference.images import picture_files
from mtlcar.inference.predictor import Predictor
from mtlcar.inference.table import as_csv, as_json, as_text, sentence_of_interval
from mtlcar.listing.finding import find_run
from mtlcar.listing.tables import notice
from mtlcar.runs.files import write_text

SHOWN_FILES = 5
"""Most files that a sentence names."""


def command(
    run: str,
    images: Sequence[str],
    *,
    form: str | None = None,
    output: str | None = None,
    decoding: str | None = None,
    top: int = 3,
    batch_size: int = 32,
    device: str = "auto",
) -> int:
    """Print, or write to `output`, a row for each picture.

    Args:
        run: a run directory or the beginning of a fingerprint.
        images: picture files and folders.
        form: `json`, `csv` or None for a table; where `output` is given its ending says it.
        decoding: one of `mtlcar.metrics.decoding.DECODINGS`; None: `joint`.

    Returns:
        0; 2 where a picture could not be read, the others predicted all the same.

    Raises:
        UserError: no such run, no picture, no such device.
    """
    for option, value in (("--top", top), ("--batch-size", batch_size)):
        if value < 1:
            raise UserError(f"{option} should be at least 1. Found {value}.")
    form = form_of(output, form)
    files = picture_files(images)
    run_dir = find_run(run).directory

    import torch

    from mtlcar.inference.network import load_network
    from mtlcar.inference.reference import reference_of
    from mtlcar.runs.evaluate import stored_config
    from mtlcar.runs.training import quiet_lightning

    logging.basicConfig(level=logging.WARNING)
    quiet_lightning()
    place = device_of(device)
    cfg = stored_config(run_dir, [])
    torch.set_num_threads(cfg.threads)
    network = load_network(run_dir, cfg, place)
    if network.decoder.margin is not None:
        notice(
            f"The run cut its images out along the boxes of its data set where there are any (data.box_margin="
            f"{network.decoder.margin:g}). Here whole pictures are looked at: give pictures of the object alone."
        )
    predictor = Predictor(network, decoding or "joint", top, reference_of(network))
    rows = list(predictor.rows(files, batch_size))
    if form == "text":
        width = Console().width if output is None and sys.stdout.isatty() else None
        text = as_text(rows, network.tasks, top, width)
    else:
        text = as_json(rows) if form == "json" else as_csv(rows, network.tasks, top)
    if output is None:
        sys.stdout.write(text)
    else:
        write_text(Path(output), text)
    return _tell(rows, predictor, output)


def form_of(output: str | None, form: str | None) -> str:
    """`json`, `csv` or `text`.

    Raises:
        UserError: a file's ending that says none of these, or another than `form`; a folder.
    """
    if output is None:
        return form or "text"
    ending = Path(output).suffix.lower()
    known = {".json": "json", ".csv": "csv", ".txt": "text"}
    if Path(output).is_dir():
        raise UserError(f"{output} is a folder. Give the file to write, such as {Path(output) / 'predictions.json'}.")
    if ending not in known:
        raise UserError(f"{output}: the ending says what is written. Expected .json, .csv or .txt. Found {ending!r}.")
    if form is not None and known[ending] != form:
        raise UserError(f"--{form} and -o {output} contradict each other. Leave --{form} out, or name a .{form} file.")
    return known[ending]


def device_of(word: str) -> str:
    """`cpu`, or a CUDA device that is there.

    Raises:
        UserError: another word, or a GPU where there is none.
    """
    import torch

    if word == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = word.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise UserError(f"--device should be auto, cpu or cuda (or cuda:1). Found {word!r}.")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {word}: there is no such GPU. Use --device cpu or auto.")
    return word


def _tell(rows: list[dict[str, Any]], predictor: Predictor, output: str | None) -> int:
    """The sentences on stderr, and the exit status."""
    for name, interval in predictor.intervals.items():
        if name in predictor.network.tasks:
            cut = predictor.network.decoder.margin is not None
            notice(sentence_of_interval(predictor.network.tasks[name], interval, cut=cut))
    missing = [t for t in predictor.network.tasks.regression if t.name not in predictor.intervals]
    if missing and any(t.name in row.get("tasks", {}) for t in missing for row in rows):
        notice(
            "No intervals: they come from the errors on test images, and the run has no predictions.parquet of them."
        )
    flagged = [row["file"] for row in rows if (row.get("unlike") or {}).get("flag")]
    if predictor.reference is None:
        notice("Whether pictures are like the training images was not checked.")
    elif flagged:
        one = len(flagged) == 1
        notice(
            f"{len(flagged)} of {len(rows)} pictures {'is' if one else 'are'} unlike the images that the network was "
            f"trained on, and what it says of {'it' if one else 'them'} means little: {_listed(flagged)}."
        )
    damaged = [row for row in rows if "error" in row]
    for row in damaged:
        notice(f"{row['file']}: {row['error']}")
    if damaged:
        notice(f"{len(damaged)} of {len(rows)} pictures could not be read.")
    if output is not None:
        notice(f"{len(rows)} rows in {output}")
    return 2 if damaged else 0


def _listed(files: Sequence[str]) -> str:
    more = f" and {len(files) - SHOWN_FILES} more" if len(files) > SHOWN_FILES else ""
    return ", ".join(files[:SHOWN_FILES]) + more
