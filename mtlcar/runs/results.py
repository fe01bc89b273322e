"""What a finished run leaves: test metrics of the best checkpoint, metrics.json, predictions, figures."""

import importlib.metadata
import logging
import math
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig
from torch import Tensor

from mtlcar.architectures.cost import cost, task_costs
from mtlcar.build import Parts
from mtlcar.logs.loggers import summarize, wandb_info
from mtlcar.machine import device_name
from mtlcar.runs.checkpoint_files import load_weights
from mtlcar.runs.checkpoints import Checkpoints
from mtlcar.runs.files import read_json, write_json
from mtlcar.runs.no_memory import explained
from mtlcar.runs.predictions import PredictionCollector, read_predictions, write_predictions
from mtlcar.runs.timing import Timing
from mtlcar.runs.training import make_trainer

log = logging.getLogger("mtlcar")
PACKAGES = ("mtlcar", "torch", "torchvision", "lightning", "hydra-core", "torchmetrics", "timm", "wandb")


class CollectPredictions(Callback):
    """Keeps what `test_step` returns."""

    def __init__(self, collector: PredictionCollector) -> None:
        self.collector = collector

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any, **kwargs: Any
    ) -> None:
        self.collector.update(
            outputs["index"], outputs["prediction"], outputs["target"], outputs["scores"], outputs["columns"]
        )


def score(
    cfg: DictConfig, parts: Parts, checkpoint: Path
) -> tuple[dict[str, float], PredictionCollector, dict[str, Any]]:
    """Metrics of the test images by the checkpoint's weights, the predictions, and tables per class."""
    load_weights(parts.module, checkpoint, cfg)
    collector = PredictionCollector(parts.data.tasks)
    trainer = make_trainer(cfg, [CollectPredictions(collector)], [], checkpoint.parent)
    with explained(cfg, training=False):
        values = trainer.test(parts.module, datamodule=parts.data, verbose=False, weights_only=True)[0]
    return dict(values), collector, parts.module.test_tables


def metrics_json(
    parts: Parts,
    run_dir: Path,
    timing: Timing,
    checkpoints: Checkpoints,
    values: dict[str, float],
    tables: dict[str, Any],
    loggers: list[Any],
    rows: dict[str, np.ndarray],
) -> dict[str, Any]:
    """The contract of DESIGN section 6; accuracies are fractions, mape a percentage, errors in the label's unit."""
    by_level = decodings(parts, rows)
    return {
        "schema": 1,
        "fingerprint": run_dir.name,
        "digests": read_json(run_dir / "digests.json"),
        "status": "finished",
        "best": {
            "epoch": checkpoints.epoch,
            "step": checkpoints.step,
            "monitor": parts.monitor,
            "value": number(checkpoints.value),
        },
        "val": strip(checkpoints.best_values, "val/"),
        "test": strip(values, "test/"),
        **({"decodings": by_level} if by_level else {}),
        "per_class": finite(tables),
        "timing": timing.summary(),
        "cost": costs(parts),
        "findings": findings(parts, rows),
        "data": {name: len(rows) for name, rows in parts.data.indices.items()},
        "versions": versions(),
        "wandb": wandb_info(loggers),
    }


def decodings(parts: Parts, rows: dict[str, np.ndarray]) -> dict[str, Any]:
    """{decoding: {metric: value}} of the test images (`mtlcar.metrics.decoding`): `independent` is what the network
    says by itself, and has the values of `test`. Empty where decodings do not differ: without a hierarchy, with scores
    at one level alone, or where scores are no probabilities."""
    if not rows or not parts.module.label_transform.probabilities:
        return {}
    from mtlcar.report.per_image import by_decoding

    return finite(by_decoding(rows, parts.data.tasks))


def findings(parts: Parts, rows: dict[str, np.ndarray]) -> dict[str, Any]:
    """What architecture and label transform found out."""
    transform = parts.module.label_transform
    own = {"constants": transform.constants(), **transform.findings(rows)}
    own = {key: value for key, value in own.items() if value}
    return {**parts.module.architecture.findings(), **({"label_transform": own} if own else {})}


def costs(parts: Parts) -> dict[str, Any]:
    """What the trained network costs, and each task by itself, measured where the test was. A network that learns its
    shape has it only now."""
    module, size = parts.module, parts.image_size
    device = module.trainer.strategy.root_device  # the network itself is back on the CPU
    alone = task_costs(module.architecture, size, device=device, channels_last=module.channels_last)
    return {**cost(module.architecture, size), **alone, "latency_device": device_name(device)}


def number(value: Any) -> float | None:
    """A JSON number; what is not finite has none."""
    value = float(value)
    return value if math.isfinite(value) else None


def finite(tables: dict[str, Any]) -> dict[str, Any]:
    """Nested tables with JSON numbers only."""
    return {k: finite(v) if isinstance(v, dict) else number(v) for k, v in tables.items()}


def strip(values: dict[str, Any], prefix: str) -> dict[str, float | None]:
    """The metrics under `prefix`, without it, in a stable order."""
    return {k.removeprefix(prefix): number(v) for k, v in sorted(values.items()) if k.startswith(prefix)}


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def write_results(
    run_dir: Path, parts: Parts, result: dict[str, Any], rows: dict[str, np.ndarray], loggers: list[Any]
) -> None:
    """predictions.parquet, figures and metrics.json, each whole or absent."""
    from mtlcar.logs.wandb_media import finish_figures

    def gather(rows: Sequence[int]) -> Tensor:
        return parts.data.gather(np.asarray(rows))

    path = run_dir / "predictions.parquet"
    transform = parts.module.label_transform
    annotations = parts.data.annotations
    write_predictions(
        path, parts.data.tasks, rows, annotations.paths, annotations.groups, confidence=transform.probabilities
    )
    df = read_predictions(path)[0]
    finish_figures(run_dir, parts.data.tasks, df, gather, loggers, transform.figures(df))
    summarize(loggers, {key: result[key] for key in ("best", "test", "timing", "cost")})
    write_json(run_dir / "metrics.json", result)
    shown = ", ".join(f"{k} {v:.4g}" for k, v in result["test"].items() if v is not None and not k.endswith("loss"))
    log.info("test: %s", shown)
