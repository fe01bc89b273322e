"""The class scores that runs keep in predictions.parquet, read where they are needed and not kept in memory."""

from collections.abc import Iterable

import numpy as np

from mtlcar.report.collect import Run


def read_scores(run: Run, tasks: Iterable[str]) -> dict[str, np.ndarray]:
    """{task: scores [N, C]} of those of `tasks` that have one of each class for every row of `run.predictions`."""
    import pyarrow
    import pyarrow.parquet as pq

    file = run.directory / "predictions.parquet"
    found = {}
    try:
        names = set(pq.read_schema(file).names)
        for task in tasks:
            if f"{task}/scores" not in names:
                continue
            column = pq.read_table(file, columns=[f"{task}/scores"])[f"{task}/scores"].combine_chunks()
            classes = len(run.tasks[task].classes)
            if not column.null_count and (np.asarray(column.value_lengths()) == classes).all():
                found[task] = np.asarray(column.flatten()).reshape(-1, classes)
    except (OSError, pyarrow.ArrowException):
        return {}
    rows = 0 if run.predictions is None else len(run.predictions)
    return {task: scores for task, scores in found.items() if len(scores) == rows}
