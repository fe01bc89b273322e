"""What it takes to predict one task alone: its part of the network, and how long that takes for one image."""

import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from mtlcar.architectures.base import Architecture
from mtlcar.bench.timing import timed

SECONDS = 0.3
"""Spent on timing all tasks together, where the least number of rounds does not take longer."""
ROUNDS = (3, 21)
"""The least and the most times that each is timed."""
ALL = "all"
"""The whole network, next to the names of the tasks."""

Run = Callable[[Tensor], tuple[Tensor, ...]]


@contextmanager
def as_evaluated(architecture: Architecture) -> Iterator[None]:
    """Evaluation mode, not compiled, without gradients and every operation visible; put back at the end."""
    modes = {module: module.training for module in architecture.modules()}
    compiled = {module: module._compiled_call_impl for module in modes if module._compiled_call_impl is not None}
    fast_path = torch.backends.mha.get_fastpath_enabled()
    # nn.MultiheadAttention's fused kernel for inference is unknown to the counter of operations.
    torch.backends.mha.set_fastpath_enabled(False)
    architecture.eval()
    for module in compiled:
        module._compiled_call_impl = None
    try:
        with torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module, training in modes.items():
            module.training = training
        for module, call in compiled.items():
            module._compiled_call_impl = call


def task_graphs(architecture: Architecture, image: Tensor) -> dict[str, Run]:
    """Image [1, 3, S, S] -> (the task's output,), by the operations that it needs and no others; under `all`, every
    task's. Inside `as_evaluated`.

    The pruned network is traced once, at the level of aten's operations; parameters and buffers are its own, no copies.
    In-place operations are replaced by others, so that what nothing reads is dead, and can go.
    """
    network = architecture.pruned()
    names: list[str] = []

    def outputs(x: Tensor) -> tuple[Tensor, ...]:
        found = network(x).outputs
        names[:] = found
        return tuple(found.values())

    traced = make_fx(torch.func.functionalize(outputs))(image)
    wanted = {name: slice(i, i + 1) for i, name in enumerate(names)}
    return {name: _part(traced, which) for name, which in {**wanted, ALL: slice(None)}.items()}


def _part(traced: fx.GraphModule, which: slice) -> Run:
    """The graph of some of the outputs."""
    graph = fx.Graph()
    outputs = graph.graph_copy(traced.graph, {})
    assert isinstance(outputs, tuple | list)
    graph.output(tuple(outputs)[which])
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    return fx.GraphModule(traced, graph)


def latency_ms(runs: Mapping[str, Run], image: Tensor) -> dict[str, float]:
    """Milliseconds that each takes, to the end of what it queues on the image's device: the median of several rounds.

    Rounds are interleaved, so that a busy machine slows all alike; a first one warms up and decides how many there are.
    """

    def synchronize() -> None:
        if image.device.type == "cuda":
            torch.cuda.synchronize(image.device)

    def one_round() -> dict[str, float]:
        return {name: timed(lambda run=run: run(image), synchronize) for name, run in runs.items()}  # type: ignore[misc]

    first = sum(one_round().values()) / 1e3
    least, most = ROUNDS
    rounds = [one_round() for _ in range(min(most, max(least, int(SECONDS / first))))]
    return {name: statistics.median(r[name] for r in rounds) for name in runs}
