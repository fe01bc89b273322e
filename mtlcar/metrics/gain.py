"""Multi-task gain (delta m): how much better one network for all tasks is than one network for each."""

import math
from collections.abc import Mapping

from mtlcar.errors import UserError
from mtlcar.metrics.direction import lower_is_better


def relative_gain(metric: str, value: float, baseline: float) -> float:
    """Change against the baseline in %, positive where `value` is better; NaN for a baseline of 0."""
    if baseline == 0 or math.isnan(baseline):
        return math.nan
    sign = -1.0 if lower_is_better(metric) else 1.0
    return 100.0 * sign * (value - baseline) / baseline


def delta_m(values: Mapping[str, float], baselines: Mapping[str, float]) -> float:
    """Multi-task gain in %, positive where the multi-task network is better.

        delta m = 100/T sum_t (-1)^{l_t} (M_{m,t} - M_{b,t}) / M_{b,t},   l_t = 1 where lower is better

    (Maninis et al. 2019, arXiv 1904.08918; LibMTL's `count_improvement` is the same as a fraction). A task
    with several metrics counts once, with their mean gain.

    Args:
        values: `<task>/<metric>` -> the multi-task network's value.
        baselines: the same keys -> that of the network trained on the task alone.

    Returns:
        NaN where a baseline is 0.

    Raises:
        UserError: no metric, or the two have different ones.
    """
    if not values or set(values) != set(baselines):
        raise UserError(
            f"delta m: found values of {', '.join(sorted(values)) or 'nothing'} and baselines of "
            f"{', '.join(sorted(baselines)) or 'nothing'}; expected the same metrics, at least one. "
            "Give each task's metric in both."
        )
    tasks: dict[str, list[float]] = {}
    for metric, value in values.items():
        tasks.setdefault(metric.rpartition("/")[0], []).append(relative_gain(metric, value, baselines[metric]))
    return sum(sum(gains) / len(gains) for gains in tasks.values()) / len(tasks)
