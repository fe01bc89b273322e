"""torch.compile gives every task the gradients of eager mode, also after a run that walked the graph only once."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._functorch import config as functorch

from mtlcar.architectures.base import Architecture
from mtlcar.checks.values import CHOICES, COMPILE_MODES
from mtlcar.compiled import compile_network, refuse_graphs
from mtlcar.errors import UserError
from mtlcar.weightings.gradients import Step, bottleneck_gradients, parameter_gradients
from mtlcar.weightings.mgda import MGDA
from tests.networks import PAIR, build, losses

IMAGE = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def own_cache(tmp_path: Path) -> Iterator[Path]:
    donated, folder = functorch.donated_buffer, os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    torch._dynamo.reset()
    yield tmp_path
    torch._dynamo.reset()
    functorch.donated_buffer = donated
    os.environ.pop("TORCHINDUCTOR_CACHE_DIR", None)
    if folder is not None:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder


def network() -> Architecture:
    torch.manual_seed(0)
    return build("parallel", backbone="one_block")  # Inductor compiles each kernel for seconds


def step_of(architecture: Architecture) -> Step:
    shared = architecture(IMAGE)
    one = torch.ones(())
    everything = list(architecture.parameters())
    trunk = list(architecture.shared_parameters())
    rest = [p for p in everything if all(p is not q for q in trunk)]
    losses = torch.stack([shared.outputs[n].float().square().mean() for n in architecture.tasks.names])
    return Step(losses, one, one, trunk, rest, rest, (shared.bottleneck,))


def task_gradients(architecture: Architecture) -> list[list[Tensor]]:
    found = parameter_gradients(step_of(architecture)).rows
    return [*found, *bottleneck_gradients(step_of(architecture)).rows]


# Inductor itself uses what torch 2.15 has deprecated.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_compiled_gradients_of_all_tasks_are_those_of_eager_mode_after_an_equal_run(own_cache: Path) -> None:
    expected = task_gradients(network())
    first = network()
    compile_network(first, own_cache)
    step_of(first).losses.sum().backward()  # what equal weighting does: the graph is walked once, and then cached
    torch._dynamo.reset()
    second = network()
    compile_network(second, own_cache)
    found = task_gradients(second)
    assert (own_cache / "inductor").is_dir()
    assert list(second.state_dict()) == list(network().state_dict())
    for mine, eager in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, eager, rtol=1e-3, atol=1e-5)
    assert len({tuple(row[0].flatten()[:3].tolist()) for row in found[:3]}) == 3  # three tasks, three gradients


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize(  # the ways in which stages are called; mtan's has what the slow ones have
    "name", ["mtan", "mmoe", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cross_stitch", "ltb"))]
)
def test_several_trunks_compile_stage_by_stage_as_often_as_they_need(
    name: str, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: plain(self, backend="aot_eager"))
    trunk = "two_stages" if name == "mtan" else "short"  # a tree of branches needs three
    eager, compiled = (build(name, PAIR, backbone=trunk) for _ in range(2))
    limits = {"recompile_limit": 8, "accumulated_recompile_limit": 256}  # those of torch, and put back afterwards
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, **limits):
        compile_network(compiled, own_cache)
        assert_same_gradients(eager, compiled)


def assert_same_gradients(eager: Architecture, compiled: Architecture) -> None:
    for size, training in ((6, True), (5, True), (6, False)):
        found = []
        for network in (eager, compiled):
            torch.manual_seed(1)  # branches are drawn
            network.train(training).begin_epoch(9, 10)
            each = losses(network, IMAGE.repeat(2, 1, 1, 1)[:size])
            shared = list(network.shared_parameters())
            found.append([torch.autograd.grad(x, shared, retain_graph=True, allow_unused=True) for x in each])
        for a, b in zip(*found, strict=True):
            assert [g is None for g in a] == [g is None for g in b]
            reached = [[g for g in grads if g is not None] for grads in (a, b)]
            torch.testing.assert_close(*reached, rtol=1e-3, atol=1e-5)


def test_the_modes_of_the_compiler_reach_it(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: asked.append(options))
    for mode in CHOICES["trainer.compile"][1:]:
        compile_network(network(), own_cache, mode)  # type: ignore[arg-type]
    assert asked == [{}, *({"mode": mode} for mode in COMPILE_MODES)]


@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
def test_a_cuda_graph_is_refused_where_it_would_be_played_into_gradients_that_are_still_needed(mode: str) -> None:
    parallel, tasks = network(), network().tasks
    apart, at_once = (MGDA(tasks=tasks, level=level) for level in ("parameters", "representation"))
    with pytest.raises(UserError, match=rf"trainer.compile={mode} records .* walks it once a task"):
        refuse_graphs(mode, parallel, apart, 1)
    with pytest.raises(UserError, match="accumulate_grad_batches=2 adds up"):
        refuse_graphs(mode, parallel, at_once, 2)
    with pytest.raises(UserError, match="architecture=mtan calls several"):
        refuse_graphs(mode, build("mtan", PAIR), at_once, 1)
    refuse_graphs(mode, parallel, at_once, 1)
    for other in (True, False, "max-autotune-no-cudagraphs"):
        refuse_graphs(other, parallel, apart, 2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", [True, *COMPILE_MODES])
def test_compiled_steps_on_a_gpu_learn_what_eager_ones_do(mode: bool | str, own_cache: Path) -> None:
    image = IMAGE.cuda()

    def weights(compiled: bool) -> list[Tensor]:
        architecture = network().cuda().train()
        if compiled:
            compile_network(architecture, own_cache, mode)
        optimizer = torch.optim.SGD(architecture.parameters(), lr=0.01)
        for _ in range(6):  # graphs are recorded in the first ones
            shared = architecture(image)
            torch.stack([shared.outputs[n].float().square().mean() for n in architecture.tasks.names]).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return [p.detach().clone() for p in architecture.parameters()]

    for mine, eager in zip(weights(True), weights(False), strict=True):
        torch.testing.assert_close(mine, eager, rtol=1e-2, atol=1e-3)
