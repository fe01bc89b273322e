"""Images that `data.on_bad_image=skip` leaves out: what remains of the splits, and a list in the run directory."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mtlcar.data.annotations import Annotations
from mtlcar.data.file_bytes import shown
from mtlcar.data.splits import check_classes
from mtlcar.errors import UserError
from mtlcar.runs.files import write_text
from mtlcar.tasks import TaskSet

FILE = "left_out.csv"
"""In a run directory: file, split, reason. It is there only where something was left out."""


def without(
    bad: Mapping[int, str], indices: Mapping[str, np.ndarray], annotations: Annotations, tasks: TaskSet, split: str
) -> dict[str, np.ndarray]:
    """The rows of each split that are not in `bad` {row: reason}.

    Raises:
        UserError: a split, or a class in training, has no image any more.
    """
    rows = np.array(sorted(bad), dtype=np.int64)
    left = {name: np.setdiff1d(members, rows) for name, members in indices.items()}
    first = int(rows[0])
    which = (
        f"data.on_bad_image=skip left out {len(rows)} of {len(annotations)} images "
        f"(the first: {shown(annotations.file(first))}: {bad[first]})"
    )
    for name, members in indices.items():
        if len(members) and not len(left[name]):
            raise UserError(
                f"{which}, among them all {len(members)} of the {name} split. Replace these files, or change "
                "data.fractions or data.split."
            )
    try:
        check_classes(annotations, tasks, left, split)
    except UserError as error:
        raise UserError(f"{which}, after which this is wrong:\n{error}") from None
    return left


def write_left_out(
    run_dir: Path, bad: Mapping[int, str], split_of: Mapping[str, np.ndarray], annotations: Annotations
) -> None:
    """Writes `FILE`, or removes what another start of the run wrote.

    Args:
        run_dir: where.
        bad: row -> why its image is unusable.
        split_of: split -> rows, those in `bad` included.
        annotations: of all rows.
    """
    if not bad:
        (run_dir / FILE).unlink(missing_ok=True)
        return
    names = {int(row): name for name, members in split_of.items() for row in members}
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("file", "split", "reason"))
    for row, reason in sorted(bad.items()):
        table.writerow((shown(annotations.paths[row]), names.get(row, ""), shown(reason)))
    write_text(run_dir / FILE, text.getvalue())
