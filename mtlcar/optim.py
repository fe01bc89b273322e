"""Optimizers and learning-rate schedules, built from a network's parameters.

`conf/optimizer/*.yaml` gives a factory (architecture, weighting) -> optimizer; `conf/scheduler/*.yaml` one that takes
the keyword arguments optimizer, total_steps, steps_per_epoch and monitor, and gives Lightning's `lr_scheduler` dict or
None. Steps are optimisation steps: with accumulation, one per `accumulate_grad_batches` batches.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau

from mtlcar.backbones.base import StagedBackbone
from mtlcar.errors import UserError
from mtlcar.metrics.direction import lower_is_better


def build_optimizer(
    architecture: nn.Module,
    weighting: nn.Module | None = None,
    *,
    name: str,
    optimizer: Callable[..., Optimizer],
    lr: float,
    weight_decay: float = 0.0,
    layer_decay: float | None = None,
    head_lr_factor: float = 1.0,
    decay_norm_bias: bool = False,
    fused: bool | None = None,
) -> Optimizer:
    """The optimizer of the network's trainable parameters and, in a group of their own, the weighting's.

    Args:
        architecture: the network; every `StagedBackbone` in it has layer-wise learning rates.
        weighting: its parameters (uncertainty's s) learn at `lr` without weight decay.
        name: the optimizer's name, for error messages.
        optimizer: a torch optimizer class with its own options bound, called with parameter groups.
        lr, weight_decay, layer_decay, head_lr_factor, decay_norm_bias: see `parameter_groups`.
        fused: one kernel for a whole group. None: where optimizer and device have one; otherwise torch's own choice
            (foreach on a GPU).

    Raises:
        UserError: an impossible value, or nothing to train.
    """
    for key, value, good, expected in (
        ("lr", lr, 0 < lr < math.inf, "a number above 0"),
        ("weight_decay", weight_decay, 0 <= weight_decay < math.inf, "a number of at least 0"),
        ("layer_decay", layer_decay, layer_decay is None or 0 < layer_decay <= 1, "null, or above 0 and at most 1"),
        ("head_lr_factor", head_lr_factor, 0 < head_lr_factor < math.inf, "a number above 0"),
    ):
        if not good:
            raise UserError(f"optimizer.{key} ({name}) should be {expected}. Found {value}.")
    groups = parameter_groups(
        architecture,
        lr=lr,
        weight_decay=weight_decay,
        layer_decay=layer_decay,
        head_lr_factor=head_lr_factor,
        decay_norm_bias=decay_norm_bias,
    )
    if not groups:
        raise UserError("Every parameter of the network is frozen: there is nothing to train.")
    known = {id(p) for group in groups for p in group["params"]}
    own = [p for p in weighting.parameters() if p.requires_grad and id(p) not in known] if weighting else []
    if own:
        groups.append({"params": own, "name": "weighting", "lr": lr, "lr_scale": 1.0, "weight_decay": 0.0})
    parameters = [p for group in groups for p in group["params"]]
    has_fused = "fused" in inspect.signature(optimizer).parameters
    if fused is None:
        fused = has_fused and all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
    elif fused and not has_fused:
        raise UserError(f"optimizer={name} has no fused kernel: leave optimizer.fused=null.")
    built = optimizer(groups, **({"fused": True} if fused else {}))
    if fused:
        # With this flag fp16 leaves unscaling to the kernel, and Lightning then refuses to clip gradients.
        built._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    return built


def parameter_groups(
    module: nn.Module,
    *,
    lr: float,
    weight_decay: float = 0.0,
    layer_decay: float | None = None,
    head_lr_factor: float = 1.0,
    decay_norm_bias: bool = False,
) -> list[dict[str, Any]]:
    """Trainable parameters by learning rate and weight decay; each once, in the module's order.

    Args:
        lr: of the parameters outside the backbones, times `head_lr_factor`.
        layer_decay: d; stage k of a backbone's K learns at lr d^(K - k), k = 0 at the input (ELECTRA, Clark 2020;
            BEiT, Bao 2021). None: backbones learn at `lr`.
        decay_norm_bias: whether biases, norm scales, layer scales and class tokens are decayed too.

    Returns:
        Groups with `params`, `name`, `lr`, `lr_scale` (lr relative to the argument `lr`; a schedule with its own
        maximum keeps these ratios) and `weight_decay`.
    """
    scale: dict[int, tuple[str, float]] = {}
    for backbone in (m for m in module.modules() if isinstance(m, StagedBackbone)):
        stages = backbone.param_groups()
        depth = {id(p): k for k, stage in enumerate(stages) for p in stage}
        for p in backbone.parameters():
            k = depth.get(id(p), len(stages) - 1)  # what no stage owns (a final norm) sits at the end
            own = ("backbone", 1.0) if layer_decay is None else (f"backbone.{k}", layer_decay ** (len(stages) - k))
            scale.setdefault(id(p), own)
    groups: dict[str, dict[str, Any]] = {}
    for key, p in module.named_parameters():  # names a shared parameter once
        if not p.requires_grad:
            continue
        part, factor = scale.get(id(p), ("heads", head_lr_factor))
        decayed = decay_norm_bias or not _is_vector(key, p)
        name = part if decayed else f"{part}.no_decay"
        group = {"params": [], "name": name, "lr": lr * factor, "lr_scale": factor}
        groups.setdefault(name, group | {"weight_decay": weight_decay if decayed else 0.0})["params"].append(p)
    return list(groups.values())


def _is_vector(name: str, p: nn.Parameter) -> bool:
    # [C, 1, 1] is ConvNeXt's layer scale, [1, 1, D] a class token.
    return p.ndim <= 1 or name.endswith("bias") or (p.ndim == 3 and p.numel() == max(p.shape))


class _OneCycle(OneCycleLR):
    """Stays at its last value instead of raising when it is stepped once more after the last step."""

    def step(self, epoch: int | None = None) -> None:
        if self.last_epoch < self.total_steps - 1:
            super().step(epoch)


def onecycle(
    *,
    optimizer: Optimizer,
    total_steps: int,
    steps_per_epoch: int,
    monitor: str,
    name: str = "onecycle",
    max_lr: float | None = None,
    pct_start: float = 0.3,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    anneal_strategy: Literal["cos", "linear"] = "cos",
    cycle_momentum: bool = True,
) -> dict[str, Any]:
    """Up to the maximum in `pct_start` of the steps, then down to almost nothing (Smith & Topin 2018; torch's rule).

    Args:
        max_lr: None: each parameter group's own lr. A number: the maximum of the parameters at full rate; layer-wise
            and head factors keep their ratios.
        cycle_momentum: momentum (beta1) runs from .95 down to .85 and back, whatever the optimizer was given.
    """
    if max_lr is not None and not 0 < max_lr < math.inf:
        raise UserError(f"scheduler.max_lr should be null or a number above 0. Found {max_lr}.")
    if not 0 <= pct_start <= 1:
        raise UserError(f"scheduler.pct_start should be between 0 and 1. Found {pct_start}.")
    steps = max(total_steps, 2)  # a cycle of one step has only its end, where the rate is nothing
    groups = optimizer.param_groups
    schedule = _OneCycle(
        optimizer,
        max_lr=[g["lr"] if max_lr is None else max_lr * g.get("lr_scale", 1.0) for g in groups],
        total_steps=steps,
        # With pct_start * steps == 1 torch's warm-up has no length, and it divides by that.
        pct_start=float(pct_start) if pct_start * steps != 1 else (1 - 1e-9) / steps,
        anneal_strategy=anneal_strategy,
        cycle_momentum=cycle_momentum,
        div_factor=div_factor,
        final_div_factor=final_div_factor,
    )
    return {"scheduler": schedule, "interval": "step", "frequency": 1}


def cosine(
    *,
    optimizer: Optimizer,
    total_steps: int,
    steps_per_epoch: int,
    monitor: str,
    name: str = "cosine",
    warmup_fraction: float = 0.05,
    warmup_epochs: float | None = None,
    min_factor: float = 0.0,
) -> dict[str, Any]:
    """Linear warm-up over w steps, then half a cosine down to `min_factor` times the lr (SGDR, Loshchilov 2017).

    Step s of N has the factor (s + 1) / (w + 1) for s < w; then m + (1 - m) (1 + cos(pi (s - w) / (N - w))) / 2.

    Args:
        warmup_fraction: w as a share of all steps.
        warmup_epochs: w in epochs; takes the place of `warmup_fraction`.
    """
    if not 0 <= warmup_fraction <= 1 or not 0 <= min_factor <= 1 or (warmup_epochs or 0) < 0:
        raise UserError(
            "scheduler.warmup_fraction and scheduler.min_factor should be between 0 and 1, scheduler.warmup_epochs "
            f"null or at least 0. Found {warmup_fraction}, {min_factor} and {warmup_epochs}."
        )
    wanted = warmup_fraction * total_steps if warmup_epochs is None else warmup_epochs * steps_per_epoch
    warmup = min(round(wanted), max(total_steps - 1, 0))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        return min_factor + (1 - min_factor) * (1 + math.cos(math.pi * progress)) / 2

    return {"scheduler": LambdaLR(optimizer, factor), "interval": "step", "frequency": 1}


def plateau(
    *,
    optimizer: Optimizer,
    total_steps: int,
    steps_per_epoch: int,
    monitor: str,
    name: str = "plateau",
    factor: float = 0.1,
    patience: int = 5,
    mode: Literal["min", "max"] | None = None,
    min_lr: float = 0.0,
) -> dict[str, Any]:
    """The lr times `factor` after more than `patience` validations in which `monitor` did not improve.

    Args:
        mode: None: `min` for losses and errors, `max` for everything else.
    """
    if not 0 < factor < 1 or patience < 0:
        raise UserError(
            "scheduler.factor should be between 0 and 1 and scheduler.patience at least 0. "
            f"Found {factor} and {patience}."
        )
    direction = mode or ("min" if lower_is_better(monitor) else "max")
    schedule = ReduceLROnPlateau(optimizer, mode=direction, factor=factor, patience=patience, min_lr=min_lr)
    return {"scheduler": schedule, "interval": "epoch", "frequency": 1, "monitor": monitor, "strict": True}


def constant(
    *, optimizer: Optimizer, total_steps: int, steps_per_epoch: int, monitor: str, name: str = "constant"
) -> None:
    """The lr stays as it is: no schedule."""
