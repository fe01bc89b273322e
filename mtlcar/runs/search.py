"""The short trainings that a label transform asks for before the real one."""

import copy
import logging
import math
import time
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from mtlcar.build import Parts
from mtlcar.config import FOUND
from mtlcar.exact import exact
from mtlcar.finite import NonFiniteLossError, StopOnNonFinite
from mtlcar.label_transforms.base import Outcome, Trial
from mtlcar.runs.files import read_json, write_json, write_text
from mtlcar.runs.output import signature
from mtlcar.runs.progress import progress
from mtlcar.runs.ranks import is_main_process
from mtlcar.runs.training import make_trainer

log = logging.getLogger("mtlcar")
RECORD = "search.json"
"""In the run directory: what was tried so far, and the seconds it took."""


class GradientMeter(Callback):
    """Mean |gradient| over all elements of the parameters that have one, averaged over the optimizer's steps.

    Measured on what the optimizer is about to use: unscaled, accumulated, before clipping. One fused call and no
    synchronisation a step.
    """

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._steps: Tensor | None = None

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        norms = torch.stack(torch._foreach_norm(gradients, 1))
        mean = norms.to(exact(norms.device)).sum() / sum(g.numel() for g in gradients)
        # fp16 with a scale that is still too high: the scaler is about to skip this step, so it says nothing
        skipped = (
            ~mean.isfinite() if getattr(trainer.precision_plugin, "scaler", None) else torch.zeros_like(mean).bool()
        )
        mean, step = torch.where(skipped, 0.0, mean), (~skipped).to(mean.dtype)
        self._sum = mean if self._sum is None else self._sum + mean
        self._steps = step if self._steps is None else self._steps + step

    def mean(self) -> float:
        """Infinite where no step counted, or one was not finite."""
        if self._sum is None or self._steps is None or not float(self._steps):
            return math.inf
        found = float(self._sum) / float(self._steps)
        return found if math.isfinite(found) else math.inf


class StopAfter(Callback):
    """Ends a training after some epochs. The trainer's own `max_epochs` stays, which schedules look at."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch + 1 >= self.epochs:
            trainer.should_stop = True


def search(cfg: DictConfig, parts: Parts, run_dir: Path) -> float:
    """Let the label transform choose its constants; the network has its first parameters again afterwards.

    Returns:
        The seconds it took.

    Raises:
        UserError: the transform found none that pass.
    """
    transform, record = parts.module.label_transform, run_dir / RECORD
    earlier = read_json(record) if record.is_file() else {}
    if earlier and (cfg.label_transform.get("constants") or {}).get(FOUND):  # it was over when this run was stopped
        transform.searched = earlier["searched"]
        return float(earlier["seconds"])
    before, tried = float(earlier.get("seconds", 0.0)), list(earlier.get("trials", []))
    began = time.perf_counter()
    steps = transform.search()
    trial = next(steps, None)
    if trial is None:
        return 0.0
    trials: list[dict[str, Any]] = []
    _record(run_dir, transform.searched, before, tried)
    first = copy.deepcopy(parts.module.state_dict())
    own = {key for key in first if key.startswith("label_transform.")}
    while trial is not None:
        outcome = known_outcome(tried, len(trials), trial)
        if outcome is None:
            outcome = _try(cfg, parts, run_dir, trial)
        trials.append(trial_record(trial, outcome))
        parts.module.load_state_dict({**first, **{k: v for k, v in parts.module.state_dict().items() if k in own}})
        try:
            trial = steps.send(outcome)
        except StopIteration:
            trial = None
        finally:
            seconds = before + time.perf_counter() - began
            _record(run_dir, transform.searched, seconds, [*trials, *tried[len(trials) :]])
    return seconds


def trial_record(trial: Trial, outcome: Outcome) -> dict[str, Any]:
    """What search.json keeps of a training. JSON has no infinity: None."""
    finite = outcome.gradient if math.isfinite(outcome.gradient) else None
    metrics = {k: v for k, v in outcome.metrics.items() if math.isfinite(v)}
    return {"what": repr(trial.what), "epochs": trial.epochs, "gradient": finite, "metrics": metrics}


def known_outcome(tried: list[dict[str, Any]], number: int, trial: Trial) -> Outcome | None:
    """What an earlier session of this run found in its trial of this number, if it was the same one: all that a trial
    computes is a function of the configuration and the seed."""
    if number >= len(tried):
        return None
    found = tried[number]
    if (found["what"], found["epochs"]) != (repr(trial.what), trial.epochs):
        return None
    return Outcome(math.inf if found["gradient"] is None else found["gradient"], found["metrics"])


def _record(run_dir: Path, searched: dict[str, Any], seconds: float, trials: list[dict[str, Any]]) -> None:
    if is_main_process():
        write_json(run_dir / RECORD, {"searched": searched, "seconds": seconds, "trials": trials})


def _try(cfg: DictConfig, parts: Parts, run_dir: Path, trial: Trial) -> Outcome:
    log.info("trial: %s", ", ".join(f"{key} {value}" for key, value in trial.what.items()))
    meter = GradientMeter()
    callbacks = [
        StopOnNonFinite(cfg.trainer.log_every_n_steps),
        meter,
        progress(name=signature(run_dir)),
        StopAfter(trial.epochs),
    ]
    own = copy.deepcopy(cfg)
    own.trainer.check_val_every_n_epoch = 1
    trainer = make_trainer(own, callbacks, [], run_dir)
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    try:
        trainer.fit(parts.module, datamodule=parts.data, weights_only=True)
    except NonFiniteLossError:
        log.info("a loss stopped being finite")
        return Outcome(math.inf, {})
    metrics = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
    return Outcome(meter.mean(), metrics)


def keep_constants(cfg: DictConfig, parts: Parts, run_dir: Path, *, write: bool) -> None:
    """What the transform found becomes `label_transform.constants` of the configuration and of the run's config.yaml,
    from where another run can take it."""
    transform = parts.module.label_transform
    found = transform.constants()
    scalars = {key: f"{value:.6g}" for key, value in found.items() if isinstance(value, float)}
    if scalars:
        log.info("label_transform=%s: %s", transform.name, ", ".join(f"{k} {v}" for k, v in scalars.items()))
    if found and cfg.label_transform.get("constants") is None:
        cfg.label_transform.constants = {**found, FOUND: True}
        if write:
            write_text(run_dir / "config.yaml", OmegaConf.to_yaml(cfg))
