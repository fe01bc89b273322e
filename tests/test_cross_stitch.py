"""Cross-stitch: what is mixed, where it starts, who reaches what, and LibMTL's network where it is the same one."""

import pytest
import torch
from torch import Tensor, nn

from mtlcar.architectures.cross_stitch import CrossStitch, Stitch
from mtlcar.backbones.cut import Stage
from mtlcar.errors import UserError
from mtlcar.optim import parameter_groups
from mtlcar.tasks import TaskSet
from tests.networks import (
    CARS,
    IMAGE,
    MAKE,
    PAIR,
    assert_compiled_parts_are_called_as_modules,
    assert_shared_is_what_two_losses_reach_and_none_is_idle,
    build,
    libmtl,
    losses,
    resnet,
)


def stitched(tasks: TaskSet = CARS, **options: object) -> CrossStitch:
    network = build("cross_stitch", tasks, **options)  # type: ignore[arg-type]
    assert isinstance(network, CrossStitch)
    return network


def by_hand(network: CrossStitch, image: Tensor) -> dict[str, Tensor]:
    """The definition, task by task, for heads that take vectors."""
    n = len(network.tasks)
    maps = [network.backbone.through(image, 0, network.share_until)] * n
    for k, stitch in enumerate(network.stitches, start=network.share_until):
        x = torch.stack([trunk.stage(k)(m) for trunk, m in zip(network.trunks, maps, strict=True)])
        a = torch.stack(list(stitch.rows)).view(n, n, -1).expand(-1, -1, x.shape[2])
        maps = list(torch.einsum("tuc,ubchw->tbchw", a, x))
    pooled = [trunk.pool(m) for trunk, m in zip(network.trunks, maps, strict=True)]
    raw = [head(x) for head, x in zip(network.heads, pooled, strict=True)]
    return {t.name: y if t.classes else y[:, 0] for t, y in zip(network.tasks, raw, strict=True)}


def shuffled(network: CrossStitch) -> CrossStitch:
    """With stitches of no pattern, so that no two of them can be exchanged unnoticed."""
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for stitch in network.stitches:
            for row in stitch.rows:
                row.copy_(torch.randn(row.shape, generator=g))
    return network


@pytest.mark.parametrize(
    ("backbone", "options"),
    [
        ("tiny", {"share_until": 2, "per_channel": False, "own": 1.0}),
        ("tiny", {"share_until": 3}),
        ("tiny", {"frozen": 2}),
        ("tiny", {"frozen": 2, "share_until": 1}),
        ("tiny", {"frozen": 4}),
        ("vit_tiny", {"share_until": 1}),
    ],
)
def test_shared_parameters_are_those_that_two_losses_reach_and_none_is_idle(backbone: str, options: dict) -> None:
    assert_shared_is_what_two_losses_reach_and_none_is_idle(stitched(head="mixed", backbone=backbone, **options))


def test_each_pooling_belongs_to_its_task_and_freezes_where_the_head_takes_the_map() -> None:
    with torch.device("meta"):
        network = stitched(backbone="convnext_tiny", head="mixed", size=64)
    frozen = {n for n, p in network.named_parameters() if not p.requires_grad}
    assert frozen == {"others.1.pooling.1.weight", "others.1.pooling.1.bias"}  # weight's head is conv
    shared = {id(p) for p in network.shared_parameters()}
    assert not any(id(p) in shared for trunk in network.trunks for p in trunk.pooling.parameters())


# --- the stitch -------------------------------------------------------------------------------------------------------


def test_a_stitch_by_hand() -> None:
    stitch = Stitch(2, 2, own=0.9)
    with torch.no_grad():
        stitch.rows[0].copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))  # of task 0: two channels of map 0, two of map 1
        stitch.rows[1].copy_(torch.tensor([0.5, 0.0, -1.0, 1.0]))
    maps = [torch.tensor([1.0, 10.0]).view(1, 2, 1, 1), torch.tensor([100.0, 1000.0]).view(1, 2, 1, 1)]
    first, second = (y.flatten().tolist() for y in stitch(maps))
    assert first == [301.0, 4020.0]
    assert second == [-99.5, 1000.0]


@pytest.mark.parametrize(("per_channel", "width"), [(True, 16), (False, 1)])
def test_stitches_start_at_own_and_share_the_rest(per_channel: bool, width: int) -> None:
    for stitch in stitched(per_channel=per_channel).stitches[:1]:
        a = torch.stack(list(stitch.rows)).view(3, 3, width)
        torch.testing.assert_close(a[..., 0], torch.full((3, 3), 0.05) + 0.85 * torch.eye(3))
        assert torch.equal(a, a[..., :1].expand_as(a))
    assert stitched(own=0.25).stitches[0].rows[1].view(3, -1)[:, 0].tolist() == [0.375, 0.25, 0.375]


@pytest.mark.parametrize("backbone", ["tiny", "vit_tiny"])
@pytest.mark.parametrize("options", [{}, {"per_channel": False}, {"share_until": 2}])
def test_outputs_are_the_definitions(backbone: str, options: dict) -> None:
    network = shuffled(stitched(backbone=backbone, **options)).eval()
    for t, trunk in enumerate(network.trunks):  # each task's own trunk pools
        norm = nn.LayerNorm(trunk.features)
        nn.init.constant_(norm.weight, t + 1.0)
        trunk.pooling = nn.Sequential(trunk.pooling, norm)
    expected = by_hand(network, IMAGE)
    for name, value in network(IMAGE).outputs.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-4)


def test_the_last_stitch_is_used_too_and_its_rows_are_their_tasks_own() -> None:
    network = shuffled(stitched()).eval()
    before = network(IMAGE).outputs
    with torch.no_grad():
        network.stitches[-1].rows[1][:64] += 1  # task 1 sees more of trunk 0
    after = network(IMAGE).outputs
    assert [torch.equal(before[n], after[n]) for n in network.tasks.names] == [True, False, True]


def test_the_first_stages_can_be_common() -> None:
    whole, network = stitched(), stitched(share_until=2)
    first = sum(p.numel() for k in (0, 1) for p in whole.backbone.stage(k).parameters())
    units = 9 * (16 + 24)
    assert sum(p.numel() for p in whole.parameters()) - sum(p.numel() for p in network.parameters()) == (
        2 * first + units
    )
    assert len(network.stitches) == 2


def test_changes_in_place_reach_no_other_trunk() -> None:
    class Doubled(nn.Module):
        def __init__(self, stage: nn.Module, in_place: bool) -> None:
            super().__init__()
            self.stage, self.in_place = stage, in_place

        def forward(self, x: Tensor) -> Tensor:
            return self.stage(x.mul_(2) if self.in_place else x * 2)

    outputs = []
    for in_place in (False, True):
        network = shuffled(stitched()).eval()
        for trunk in network.trunks:
            for k in (1, 2, 3):
                trunk.stages[k] = Doubled(trunk.stages[k], in_place)
        losses(network, IMAGE)[0].backward()
        outputs.append([*network(IMAGE).outputs.values(), network.stitches[0].rows[0].grad])
    for a, b in zip(*outputs, strict=True):
        torch.testing.assert_close(a, b)


def test_under_bfloat16_stitches_stay_float32_and_maps_do_not_grow() -> None:
    stitch, x = Stitch(2, 1, own=0.9), [torch.full((1, 1, 1, 1), 100.0, dtype=torch.bfloat16)] * 2
    with torch.no_grad():
        stitch.rows[0].copy_(torch.tensor([1.003, -1.0]))  # 1.0 in bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        y = stitch(x)[0]
        loss = losses(stitched(), IMAGE)[0]
    assert y.dtype == torch.bfloat16
    assert y.item() == pytest.approx(0.3, rel=0.01)
    assert stitch.rows[0].dtype == torch.float32
    assert loss.isfinite()


def test_stitches_are_not_decayed() -> None:
    network = stitched()
    rows = {id(p) for p in network.stitches.parameters()}
    for group in parameter_groups(network, lr=0.1, weight_decay=0.5):
        if any(id(p) in rows for p in group["params"]):
            assert group["weight_decay"] == 0


@pytest.mark.parametrize(
    ("options", "tasks", "says"),
    [
        ({}, TaskSet((MAKE,)), "architecture=single"),
        ({"own": 1.5}, PAIR, r"architecture.own should be a number of at least 0 and at most 1. Found 1.5"),
        ({"own": True}, PAIR, "architecture.own"),
        ({"per_channel": "yes"}, PAIR, "architecture.per_channel should be true or false"),
        ({"share_until": 4}, PAIR, "architecture.share_until should be a whole number from 0 to 3"),
    ],
)
def test_impossible_options_are_refused(options: dict, tasks: TaskSet, says: str) -> None:
    with pytest.raises(UserError, match=says):
        stitched(tasks, **options)


# --- LibMTL -----------------------------------------------------------------------------------------------------------


def test_libmtls_network_is_a_special_case() -> None:
    """Where all tasks weigh the sources alike, by one number a map, and the last stitch leaves the maps alone."""
    peer = libmtl("Cross_stitch")
    network = stitched(PAIR, backbone="resnet18", per_channel=False, size=64).eval()
    weights = torch.tensor([[0.7, 0.2], [1.1, -0.4], [0.3, 0.6]])
    with torch.no_grad():
        for stitch, w in zip(network.stitches, [*weights, None], strict=True):
            for t, row in enumerate(stitch.rows):
                row.copy_(torch.eye(2)[t] if w is None else w)
    names = list(PAIR.names)
    resnets = [resnet(t.stages) for t in network.trunks]
    theirs = peer._transform_resnet_cross(resnets, names, "cpu").eval()
    theirs.cross_unit.data[:3] = weights
    image = torch.randn(2, 3, 64, 64)
    found = network(image).outputs
    for t, (name, last) in enumerate(zip(names, theirs(image), strict=True)):
        expected = network.heads[t](network.backbone.pool(last))
        torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-5)


# --- the whole --------------------------------------------------------------------------------------------------------


def test_the_stages_are_what_is_compiled() -> None:
    network = stitched(share_until=2)
    assert_compiled_parts_are_called_as_modules(network)
    assert {type(part) for part in network.compiled_parts()} == {Stage}
