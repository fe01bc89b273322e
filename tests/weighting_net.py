"""A small network with everything a weighting meets, and steps on it."""

import functools
import json
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mtlcar.config import conf_dir
from mtlcar.tasks import Task, TaskSet
from mtlcar.weightings.base import Weighting
from mtlcar.weightings.gradients import Step

MAKE = Task("make", "classification", classes=("a", "b"))
WEIGHT = Task("weight", "regression")
YEAR = Task("year", "regression")
MODEL = Task("model", "classification", classes=("a1", "a2", "b1"))
TASKS = TaskSet((MAKE, WEIGHT))
SETS = {2: TASKS, 3: TaskSet((MAKE, WEIGHT, YEAR)), 4: TaskSet((MAKE, WEIGHT, YEAR, MODEL))}
X = torch.randn(8, 5, generator=torch.Generator().manual_seed(1))


def make(name: str, tasks: TaskSet = TASKS, **overrides: Any) -> Weighting:
    weighting = _read(name, json.dumps(overrides))(tasks=tasks)
    assert isinstance(weighting, Weighting)
    return weighting


@functools.cache
def _read(name: str, overrides: str) -> Any:
    """What the yaml calls: reading it takes ten times as long as the call, and a test makes hundreds."""
    cfg = OmegaConf.load(conf_dir() / "weighting" / f"{name}.yaml")
    return instantiate(OmegaConf.merge(cfg, json.loads(overrides)), _partial_=True)


class Net(nn.Module):
    """A trunk, a bottleneck, a head a task; the first head's output also feeds the second, as in a cascade."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4))
        self.first = nn.Linear(4, 2)
        self.second = nn.Linear(6, 1)

    def forward(self, x: Tensor, of: int = 0) -> tuple[Tensor, Tensor]:
        """x [B, 5] -> losses [2], bottleneck [B, 4]. `of`: images of the whole batch over all processes' mean share."""
        z = self.trunk(x)
        a = self.first(z)
        b = self.second(torch.cat([z, a], 1))
        n = of or len(x)
        return torch.stack([a.square().mean(1).sum() / n, (b - 3).square().sum() / n]), z

    def step(self, x: Tensor, factor: float = 1.0, scale: float = 1.0, last: bool = True) -> Step:
        losses, z = self(x)
        return self.of(losses, z, factor, scale, last)

    def of(
        self, losses: Tensor, z: Tensor, factor: float = 1.0, scale: float = 1.0, last: bool = True, world: int = 1
    ) -> Step:
        return Step(
            losses=losses,
            factor=torch.tensor(factor),
            scale=torch.tensor(scale),
            shared=[*self.trunk.parameters(), *self.first.parameters()],
            private=list(self.second.parameters()),
            above=[*self.first.parameters(), *self.second.parameters()],
            bottleneck=(z,),
            last=last,
            world=world,
            guarded=scale != 1.0,
        )


def grads(net: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in net.parameters() if p.grad is not None]


def autograd_of_sum(weights: tuple[float, ...] = (1.0, 1.0), factor: float = 1.0) -> list[Tensor]:
    net = Net()
    losses, _ = net(X)
    ((torch.tensor(weights) * losses).sum() * factor).backward()
    return grads(net)


def tenth(gramian: Tensor, losses: Tensor) -> Tensor:
    """What a user may write: finite whatever comes."""
    return torch.arange(len(losses), 0, -1, dtype=gramian.dtype)


class NoHostRoundTrip(TorchDispatchMode):
    """Fails where a CUDA tensor's value would have to come to the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket.__name__ not in ("_local_scalar_dense", "nonzero", "equal", "is_nonzero"), func
        assert not any(i is not None and getattr(i, "dtype", None) == torch.bool for i in _indices(func, args)), func
        return func(*args, **(kwargs or {}))


def _indices(func: Any, args: Any) -> Any:
    return args[1] if func.overloadpacket.__name__ in ("index", "index_put", "index_put_") else ()
