"""GradDrop: a sign is drawn at every feature of the bottleneck, and only gradients of that sign stay."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from mtlcar.errors import UserError, did_you_mean
from mtlcar.tasks import TaskSet
from mtlcar.weightings.base import GradientCombiner
from mtlcar.weightings.draws import RandomWeighting


class GradDrop(RandomWeighting, GradientCombiner):
    """Gradient sign dropout (Chen, Ngiam, Huang, Luong, Kretzschmar, Chai, Anguelov 2020, "Just pick a sign",
    NeurIPS; arXiv 2010.06808), at the bottleneck z [B, D] with task gradients g_t [B, D]:

        s_t = sum over the batch of sign(z) g_t                  [D]
        p = (1 + sum_t s_t / sum_t |s_t|) / 2                    [D]
        keep_t = 1 where s_t > 0 and p > U, or s_t < 0 and p <= U; U uniform in [0, 1)
        d = sum_t (leak_t + (1 - leak_t) keep_t) g_t

    Where every task has its own representation z_t and no bottleneck (cross-stitch, mixtures of experts), z is all of
    them one after the other along the batch [T B, D]: s_t then is the sum over z_t, and feature by feature the tasks'
    representations compete, as in LibMTL.

    The paper's f(p) is the identity. Where s_t = 0, as at a feature that is 0 in the whole batch, only the leak stays.
    What is logged is the share of each task's features that was kept, leak included, in [0, 1]; these are no weights,
    and `normalize` changes nothing.

    U is drawn on the CPU (see `RandomWeighting`), D floats a step that are copied to the device; the micro-batches of
    one step share it. Under DDP the batch lies on several processes: s_t is summed over them, and all drop the same.

    A step in which every s_t is 0 everywhere, or the gradients are not finite, is counted; in the latter the result is
    not finite either, so that the fp16 scaler skips it.

    Departs from the paper and LibMTL at p = U, where these drop either sign: a feature on which all tasks agree
    downwards (p = 0) would be lost when U is 0. Departs from TorchJD, which sees no features (sign(z) = 1).

    Args:
        leak: share that passes whatever the lot, in [0, 1]; one number, or task -> number for exactly the trained
            tasks. 0.
    """

    levels: ClassVar[tuple[str, ...]] = ("representation",)
    takes_representations: ClassVar[bool] = True

    def __init__(
        self,
        tasks: TaskSet,
        *,
        leak: float | Mapping[str, float] = 0.0,
        **common: Any,
    ) -> None:
        super().__init__(tasks, **common)
        self.register_buffer("leak", torch.tensor(_per_task(leak, tasks)), persistent=False)
        self.leak: Tensor

    def combine(self, jacobian: Tensor, losses: Tensor, features: Tensor | None) -> Tensor:
        assert features is not None, "representation level hands over the features"
        gradients = jacobian.view(-1, *features.shape)
        sign = features.sign()
        s = torch.stack([(g * sign).sum(0) for g in gradients.unbind()])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(s)
        total = s.abs().sum(0)
        p = (1 + s.sum(0) / total) / 2  # NaN where all s are 0, and nothing is kept
        u = torch.rand(features.shape[1], generator=self.draw()).to(s.device, non_blocking=True)
        up = p > u
        kept = torch.where(s > 0, up, ~up & (s < 0)).to(s.dtype)
        share = torch.lerp(self.leak[:, None], torch.ones_like(kept), kept)
        all_signs = total.sum()
        self.degenerate += ~(torch.isfinite(all_signs) & (all_signs > 0))
        self.applied = share.mean(1)
        # Multiplied and not selected: NaN x 0 is NaN, and an overflow must be seen.
        return gradients.mul_(share[:, None]).sum(0).view(-1)


def _per_task(leak: float | Mapping[str, float], tasks: TaskSet) -> list[float]:
    """In the order of the tasks; one task alone drops nothing."""
    if len(tasks) == 1:
        return [0.0]
    given = dict(leak) if isinstance(leak, Mapping) else dict.fromkeys(tasks.names, leak)
    unknown = [k for k in given if k not in tasks]
    if unknown or len(given) < len(tasks):
        hint = did_you_mean(unknown[0], tasks.names) if unknown else ""
        raise UserError(
            f"weighting.leak should be one number or name exactly the tasks {', '.join(tasks.names)}. "
            f"Found {', '.join(given) or 'none'}.{hint} Example: weighting.leak="
            "{" + ",".join(f"{n}:0.1" for n in tasks.names) + "}"
        )
    values = [given[n] for n in tasks.names]
    if not all(isinstance(v, int | float) and not isinstance(v, bool) and 0 <= v <= 1 for v in values):
        raise UserError(f"weighting.leak should be within 0 and 1. Found {leak!r}.")
    return [float(v) for v in values]
