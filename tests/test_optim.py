"""Optimizers and schedules: groups, rates, and the yaml files that build them."""

import io
import itertools
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

import mtlcar.optim as optim
from mtlcar.backbones.base import StagedBackbone
from mtlcar.errors import UserError

CONF = Path(__file__).parents[1] / "conf"
OPTIMIZERS = sorted(p.stem for p in (CONF / "optimizer").glob("*.yaml"))
SCHEDULERS = sorted(p.stem for p in (CONF / "scheduler").glob("*.yaml"))


class Trunk(StagedBackbone):
    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)),
                nn.Sequential(nn.Conv2d(4, 6, 3), nn.GELU()),
                nn.Sequential(nn.Conv2d(6, 8, 1)),
            ]
        )
        self.channels = (4, 6, 8)
        self.scale = nn.Parameter(torch.ones(8, 1, 1))
        self.norm = nn.LayerNorm(8)

    def pool(self, feature_map: Tensor) -> Tensor:
        return self.norm((feature_map * self.scale).mean((2, 3)))


class Net(nn.Module):
    def __init__(self, trunks: int = 1) -> None:
        super().__init__()
        self.trunks = nn.ModuleList(Trunk() for _ in range(trunks))
        self.head = nn.Linear(8, 5)
        self.value = nn.Linear(8, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.stack([t.pool(t(image)[-1]) for t in self.trunks]).mean(0)
        return self.head(x).square().mean() + self.value(x).square().mean()


class Uncertainty(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.s = nn.Parameter(torch.zeros(2))


def node(group: str, name: str, **changes: Any) -> Any:
    config = OmegaConf.load(CONF / group / f"{name}.yaml")
    OmegaConf.set_struct(config, True)
    for key, value in changes.items():
        OmegaConf.update(config, key, value)
    return config


def build(name: str = "adamw", net: nn.Module | None = None, **changes: Any) -> torch.optim.Optimizer:
    return instantiate(node("optimizer", name, **changes))(net or Net(), Uncertainty())


def schedule(name: str, optimizer: torch.optim.Optimizer, total: int, per_epoch: int = 5, **changes: Any) -> Any:
    make = instantiate(node("scheduler", name, **changes), _partial_=True)
    return make(optimizer=optimizer, total_steps=total, steps_per_epoch=per_epoch, monitor="val/make/accuracy")


def rates(scheduler: Any, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def by_name(optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    assert len({g["name"] for g in optimizer.param_groups}) == len(optimizer.param_groups)
    return {g["name"]: g for g in optimizer.param_groups}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_yaml_trains_a_network_and_its_weighting(name: str) -> None:
    torch.manual_seed(0)
    net, weighting = Net(), Uncertainty()
    optimizer = instantiate(node("optimizer", name, lr=1e-3))(net, weighting)
    parameters = [*net.parameters(), *weighting.parameters()]
    grouped = [p for g in optimizer.param_groups for p in g["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in parameters}
    assert len(grouped) == len(parameters)
    image = torch.randn(2, 3, 8, 8)
    before = net(image).item()
    for _ in range(5):
        optimizer.zero_grad()
        (net(image) + weighting.s.sum()).backward()
        optimizer.step()
    assert net(image).item() < before
    assert weighting.s.max() < 0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_and_schedule_state_are_plain_and_load_with_weights_only(name: str) -> None:
    optimizer = build(name)
    states: list[Any] = [optimizer.state_dict()]
    for scheduler in SCHEDULERS:
        made = schedule(scheduler, optimizer, 10)
        states += [made["scheduler"].state_dict()] if made else []
    buffer = io.BytesIO()
    torch.save(states, buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True)[0]["param_groups"][-1]["name"] == "weighting"


def test_norm_scales_biases_and_the_weighting_are_not_decayed() -> None:
    net = Net()
    groups = by_name(build(net=net, weight_decay=0.1))
    trunk = net.trunks[0]
    spared = {id(p) for n in ("backbone.no_decay", "heads.no_decay", "weighting") for p in groups[n]["params"]}
    assert all(groups[n]["weight_decay"] == 0 for n in ("backbone.no_decay", "heads.no_decay", "weighting"))
    assert all(groups[n]["weight_decay"] == 0.1 for n in ("backbone", "heads"))
    for p in (trunk.scale, trunk.norm.weight, trunk.norm.bias, trunk.stages[0][1].weight, net.head.bias):
        assert id(p) in spared
    # The one row of a regression head is a weight matrix like any other.
    for p in (trunk.stages[0][0].weight, net.head.weight, net.value.weight):
        assert id(p) not in spared


def test_decay_norm_bias_decays_every_network_parameter() -> None:
    groups = by_name(build(weight_decay=0.1, decay_norm_bias=True))
    assert {n: g["weight_decay"] for n, g in groups.items()} == {"backbone": 0.1, "heads": 0.1, "weighting": 0.0}


@pytest.mark.parametrize("trunks", [1, 2])
def test_layer_decay_falls_geometrically_towards_the_image_in_every_backbone(trunks: int) -> None:
    net = Net(trunks)
    groups = by_name(build(net=net, lr=1.0, layer_decay=0.5, head_lr_factor=3.0))
    lr = {id(p): g["lr"] for g in groups.values() for p in g["params"]}
    for trunk in net.trunks:
        assert [lr[id(stage[0].weight)] for stage in trunk.stages] == [0.125, 0.25, 0.5]
        assert lr[id(trunk.norm.weight)] == 0.5
    assert lr[id(net.head.weight)] == lr[id(net.head.bias)] == 3.0
    assert groups["weighting"]["lr"] == 1.0


def test_frozen_parameters_are_left_out_and_a_frozen_network_is_refused() -> None:
    net = Net()
    net.trunks.requires_grad_(False)
    optimizer = build(net=net)
    assert set(by_name(optimizer)) == {"heads", "heads.no_decay", "weighting"}
    net.requires_grad_(False)
    with pytest.raises(UserError, match="frozen"):
        build(net=net)


def test_a_parameter_used_twice_is_trained_once() -> None:
    net = Net()
    net.again = net.head  # type: ignore[assignment]
    grouped = [id(p) for g in build(net=net).param_groups for p in g["params"]]
    assert len(grouped) == len(set(grouped))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fused_and_plain_kernels_take_the_same_steps(name: str) -> None:
    nets = []
    for fused in (None, False):
        torch.manual_seed(1)
        net = Net().eval()  # batch statistics of so small a batch would leave gradients of rounding noise
        optimizer = build(name, net=net, fused=fused)
        assert bool(optimizer.defaults["fused"]) is (fused is None)
        for _ in range(3):
            optimizer.zero_grad()
            net(torch.randn(2, 3, 8, 8)).backward()
            optimizer.step()
        nets.append(net)
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_fused_optimizer_lets_lightning_clip_under_fp16() -> None:
    from lightning.fabric.plugins.precision.amp import _optimizer_handles_unscaling

    assert not _optimizer_handles_unscaling(build())


def test_an_optimizer_without_a_fused_kernel_is_used_as_it_is() -> None:
    assert isinstance(build(**{"optimizer._target_": "torch.optim.RAdam"}), torch.optim.RAdam)
    with pytest.raises(UserError, match="fused"):
        build(fused=True, **{"optimizer._target_": "torch.optim.RAdam"})


@pytest.mark.parametrize(
    ("key", "value"),
    [("lr", 0.0), ("lr", float("nan")), ("weight_decay", -1.0), ("layer_decay", 1.5), ("head_lr_factor", 0.0)],
)
def test_impossible_optimizer_values_are_refused_by_their_key(key: str, value: float) -> None:
    with pytest.raises(UserError, match=f"optimizer.{key}"):
        build(**{key: value})


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("total", [1, 2, 3, 4, 10])
def test_every_schedule_runs_to_its_last_step_and_one_beyond(name: str, total: int) -> None:
    optimizer = build(lr=0.1)
    made = schedule(name, optimizer, total)
    if name == "constant":
        assert made is None
        return
    assert made["interval"] in ("step", "epoch")
    if name == "plateau":
        return
    found = rates(made["scheduler"], optimizer, total + 2)
    assert all(0 <= r <= 0.1 + 1e-9 for r in found)
    assert max(found[:total]) > 0.05  # a run of one step still learns


@pytest.mark.parametrize("pct_start", [0.0, 0.1, 0.25, 0.5, 1.0])
def test_one_cycle_survives_a_warm_up_of_one_step(pct_start: float) -> None:
    for total in (4, 10):
        optimizer = build(lr=0.1)
        made = schedule("onecycle", optimizer, total, pct_start=pct_start)
        found = rates(made["scheduler"], optimizer, total)
        assert 0.08 < max(found) <= 0.1 + 1e-9
        assert found.index(max(found)) <= pct_start * total


def test_one_cycle_is_torchs_rule() -> None:
    optimizer = build(lr=3e-4)
    made = schedule("onecycle", optimizer, 97, max_lr=1e-3)
    twin = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=3e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the twin takes no optimizer steps
        expected = OneCycleLR(twin, max_lr=1e-3, total_steps=97)
        for _ in range(97):
            assert optimizer.param_groups[0]["lr"] == twin.param_groups[0]["lr"]
            assert optimizer.param_groups[0]["betas"] == twin.param_groups[0]["betas"]
            optimizer.step()
            made["scheduler"].step()
            expected.step()


def test_one_cycles_maximum_is_each_groups_own_rate_and_keeps_their_ratios() -> None:
    for max_lr, top in ((None, 0.2), (1.0, 1.0)):
        optimizer = build(lr=0.2, layer_decay=0.5, head_lr_factor=2.0)
        schedule("onecycle", optimizer, 50, max_lr=max_lr)
        found = {g["name"]: g["max_lr"] for g in optimizer.param_groups}
        expected = {"backbone.0": 0.125, "backbone.1": 0.25, "backbone.2": 0.5, "heads": 2.0, "weighting": 1.0}
        assert {n: found[n] for n in expected} == pytest.approx({n: top * f for n, f in expected.items()})


def test_cosine_warms_up_linearly_peaks_at_the_rate_and_ends_at_the_floor() -> None:
    optimizer = build(lr=1.0)
    made = schedule("cosine", optimizer, 20, warmup_fraction=0.2, min_factor=0.1)
    found = rates(made["scheduler"], optimizer, 21)
    assert found[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert found[12] == pytest.approx(0.55)
    assert found[20] == pytest.approx(0.1)
    assert all(a > b for a, b in itertools.pairwise(found[4:]))


def test_cosine_counts_its_warm_up_in_epochs_when_asked() -> None:
    optimizer = build(lr=1.0)
    made = schedule("cosine", optimizer, 20, per_epoch=5, warmup_epochs=1.0)
    assert rates(made["scheduler"], optimizer, 6)[4:] == pytest.approx([5 / 6, 1.0])


@pytest.mark.parametrize(("monitor", "mode"), [("val/loss", "min"), ("val/w/mape", "min"), ("val/make/top5", "max")])
def test_plateau_watches_its_monitor_in_the_right_direction(monitor: str, mode: str) -> None:
    optimizer = build(lr=1.0)
    make = instantiate(node("scheduler", "plateau"), _partial_=True)
    made = make(optimizer=optimizer, total_steps=100, steps_per_epoch=10, monitor=monitor)
    assert (made["monitor"], made["interval"], made["scheduler"].mode) == (monitor, "epoch", mode)
    better = -1 if mode == "min" else 1
    for epoch in range(5):
        made["scheduler"].step(10.0 + better * epoch)
    assert optimizer.param_groups[0]["lr"] == 1.0
    for _ in range(6):
        made["scheduler"].step(10.0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


@pytest.mark.parametrize("name", ["onecycle", "cosine"])
def test_a_resumed_schedule_goes_on_as_if_it_had_not_stopped(name: str) -> None:
    whole = build(lr=0.1, layer_decay=0.7)
    expected = rates(schedule(name, whole, 30)["scheduler"], whole, 30)
    first = build(lr=0.1, layer_decay=0.7)
    scheduler = schedule(name, first, 30)["scheduler"]
    head = rates(scheduler, first, 12)
    second = build(lr=0.1, layer_decay=0.7)
    resumed = schedule(name, second, 30)["scheduler"]
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(scheduler.state_dict())
    assert head + rates(resumed, second, 18) == expected


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("onecycle", {"max_lr": 0.0}),
        ("onecycle", {"pct_start": 2.0}),
        ("cosine", {"warmup_fraction": -0.1}),
        ("cosine", {"warmup_epochs": -1.0}),
        ("plateau", {"factor": 1.0}),
    ],
)
def test_impossible_schedule_values_are_refused_by_their_key(name: str, changes: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"scheduler.{next(iter(changes))}"):
        schedule(name, build(), 10, **changes)


@pytest.mark.parametrize("group", ["optimizer", "scheduler", "loss"])
def test_yaml_names_itself_describes_itself_and_stands_alone(group: str) -> None:
    for path in sorted((CONF / group).glob("*.yaml")):
        config = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
        assert isinstance(config, dict)
        assert config["name"] == path.stem
        assert "defaults" not in config
        assert path.read_text().startswith("# ")
        numbers = [v for k, v in config.items() if k in ("lr", "weight_decay", "final_div_factor")]
        assert all(isinstance(v, float) and math.isfinite(v) for v in numbers)


def test_lower_is_better_for_losses_and_errors_only() -> None:
    assert [m for m in ("val/loss", "val/w/mae", "val/w/r2", "val/make/accuracy") if optim.lower_is_better(m)] == [
        "val/loss",
        "val/w/mae",
    ]
