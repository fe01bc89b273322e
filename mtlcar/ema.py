"""An exponential moving average of the network's weights, which is validated and tested in their place."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from mtlcar.architectures.base import Architecture

PREFIX = "architecture."
TRAINING_WEIGHTS = "training_weights"
"""Key of a checkpoint: name in `state_dict` -> the weight that training goes on with, where that holds an average."""


def decay_at(step: int, decay: float) -> float:
    """The decay of optimizer step 1, 2, ...: it begins low, so that the initial weights are soon forgotten
    (`num_updates` of TensorFlow's tf.train.ExponentialMovingAverage)."""
    return min(decay, (1 + step) / (10 + step))


def averaged_tensors(architecture: Architecture) -> dict[str, Tensor]:
    """Name in the module's state -> the live tensor: parameters, frozen ones too, and floating-point buffers. What has
    whole numbers cannot be averaged, and what is no part of the state is a constant."""
    state = architecture.state_dict(prefix=PREFIX, keep_vars=True)
    return {name: x.detach() for name, x in state.items() if isinstance(x, Tensor) and x.is_floating_point()}


class WeightAverage(Callback):
    """After each optimizer step t = 1, 2, ... of a fit, not after each micro-batch,

        average <- d average + (1 - d) weights,   d = min(decay, (1 + t) / (10 + t))

    over the network's parameters and floating-point buffers (the statistics of BatchNorm), in float32 at least, from
    the initial weights on. Counters are the network's own, and so is what belongs to losses, label transform and
    weighting. An architecture that chooses by trained logits chooses by their average.

    Validation sees the average; before anything is trained or saved after it, and after an error within it, the weights
    are back, to the bit. A checkpoint has the average in `state_dict`, because that is what its metrics are of and what
    is tested, exported or taken as a pretrained trunk later; the weights that training goes on with are under
    `training_weights`. (Lightning's own WeightAveraging divides them likewise.) So one file is `last.ckpt` and
    `best.ckpt`, and whoever reads it needs to know nothing of averages.

    - fp16: a step that the scaler skips counts. Lightning's `global_step` takes no notice of it, so the average moves
      towards the weights as they were, and the decay depends on the step number alone, which a checkpoint has.
    - DDP: all processes have the same parameters and so the same average. Of BatchNorm's statistics, which differ
      without `sync_batchnorm`, the first process's count: they are saved, and DDP gives them to the others in the first
      batch of a validation.
    - The short trainings of a label transform's search have none: what they compare is far from the end of a training.
    - Sharded parameters (FSDP) are refused in `mtlcar.checks.values`.

    Args:
        decay: d after the warm-up, above 0 and below 1.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self._names: list[str] = []
        self._weights: list[Tensor] = []  # the live ones
        self._average: list[Tensor] = []
        self._kept: list[Tensor] = []  # the weights, while the network has the average
        self._loaded: dict[str, Tensor] = {}
        self._step = 0

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        live = averaged_tensors(pl_module.architecture)  # type: ignore[arg-type]
        for name, weight in live.items():
            weight.copy_(checkpoint[TRAINING_WEIGHTS][name])
        self._loaded = {name: checkpoint["state_dict"][name] for name in live}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        live = averaged_tensors(pl_module.architecture)  # type: ignore[arg-type]
        self._names, self._weights = list(live), list(live.values())
        # Clones have the layout of the weights, without which the fused kernels would not take them.
        self._average = [x.to(torch.promote_types(x.dtype, torch.float32), copy=True) for x in self._weights]
        for name, x in zip(self._names, self._average, strict=True):
            if self._loaded:
                x.copy_(self._loaded[name])
        self._loaded = {}
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        if trainer.global_step == self._step:  # between the micro-batches of a step
            return
        self._step = trainer.global_step
        weights = [x.to(a.dtype) for x, a in zip(self._weights, self._average, strict=True)]
        torch._foreach_lerp_(self._average, weights, 1 - decay_at(self._step, self.decay))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._kept = [x.clone() for x in self._weights]
        torch._foreach_copy_(self._weights, self._average)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._give_back()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._give_back()

    def _give_back(self) -> None:
        if self._kept:
            torch._foreach_copy_(self._weights, self._kept)
        self._kept = []

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        training = self._kept or self._weights
        checkpoint[TRAINING_WEIGHTS] = dict(zip(self._names, training, strict=True))
        checkpoint["state_dict"].update(zip(self._names, self._average, strict=True))
