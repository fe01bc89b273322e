"""Opens a run, measures, writes and prints."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mtlcar.diagnosis.conflict import conflict_table
from mtlcar.diagnosis.features import pooled_features
from mtlcar.diagnosis.gradients import measure
from mtlcar.diagnosis.layers import layers_of, shared_parameters
from mtlcar.diagnosis.opened import Opened, open_run
from mtlcar.diagnosis.probes import FOLDS, baseline, probe
from mtlcar.diagnosis.subspaces import overlaps
from mtlcar.errors import UserError
from mtlcar.runs.files import replacing, write_json, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_IMAGES = 1000
"""Most validation images whose features are looked at."""
MODE = (
    "Gradients of the raw losses (no task's weight is in them) at the best checkpoint, on training images without "
    "augmentation, with BatchNorm's running statistics and without dropout."
)


def diagnose(run: str, *, batches: int, output: str | None, as_json: bool) -> int:
    """See `mtlcar.diagnosis.command`."""
    if batches < 1:
        raise UserError(f"--batches should be at least 1. Found {batches}.")
    opened = open_run(run)
    folder = Path(output) if output else opened.directory / "diagnosis"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"-o {folder}: cannot be written to ({error.strerror}). Name another folder.") from error
    found, table = gradient_part(opened, batches)
    result = {
        "schema": 1,
        "run": str(opened.directory),
        "fingerprint": opened.directory.name,
        "tasks": list(opened.architecture.tasks.names),
        "gradients": found,
        "features": feature_part(opened),
    }
    result = jsonable(result)
    write(folder, result, table)
    if as_json:
        print(json.dumps(result, indent=1, allow_nan=False))
        return 0
    from mtlcar.diagnosis.showing import show

    show(result, folder)
    return 0


def gradient_part(opened: Opened, batches: int) -> tuple[dict[str, Any], pd.DataFrame | None]:
    """What diagnosis.json says of gradients, and the whole table; `reason` and None where nothing can be compared."""
    tasks, network = opened.architecture.tasks.names, opened.architecture
    parameters = shared_parameters(network)
    if len(tasks) < 2:
        return {"reason": f"architecture={network.name} trains {tasks[0]} alone: no gradients meet."}, None
    if not parameters:
        return {"reason": f"architecture={network.name} has no trainable parameter that several losses reach."}, None
    gradients = measure(opened.losses, opened.train_batches(batches), parameters)
    table = conflict_table(gradients, tasks, layers_of(network, parameters))
    rows = table[table.level != "tensor"].drop(columns=["level", "parameter"]).to_dict("records")
    said = {"batches": len(gradients.each), "batch_size": opened.parts.data.batch_size, "what": MODE, "parts": rows}
    return said, table


def feature_part(opened: Opened) -> dict[str, Any]:
    """What diagnosis.json says of features; `reason` where there are none or no validation images."""
    data = opened.parts.data
    rows, images = opened.images("val", MOST_IMAGES)
    if not len(rows):
        return {"reason": "The run's data has no validation split."}
    features = pooled_features(opened.architecture, images)
    if not features:
        return {"reason": f"architecture={opened.architecture.name} makes no features of images."}
    labels = {task: data.targets[task][rows].numpy() for task in data.tasks.names}
    groups = (
        None if data.annotations.groups is None else np.unique(data.annotations.groups[rows], return_inverse=True)[1]
    )
    found = []
    for name, x in features.items():
        scores = {t.name: probe(x, labels[t.name], t, groups) for t in data.tasks}
        found.append({"name": name, "width": x.shape[1], "probes": scores, "overlaps": overlaps(x, labels, data.tasks)})
    return {
        "images": len(rows),
        "split": "val",
        "folds": FOLDS,
        "groups": groups is not None,
        "scores": {t.name: "accuracy" if t.classes else "R2" for t in data.tasks},
        "baselines": {t.name: baseline(labels[t.name], t) for t in data.tasks},
        "of": found,
    }


def write(folder: Path, result: Mapping[str, Any], table: pd.DataFrame | None) -> None:
    """The files of a diagnosis, each whole; those of an earlier one that this one does not have go."""
    from mtlcar.diagnosis.figures import conflict_figure, features_figure

    for name in ("conflict.csv", "conflict.png", "features.png"):
        (folder / name).unlink(missing_ok=True)
    if table is not None:
        write_text(folder / "conflict.csv", table.to_csv(index=False))
        _save(folder / "conflict.png", conflict_figure(result["gradients"]))
    if "of" in result["features"]:
        _save(folder / "features.png", features_figure(result["features"]))
    write_json(folder / "diagnosis.json", result)


def _save(path: Path, figure: "Figure") -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def jsonable(value: Any) -> Any:
    """With None for numbers that are not finite, and Python's numbers for numpy's."""
    if isinstance(value, Mapping):
        return {k: jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
