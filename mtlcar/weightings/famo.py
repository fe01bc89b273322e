"""Fast adaptive multitask optimisation."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mtlcar.tasks import TaskSet
from mtlcar.weightings.algebra import wide
from mtlcar.weightings.base import LossWeighting, mean_over_processes
from mtlcar.weightings.log_losses import log_losses
from mtlcar.weightings.options import number

BETAS = (0.9, 0.999)
EPS = 1e-8


class FAMO(LossWeighting):
    """w_t = (z_t / L_t) / sum_u (z_u / L_u), z = softmax(xi), xi moved so that all losses fall at one relative rate.

    After the optimiser's step the losses of the same batch are computed once more. With D = log L_before - log L_after
    xi descends along z (D - z.D) + decay xi by Adam of its own (betas .9, .999, eps 1e-8, the decay in the gradient as
    in torch.optim.Adam): a task that fell more than the z-mean loses weight. The first step has z = 1 / T.

    Liu, Feng, Stone, Liu: FAMO, NeurIPS 2023, arXiv 2306.03792. Works on the losses. The paper's lr is .025, its decay
    (gamma) 1e-3; the authors' code has 1e-2. Weights sum to 1.

    The extra forward costs about a third of a step. It has the same dropout masks (an eager network's; torch.compile
    promises no such thing) and the batch's own BatchNorm statistics, and leaves no trace: neither in the running
    statistics nor in the random numbers that follow. With accumulation it is that of the last micro-batch.

    Ways out: a loss of 1e-8 or less (such as the 0 of a batch without a label of that task) has the weight 0, and the
    others share 1; the step is counted. It counts as 1e-8 in D. Where a loss is not finite, before or after, xi stays.
    The authors add 1e-8 to every loss instead, and subtract given minimal losses, which are 0 here.

    Args:
        lr: of xi, above 0.
        decay: of xi, at least 0: pulls z back to 1 / T.
    """

    xi: Tensor
    m: Tensor
    v: Tensor
    updates: Tensor
    before: Tensor

    def __init__(
        self,
        tasks: TaskSet,
        *,
        lr: float = 0.025,
        decay: float = 1e-3,
        **common: Any,
    ) -> None:
        super().__init__(tasks, **common)
        self.lr = number(self.name, "lr", lr, above=0)
        self.decay = number(self.name, "decay", decay, least=0)
        for buffer in ("xi", "m", "v"):
            self.register_buffer(buffer, torch.zeros(len(tasks)))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("before", torch.ones(len(tasks)), persistent=False)  # lives for one step
        self._step = -1
        self._random: tuple[Tensor, Tensor | None] | None = None

    def forward(self, losses: Tensor) -> Tensor:
        with torch.no_grad():
            self.before.copy_(losses)
            logs, known = log_losses(losses)
            share = torch.softmax(wide(self.xi), 0) * known / logs.exp()
            total = share.sum()
            weights = (share / torch.where(total > 0, total, 1.0)).to(losses.dtype)
            self.degenerate += ~known.all()
        return (weights * losses).sum()

    def update(self, after: Tensor) -> None:
        """Move xi on, given the losses [T] that the batch of the last `forward` has after the optimiser's step."""
        with torch.no_grad():
            ok = (self.before.sum() + after.sum()).isfinite()
            fall = log_losses(self.before)[0] - log_losses(after)[0]
            xi, z = wide(self.xi), torch.softmax(wide(self.xi), 0)
            gradient = z * (fall - (z * fall).sum()) + self.decay * xi
            m = torch.lerp(gradient, wide(self.m), BETAS[0])
            v = torch.lerp(gradient.square(), wide(self.v), BETAS[1])
            updates = self.updates + 1
            unbiased = m / (1 - BETAS[0] ** wide(updates))
            scale = (v / (1 - BETAS[1] ** wide(updates))).sqrt() + EPS
            self.keep(self.xi, xi - self.lr * unbiased / scale, ok)
            self.keep(self.m, m, ok)
            self.keep(self.v, v, ok)
            self.keep(self.updates, updates, ok)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if len(self.tasks) > 1:
            self._step = trainer.global_step
            self._random = random_state(pl_module.device)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._random is None or trainer.global_step == self._step:
            return
        with (
            torch.no_grad(),
            trainer.precision_plugin.train_step_context(),
            same_random(pl_module.device, self._random),
            running_statistics_kept(pl_module),
        ):
            after = pl_module.losses_of(batch)
        self._random = None
        self.update(mean_over_processes(after, trainer.world_size))


def random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Of the generators that a forward on `device` draws from. Reading them does not wait for the device."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


@contextmanager
def same_random(device: torch.device, state: tuple[Tensor, Tensor | None]) -> Iterator[None]:
    """Draw from `state` inside, and go on afterwards as if nothing had been drawn."""
    cpu, cuda = state
    with torch.random.fork_rng(devices=[] if cuda is None else [device], device_type="cuda"):
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)
        yield


@contextmanager
def running_statistics_kept(module: nn.Module) -> Iterator[None]:
    """BatchNorm layers in training mode use the batch's statistics, as ever, and store nothing."""
    layers = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True
