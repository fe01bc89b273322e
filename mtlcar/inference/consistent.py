"""Class probabilities of every level, as a decoding works with them."""

from collections.abc import Mapping

import numpy as np

from mtlcar.metrics.decoding import probabilities
from mtlcar.metrics.scored_levels import scored_levels
from mtlcar.tasks import TaskSet


def level_probabilities(scores: Mapping[str, np.ndarray], tasks: TaskSet, decoding: str) -> dict[str, np.ndarray]:
    """`scores` {classification: probabilities [N, C]} with the levels' replaced by what `decoding` works with
    (`mtlcar.metrics.decoding.probabilities`), and those of levels that are only implied added. A level that alone is
    scored keeps its own under any decoding."""
    scored = scored_levels(tasks, scores)
    if not scored:
        return dict(scores)
    return {**scores, **probabilities(scores, tasks, decoding if len(scored) > 1 else "independent")}
