"""Which way a metric improves; known without torch."""

LOWER = (
    "loss",
    "mae",
    "mse",
    "rmse",
    "mape",
    "mape_if_right",
    "mistake_severity",
    "distance",
    "parameters",
    "minutes",
    "fit_seconds",
)


def lower_is_better(metric: str) -> bool:
    """Whether a metric such as `val/property/mae` is a loss, an error or a cost."""
    return metric.rsplit("/", 1)[-1] in LOWER
