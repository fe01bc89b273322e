"""Two processes on unequal shares of a batch take the steps of one process on all of it."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from mtlcar.weightings.base import Weighting
from tests.test_weighting_rows import CASES, built
from tests.weighting_net import Net, X
from tests.weighting_rows import ROWS

STEPS = 3
TOGETHER = [case for case in CASES if not ROWS[case[0]].extra]


class Both(nn.Module):
    """What DDP wraps in a run: network and weighting."""

    def __init__(self, weighting: Weighting) -> None:
        super().__init__()
        self.net = Net()
        self.weighting = weighting

    def forward(self, x: Tensor, of: float) -> tuple[Tensor, Tensor]:
        return self.net(x, of)


def steps(both: Both, wrapped: nn.Module, x: Tensor, of: float, world: int) -> list[Tensor]:
    """Weights and all gradients of each step; parameters move along."""
    found = []
    for k in range(STEPS):
        for p in both.parameters():
            p.grad = None
        losses, z = wrapped(x + 0.1 * k, of)
        applied = both.weighting.backward(both.net.of(losses, z, world=world))
        if applied.weights is not None:
            found.append(applied.weights)
        if applied.gramian is not None:
            found.append(applied.gramian)
        with torch.no_grad():
            for p in both.parameters():
                assert p.grad is not None
                found.append(p.grad.clone())
                p -= 0.1 * p.grad
    return found


def share(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=(folder / "store").as_uri(), rank=rank, world_size=2)
    x = X[:3] if rank == 0 else X[3:]
    results = {}
    for name, level in TOGETHER:
        both = Both(built(name, level=level))
        wrapped = nn.parallel.DistributedDataParallel(both)
        results[name, level] = steps(both, wrapped, x, len(X) / 2, 2)
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def shares(tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[str, str], list[Tensor]]]:
    folder = tmp_path_factory.mktemp("ddp")
    mp.spawn(share, (folder,), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.skipif(not dist.is_available(), reason="torch without torch.distributed")
@pytest.mark.parametrize(("name", "level"), TOGETHER)
def test_two_processes_give_the_weights_and_gradients_of_one(shares: list, name: str, level: str) -> None:
    both = Both(built(name, level=level))
    alone = steps(both, both, X, len(X), 1)
    first, second = (result[name, level] for result in shares)
    assert len(alone) == len(first) >= STEPS * 8
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
    for mine, whole in zip(first, alone, strict=True):
        torch.testing.assert_close(mine, whole, rtol=1e-4, atol=1e-5)
