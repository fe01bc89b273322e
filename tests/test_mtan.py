"""MTAN: masks by hand, what they see, who reaches what, and LibMTL's network where it is the same one."""

import copy
from collections import Counter

import pytest
import torch
from hydra.utils import instantiate
from torch import nn
from torch.nn import functional

from mtlcar.architectures.mtan import MTAN, PassedOn, pooled_to
from mtlcar.backbones.cut import Stage, with_last_input
from mtlcar.errors import UserError
from mtlcar.tasks import TaskSet
from tests.networks import (
    CARS,
    IMAGE,
    MAKE,
    PAIR,
    assert_shared_is_what_two_losses_reach_and_none_is_idle,
    build,
    libmtl,
    losses,
    node,
    resnet,
)


def attention(tasks: TaskSet = CARS, **options: object) -> MTAN:
    network = build("mtan", tasks, **options)  # type: ignore[arg-type]
    assert isinstance(network, MTAN)
    return network


@pytest.mark.parametrize("options", [{"reduction": 4}, {"frozen": 2}, {"frozen": 4}])
def test_shared_parameters_are_those_that_two_losses_reach_and_none_is_idle(options: dict) -> None:
    assert_shared_is_what_two_losses_reach_and_none_is_idle(attention(head="mixed", **options))


@pytest.mark.parametrize(("tasks", "head"), [(PAIR, "linear"), (PAIR, "mixed"), (CARS, "mixed"), (PAIR, "conv")])
def test_the_pooling_is_shared_where_two_heads_take_its_vector(tasks: TaskSet, head: str) -> None:
    with torch.device("meta"):
        network = attention(tasks, backbone="convnext_tiny", head=head, size=64)
    vectors = sum(h.takes == "vector" for h in network.heads)
    shared = {id(p) for p in network.shared_parameters()}
    for p in network.backbone.pooling.parameters():
        assert (id(p) in shared, p.requires_grad) == (vectors > 1, vectors > 0)


# --- the definition ---------------------------------------------------------------------------------------------------


def test_a_mask_by_hand() -> None:
    """One stage of one channel in evaluation: m = sigmoid(w' ReLU(w u)), where BatchNorm has nothing to do."""
    network = attention(PAIR).eval()
    mask = network.masks[0][1]
    with torch.no_grad():
        for norm in (mask[1], mask[4]):
            norm.eps = 0.0
        mask[0].weight.zero_()
        mask[0].weight[0, 0] = 2.0
        mask[3].weight.zero_()
        mask[3].weight[:, 0] = torch.linspace(-1, 1, 16).view(-1, 1, 1)
    u = torch.full((1, 16, 1, 1), 0.5)
    torch.testing.assert_close(mask(u).flatten(), torch.sigmoid(torch.linspace(-1, 1, 16)))
    torch.testing.assert_close(mask(-u).flatten(), torch.full((16,), 0.5))


@pytest.mark.parametrize(("backbone", "head"), [("tiny", "linear"), ("tiny", "conv"), ("vit_tiny", "linear")])
def test_outputs_are_the_definitions(backbone: str, head: str) -> None:
    network = attention(backbone=backbone, head=head).eval()
    for name, value in network(IMAGE).outputs.items():
        t = network.tasks.names.index(name)
        x, a = IMAGE, None
        for k, stage in enumerate(network.backbone.stages):
            u = stage[0](x) if backbone == "tiny" or k == 0 else x  # vit_tiny: embedding and block, then a block each
            p = stage(x)
            if a is not None:
                f = network.passed[k - 1](a)
                u = torch.cat([u, functional.max_pool2d(f, 2) if backbone == "tiny" else f], 1)
            a = network.masks[k][t](u) * p
            x = p
        z = a if head == "conv" else network.backbone.pool(a)
        raw = network.heads[t](z)
        torch.testing.assert_close(value, raw if network.tasks[name].classes else raw[:, 0])


def test_the_loss_of_a_task_leaves_the_masks_of_the_others_alone() -> None:
    network = attention().train()
    losses(network, IMAGE)[1].backward()
    for masks in network.masks:
        reached = [all(p.grad is not None and p.grad.any() for p in mask.parameters()) for mask in masks]
        assert reached == [False, True, False]
        assert all(p.grad is None or not p.grad.any() for mask in (masks[0], masks[2]) for p in mask.parameters())


def test_each_stage_runs_once() -> None:
    network = attention()
    assert network.backbone.training
    calls: list[int] = []
    for part in network.backbone.modules():
        if isinstance(part, nn.Conv2d):
            part.register_forward_hook(lambda m, *_: calls.append(id(m)))
    network(IMAGE)
    assert len(calls) == len(set(calls)) == 8
    assert {int(m.num_batches_tracked) for m in network.backbone.modules() if isinstance(m, nn.BatchNorm2d)} == {1}


def test_the_class_token_meets_the_middle_of_the_kernel_and_no_neighbour() -> None:
    torch.manual_seed(0)
    f = PassedOn(3, 5, class_row=True).eval()
    x = torch.randn(2, 3, 5, 4)
    y = f(x)
    x[:, :, 1:] += 1
    torch.testing.assert_close(f(x)[:, :, 0], y[:, :, 0])
    x[:, :, 1:] -= 1
    x[:, :, 0] += 1
    torch.testing.assert_close(f(x)[:, :, 1:], y[:, :, 1:])
    x[:, :, :1] = torch.randn(2, 3, 1, 1)
    middle = nn.functional.conv2d(x[:, :, :1, :1], f.convolution.weight, padding=1)
    torch.testing.assert_close(f(x)[:, :, :1], functional.relu(f.norm(middle)).expand(-1, -1, -1, 4))


@pytest.mark.parametrize(("n", "m"), [(56, 28), (7, 4), (7, 3), (3, 2), (3, 1), (2, 1), (9, 5), (13, 3), (11, 3)])
def test_maps_are_pooled_to_any_size_that_strides_give(n: int, m: int) -> None:
    x = torch.arange(float(n * n)).view(1, 1, n, n)
    y = pooled_to(x, torch.empty(1, 1, m, m))
    assert y.shape == (1, 1, m, m)
    if n == 2 * m:
        assert torch.equal(y, functional.max_pool2d(x, 2, 2))
    assert pooled_to(x, x) is x


# --- the map before the last block ------------------------------------------------------------------------------------

SIZES = {"resnet18": 64, "densenet121": 32, "efficientnet_lite0": 64, "swin_t": 32, "vit_tiny": 32, "tiny": 32}


@pytest.mark.parametrize("backbone", SIZES)
def test_the_map_before_the_last_block_is_what_that_block_takes(backbone: str) -> None:
    network = instantiate(node("backbone", backbone), image_size=SIZES[backbone]).eval()
    x = torch.randn(2, 3, SIZES[backbone], SIZES[backbone])
    for stage in network.stages:
        blocks = [b for b in stage if any(p.ndim > 1 for p in b.parameters())]
        expected = x
        if len(blocks) > 1:
            for block in list(stage)[: list(stage).index(blocks[-1])]:
                expected = block(expected)
        with torch.no_grad():
            u, y = with_last_input(stage, x)
            torch.testing.assert_close(u, expected)
            torch.testing.assert_close(y, stage(x))
        x = y
    for stage in (nn.ReLU(), Stage(nn.ReLU())):
        u, y = with_last_input(stage, -x.abs())
        assert (u.equal(-x.abs()), bool(y.any())) == (True, False)


@pytest.mark.parametrize("backbone", ["tiny", "vit_tiny"])
def test_checkpointing_changes_no_gradient_and_no_statistic(backbone: str) -> None:
    plain = attention(backbone=backbone).train()
    saving = copy.deepcopy(plain)
    calls: list[int] = []
    for stage in saving.backbone.stages:
        stage.checkpointing = True
        stage[0].register_forward_pre_hook(lambda m, _: calls.append(id(m)))
    for network in (plain, saving):
        for loss in losses(network, IMAGE):
            loss.backward(retain_graph=True)
    assert [calls.count(id(stage[0])) > 1 for stage in saving.backbone.stages] == [True] * 4  # recomputed
    for (name, p), q in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, msg=name)
    for (name, p), q in zip(plain.named_buffers(), saving.buffers(), strict=True):
        torch.testing.assert_close(q, p, msg=name)


@pytest.mark.parametrize(
    "backbone", ["densenet121", "efficientnet_b0", "swin_t", "convnext_tiny", "vit_b_16", "resnet50"]
)
def test_every_family_builds_and_runs_on_the_meta_device(backbone: str) -> None:
    with torch.device("meta"):
        network = attention(backbone=backbone, size=224, reduction=4)
        outputs = network(torch.randn(2, 3, 224, 224)).outputs
    assert outputs["model"].shape == (2, 3)


# --- LibMTL -----------------------------------------------------------------------------------------------------------


def test_libmtls_network_with_our_f_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own f is a residual block; its idle biases are 0."""
    theirs_of = libmtl("MTAN")._transform_resnet_MTAN
    monkeypatch.setattr(theirs_of, "_conv_layer", lambda *_: nn.Identity())  # replaced below
    network = attention(PAIR, backbone="resnet18", head="conv", size=64)
    for m in network.modules():  # so that BatchNorm does something in evaluation
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.uniform_(-0.2, 0.2)
            m.running_var.uniform_(0.5, 2)
    theirs = theirs_of(resnet(network.backbone.stages), list(PAIR.names), "cpu")
    theirs.encoder_block_att = network.passed
    for k, masks in enumerate(network.masks):
        for t, mask in enumerate(masks):
            copied = theirs.encoder_att[str(k)][t]
            missing, unexpected = copied.load_state_dict(mask.state_dict(), strict=False)
            assert (missing, unexpected) == (["0.bias", "3.bias"], [])
            nn.init.zeros_(copied[0].bias)
            nn.init.zeros_(copied[3].bias)
    image = torch.randn(2, 3, 64, 64)
    representations = torch.cat(network.eval()(image).representations)
    torch.testing.assert_close(representations, torch.cat(theirs.eval()(image)), rtol=1e-5, atol=1e-5)
    assert representations.std() > 0.1


# --- the whole --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "tasks", "says"),
    [
        ({}, TaskSet((MAKE,)), "architecture=single"),
        ({"reduction": 0}, PAIR, r"architecture.reduction should be a whole number from 1 to 16 .* Found 0"),
        ({"reduction": 17}, PAIR, "Found 17"),
        ({"reduction": True}, PAIR, "Found True"),
    ],
)
def test_impossible_options_are_refused(options: dict, tasks: TaskSet, says: str) -> None:
    with pytest.raises(UserError, match=says):
        attention(tasks, **options)


def test_stages_masks_and_f_are_what_is_compiled() -> None:
    network = attention()
    found = Counter(type(part) for part in network.compiled_parts())
    assert found == {Stage: 4, nn.Sequential: 3 * 4, PassedOn: 3}
