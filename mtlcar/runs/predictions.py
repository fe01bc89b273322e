"""predictions.parquet: what a finished run said about each test image, readable without the run.

Columns: `index` (row of the annotations), `path`, `group` (of images that belong together, such as one specimen's;
only where the data set has groups), and per predicted task `<task>/target` and `<task>/prediction`
(class index, -1: missing; or value in the label's unit, NaN: missing). Classifications with scores also have
`<task>/scores` (list<float32>, by class index) and, where these are probabilities, `<task>/confidence` (the predicted
class's). A label transform may add columns: FastCAR `axis/position` and `axis/flag`. The task set, and with it the
class names, is in the file's metadata.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch.distributed as dist
from torch import Tensor

from mtlcar.errors import UserError
from mtlcar.runs.files import replacing
from mtlcar.tasks import TaskSet

if TYPE_CHECKING:  # reading and writing come at the end of a run, and the imports would come before its first step
    import pandas as pd

TASKS_KEY = b"mtlcar.tasks"


class PredictionCollector:
    """Gathers the batches of a test epoch on the host.

    Args:
        tasks: the dataset's tasks.
    """

    def __init__(self, tasks: TaskSet) -> None:
        self.tasks = tasks
        self._batches: list[dict[str, np.ndarray]] = []

    def update(
        self,
        index: Tensor,
        predictions: Mapping[str, Tensor],
        targets: Mapping[str, Tensor],
        scores: Mapping[str, Tensor] | None = None,
        columns: Mapping[str, Tensor] | None = None,
    ) -> None:
        """A batch: rows of the annotations [B], {task: [B]} twice, {classification: scores [B, C]}, {further: [B]}."""
        batch = {"index": index.cpu().numpy()}
        batch |= {name: column.cpu().numpy() for name, column in (columns or {}).items()}
        for task in self.tasks:
            if task.name not in predictions:
                continue
            dtype = np.int64 if task.kind == "classification" else np.float32
            batch[f"{task.name}/target"] = targets[task.name].cpu().numpy().astype(dtype)
            batch[f"{task.name}/prediction"] = predictions[task.name].cpu().numpy().astype(dtype)
            if task.name in (scores or {}) and task.kind == "classification":
                assert scores is not None
                batch[f"{task.name}/scores"] = scores[task.name].float().cpu().numpy()
        self._batches.append(batch)

    def rows(self) -> dict[str, np.ndarray]:
        """Column -> [N] (scores [N, C]), sorted by `index`. Under DDP the rows of all ranks, and an image that a
        sampler gave to two of them once; every rank must call it. Empty when there was no batch."""
        batches = self._batches
        if dist.is_available() and dist.is_initialized():
            shares: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(shares, batches)
            batches = [batch for share in shares for batch in share]
        if not batches:
            return {}
        columns = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
        _, first = np.unique(columns["index"], return_index=True)
        return {name: column[first] for name, column in columns.items()}

    def reset(self) -> None:
        self._batches = []


def write_predictions(
    path: Path,
    tasks: TaskSet,
    rows: Mapping[str, np.ndarray],
    paths: Sequence[str],
    groups: Sequence[Any] | np.ndarray | None = None,
    *,
    confidence: bool = True,
) -> None:
    """Write what `PredictionCollector.rows` gave.

    Args:
        path: the file; it appears whole or not at all.
        paths: image paths of all rows of the annotations, which `index` points into.
        groups: names of their groups, or None where images are independent.
        confidence: whether scores are probabilities, so that the predicted class's is worth a column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    index = np.asarray(rows.get("index", np.empty(0)), dtype=np.int64)
    columns: dict[str, Any] = {
        "index": pa.array(index),
        "path": pa.array([paths[i] for i in index], type=pa.string()),
    }
    if groups is not None:
        columns["group"] = pa.array([str(groups[i]) for i in index], type=pa.string())
    for task in tasks:
        if f"{task.name}/prediction" not in rows:
            continue
        prediction = rows[f"{task.name}/prediction"]
        columns[f"{task.name}/target"] = pa.array(rows[f"{task.name}/target"])
        columns[f"{task.name}/prediction"] = pa.array(prediction)
        scores = rows.get(f"{task.name}/scores")
        if scores is None:
            continue
        scores = np.ascontiguousarray(scores, dtype=np.float32)
        if confidence:
            own = scores[np.arange(len(scores)), np.maximum(prediction, 0)]
            columns[f"{task.name}/confidence"] = pa.array(np.where(prediction >= 0, own, np.float32("nan")))
        ends = pa.array(np.arange(len(scores) + 1) * scores.shape[1], type=pa.int32())
        columns[f"{task.name}/scores"] = pa.ListArray.from_arrays(ends, scores.ravel())
    of_tasks = tuple(f"{task.name}/" for task in tasks)
    columns |= {n: pa.array(column) for n, column in rows.items() if n not in columns and not n.startswith(of_tasks)}
    table = pa.table(columns)
    table = table.replace_schema_metadata({TASKS_KEY: json.dumps(tasks.to_dict()).encode()})
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_predictions(path: Path) -> "tuple[pd.DataFrame, TaskSet]":
    """The table (scores as arrays [C]) and the task set; `tasks[name].classes[i]` names class i.

    Raises:
        UserError: no such file, or not one that mtlcar wrote.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise UserError(
            f"No predictions at {path}: the run has not been tested yet. `mtlcar resume` goes on to the test."
        )
    try:
        table = pq.read_table(path)
        tasks = TaskSet.from_dict(json.loads((table.schema.metadata or {})[TASKS_KEY]))
    except (
        pa.ArrowException,
        OSError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        RecursionError,
        UserError,
    ) as error:
        raise UserError(
            f"{path} is no predictions file of mtlcar, or it is damaged ({error}). "
            "Expected Parquet with the task set in its metadata. Remove it and DONE; `mtlcar resume` writes them again."
        ) from error
    return table.to_pandas(ignore_metadata=True), tasks
