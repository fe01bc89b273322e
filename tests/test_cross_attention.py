"""cross_attention: tasks attend to one another at each scale, then each to its own other scales."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mtlcar.architectures.cost import cost
from mtlcar.architectures.cross_attention import Attention, CrossAttention
from mtlcar.backbones.base import BackboneFactory, StagedBackbone
from mtlcar.errors import UserError
from mtlcar.heads.base import SameKind
from mtlcar.heads.linear import Linear
from tests.networks import CARS, PAIR, assert_shared_is_what_two_losses_reach_and_none_is_idle, build, losses


def small(tasks: object = PAIR, **options: object) -> CrossAttention:
    return build("cross_attention", tasks, **{"width": 16, **options})


@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        ("tiny", {"scales": 1}),
        ("tiny", {"scales": 4, "frozen": 3}),
        ("vit_tiny", {"scales": 3}),
        ("vit_tiny", {"width": None, "frozen": 4}),
    ],
    ids=str,
)
def test_shared_parameters_are_those_that_two_losses_reach_and_none_is_idle(backbone: str, options: dict) -> None:
    network = small(CARS, head="mixed", backbone=backbone, **options)
    assert_shared_is_what_two_losses_reach_and_none_is_idle(network)


# --- the definition ---------------------------------------------------------------------------------------------------


class Strip(StagedBackbone):
    """The first map is the image, the second adds up pairs of its positions."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([nn.Identity(), nn.AvgPool2d((1, 2), divisor_override=1)])
        self.channels = (2, 2)

    def pool(self, feature_map: Tensor) -> Tensor:
        return feature_map.mean((2, 3))


def attended(w: dict[str, np.ndarray], name: str, x: list[np.ndarray], y: list[np.ndarray]) -> list[np.ndarray]:
    query, key, value = (w[f"{name}.{part}.weight"] for part in ("query", "key", "value"))
    found = []
    for own in x:
        scores = [(query @ own) @ (key @ other) / math.sqrt(len(own)) for other in y]
        total = sum(map(math.exp, scores))
        found.append(own + sum(math.exp(s) / total * (value @ other) for s, other in zip(scores, y, strict=True)))
    return found


def by_loops(network: CrossAttention, x: np.ndarray) -> list[np.ndarray]:
    """The definition for one image of 4 positions [4, C], number by number: its logits of 2 tasks."""
    w = {n: p.detach().double().numpy() for n, p in network.named_parameters()}
    scales = [list(x), [x[0] + x[1], x[2] + x[3]]][-network.scales :]
    own = [
        [[w[f"projections.{s}.{t}.weight"] @ f + w[f"projections.{s}.{t}.bias"] for f in tokens] for t in (0, 1)]
        for s, tokens in enumerate(scales)
    ]
    across = [[attended(w, f"cross_task.{s}.{t}", f[t], f[1 - t]) for t in (0, 1)] for s, f in enumerate(own)]
    logits = []
    for t in (0, 1):
        last = across[-1][t]
        if network.scales == 2:
            last = attended(w, f"cross_scale.{t}", last, across[0][t])
        logits.append(w[f"heads.{t}.output.weight"] @ (sum(last) / 2) + w[f"heads.{t}.output.bias"])
    return logits


@pytest.mark.parametrize("scales", [1, 2])
def test_two_tasks_at_two_scales_by_hand(scales: int) -> None:
    torch.manual_seed(0)
    network = CrossAttention(
        tasks=PAIR, backbone=BackboneFactory(Strip, 4), head=SameKind(Linear), width=3, scales=scales
    ).eval()
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(2).add_(0.1)
    image = torch.randn(5, 2, 1, 4)
    outputs = network(image).outputs
    for b in range(5):
        expected = by_loops(network, image[b, :, 0].T.double().numpy())
        for name, logits in zip(PAIR.names, expected, strict=True):
            np.testing.assert_allclose(outputs[name][b].detach().numpy(), logits, rtol=1e-4, atol=1e-5)


def test_three_tasks_attend_to_both_others_and_not_to_themselves() -> None:
    network = small(CARS).eval()
    tokens = torch.randn(2, 5, 32)
    own = [p(tokens) for p in network.projections[0]]
    after = network._exchange(0, tokens)
    for t, others in ((0, (1, 2)), (1, (0, 2)), (2, (0, 1))):
        attend = network.cross_task[0][t]
        torch.testing.assert_close(after[t], attend(own[t], torch.cat([own[u] for u in others], 1)))


def test_with_nothing_to_say_to_one_another_they_are_parallel_heads() -> None:
    network = small().eval()
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, Attention):
                module.value.weight.zero_()
    f = network.backbone(image)[-1].mean((2, 3))
    for t, value in enumerate(network(image).outputs.values()):
        torch.testing.assert_close(value, network.heads[t](network.projections[-1][t](f)))


def test_permuting_what_asks_permutes_and_permuting_what_is_asked_does_not_matter() -> None:
    torch.manual_seed(0)
    attend, x, y, order = Attention(8), torch.randn(2, 6, 8), torch.randn(2, 6, 8), torch.randperm(6)
    torch.testing.assert_close(attend(x[:, order], y), attend(x, y)[:, order])
    torch.testing.assert_close(attend(x, y[:, order]), attend(x, y))


def test_each_task_reads_only_its_own_other_scales() -> None:
    network = small(scales=3).eval()
    image = torch.randn(2, 3, 32, 32)
    before = network(image).outputs
    with torch.no_grad():
        network.cross_scale[0].value.weight.mul_(2)
        network.cross_task[0][0].value.weight.mul_(2)
    after = network(image).outputs
    assert torch.equal(after["model"], before["model"])
    assert not torch.allclose(after["make"], before["make"])


def test_one_scale_has_no_cross_scale_part_and_each_further_one_costs_what_is_said() -> None:
    assert not any("cross_scale" in n for n in small(scales=1).state_dict())
    trunk = cost(build("parallel", PAIR), 32)["forward_gmacs"] * 1e9 - 5 * 64
    d = 16
    for scales in (1, 2, 3):
        expected = trunk + 5 * d
        for n, c in ((4, 64), (16, 32), (64, 24))[:scales]:
            expected += 2 * (n * c * d + 3 * n * d * d) + 2 * 2 * (2 - 1) * n**2 * d
        if scales > 1:
            m = sum((16, 64)[: scales - 1])
            expected += 2 * ((4 + 2 * m) * d * d + 2 * 4 * m * d)
        assert cost(small(scales=scales), 32)["forward_gmacs"] * 1e9 == pytest.approx(expected)


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"scales": 0}, r"architecture.scales should be a whole number from 1 to 4 \(the trunk has 4 .* Found 0"),
        ({"scales": 5}, "architecture.scales should be a whole number from 1 to 4"),
        ({"scales": 1.0}, "architecture.scales"),
        ({"width": 0}, "architecture.width should be a whole number of at least 1. Found 0"),
    ],
)
def test_impossible_options_are_refused(changes: dict, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        small(**changes)


def test_maps_of_one_position_are_refused_where_they_would_be_idle() -> None:
    with pytest.raises(UserError, match=r"more than one position.*data.image_size"):
        small(size=16)(torch.randn(2, 3, 16, 16))
    assert sum(losses(small(CARS, size=16, scales=1), torch.randn(2, 3, 16, 16))).isfinite()
