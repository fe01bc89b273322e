"""How sure the difference of two runs' metrics is over the test images: that of these two networks, not of methods."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mtlcar.listing.stored import StoredRun

if TYPE_CHECKING:
    from mtlcar.report.paired import Difference


def image_intervals(runs: Sequence[StoredRun], names: Sequence[str]) -> list[dict[str, "Difference"]]:
    """For each run after the first: metric (`test/...`) -> its difference to the first run with a 95 % interval,
    where the predictions of both hold what that metric needs, for the same test images.

    Takes pandas' and scipy's second of import, where there are two runs with predictions.
    """
    if sum(_has_predictions(run) for run in runs) < 2 or not _has_predictions(runs[0]):
        return [{} for _ in runs[1:]]
    from mtlcar.report.collect import Run
    from mtlcar.report.paired import compare_cells, scores

    read = [
        Run(run.directory, run.config, run.metrics, run.tasks, 0.0)
        if run.tasks is not None and _has_predictions(run)
        else None
        for run in runs
    ]
    metrics = [name.removeprefix("test/") for name in names if name.startswith("test/")]
    # `Run.test` leaves out what is 1 by definition
    of_images = [{m: scores(run, m) for m in metrics if m in run.test} if run else {} for run in read]
    found = []
    for other in of_images[1:]:
        own: dict[str, Difference] = {}
        for metric, b in other.items():
            a = of_images[0].get(metric)
            if a is None or b is None or not a.values.index.equals(b.values.index):
                continue
            paired = compare_cells({"": b}, {"": a})
            if paired is not None and not math.isnan(paired.networks.low):
                own[f"test/{metric}"] = paired.networks
        found.append(own)
    return found


def _has_predictions(run: StoredRun) -> bool:
    return (run.directory / "predictions.parquet").is_file()
