"""Learning to branch: what evaluation computes, and the tree by itself."""

import copy

import pytest
import torch
from torch import Tensor, nn

from mtlcar.architectures.ltb import LTB
from tests.networks import IMAGE, assert_shared_is_what_two_losses_reach_and_none_is_idle, build
from tests.test_ltb import SHAPES, prefer


def called(network: LTB, image: Tensor = IMAGE) -> list[tuple[int, int]]:
    """(stage, branch) of all calls in one forward pass."""
    calls: list[tuple[int, int]] = []
    hooks = [
        network._trunk(j).stage(k).register_forward_hook(lambda *_, at=(k, j): calls.append(at))
        for step, k in enumerate(network.unshared)
        for j in range(network.widths[step])
    ]
    network(image)
    for hook in hooks:
        hook.remove()
    return sorted(calls)


@pytest.mark.parametrize("branches", [2, 3, 4])
def test_evaluation_computes_what_the_tasks_reach(branches: int) -> None:
    network = build("ltb", branches=branches, dropout=0.5, warmup=0)
    everything = [(k, j) for k in (1, 2) for j in range(branches)] + [(3, j) for j in range(3)]
    assert called(network.train()) == everything
    network.eval()
    assert called(network) == [(1, 0), (2, 0), (3, 0), (3, 1), (3, 2)]  # ties: the first
    prefer(network, {1: [1] * branches, 2: [1, 0, 1]})
    assert called(network) == [(1, 1), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)]


@pytest.mark.parametrize(("backbone", "head", "options"), SHAPES)
def test_the_pruned_network_is_the_tree_by_itself(backbone: str, head: str, options: dict) -> None:
    network = build("ltb", backbone=backbone, head=head, **options)
    with torch.no_grad():
        for name, p in network.named_parameters():
            if "logits" in name:
                p.normal_()
    before = copy.deepcopy(network.state_dict())
    pruned = network.eval().pruned()
    assert pruned.tree() == network.tree()
    assert pruned.pruned() is pruned
    assert list(network.state_dict()) == list(before)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    for name, value in network(IMAGE).outputs.items():
        assert torch.equal(pruned(IMAGE).outputs[name], value)
    assert called(pruned) == called(network)
    used = {id(p) for part in pruned.compiled_parts() for p in part.parameters()}
    assert used == {id(p) for j in range(max(pruned.widths)) for p in pruned._trunk(j).stages.parameters()}
    assert not any("logits" in n for n in pruned.state_dict())
    for trunk in (pruned._trunk(j) for j in range(max(pruned.widths))):  # else a lost stage would stay in memory
        assert {id(m) for m in trunk.frozen} <= {id(m) for m in trunk.modules()}
    assert_shared_is_what_two_losses_reach_and_none_is_idle(pruned)  # a fixed tree in training too


def test_the_parameters_are_those_of_the_branches() -> None:
    def size(*modules: nn.Module) -> int:
        return sum(p.numel() for m in modules for p in m.parameters())

    trunk = build("parallel").backbone
    stages = [size(s) for s in trunk.stages]
    heads = size(build("parallel").heads)
    for branches, logits in ((None, 9 + 9), (2, 4 + 6), (5, 25 + 15)):
        network = build("ltb", branches=branches)
        inner = branches or 3
        assert size(network) == stages[0] + inner * (stages[1] + stages[2]) + 3 * stages[3] + heads + logits
    with torch.device("meta"):
        network = build("ltb", backbone="maxvit_t", branches=4, size=224)
    assert not any("pooling" in n for n, _ in network._trunk(3).named_parameters())
    assert all(p.is_meta for p in network.parameters())


def test_a_norm_that_no_map_head_reads_is_frozen() -> None:
    with torch.device("meta"):
        network = build("ltb", backbone="convnext_tiny", head="conv", size=64)
    norms = [p for n, p in network.named_parameters() if "pooling" in n]
    assert len(norms) == 2 * 3
    assert not any(p.requires_grad for p in norms)
