"""Heads: shapes, the papers' layers, and dropout that reaches the layer."""

from pathlib import Path

import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import Tensor, nn

from mtlcar.errors import UserError
from mtlcar.heads.base import Head, SameKind
from mtlcar.heads.float32 import Float32Linear
from mtlcar.heads.per_task import PerTask
from mtlcar.tasks import Task

CONF = Path(__file__).parent.parent / "conf" / "head"

# name: (what it takes, layers before the last, default dropout)
TABLE = {"linear": ("vector", False, 0.0), "mlp": ("vector", True, 0.5), "conv": ("map", True, 0.5)}

CLASS = Task("class", "classification", classes=("p", "q", "r"))
HARDNESS = Task("hardness", "regression", unit="HV")


def build(name: str, inputs: int, outputs: int, extra: int = 0, **changes: object) -> Head:
    node = OmegaConf.merge(OmegaConf.load(CONF / f"{name}.yaml"), changes)
    return instantiate(node, _partial_=True)(inputs, outputs, extra_features=extra)


def taken(head: Head, batch: int, features: int, side: int = 4) -> Tensor:
    return torch.randn(batch, features) if head.takes == "vector" else torch.randn(batch, features, side, side)


def test_every_yaml_has_a_row_and_its_defaults_are_the_papers() -> None:
    assert sorted(p.stem for p in CONF.glob("*.yaml")) == sorted([*TABLE, "per_task"])
    for name, (takes, hidden, dropout) in TABLE.items():
        head = build(name, 8, 3)
        assert (head.takes, head.has_hidden, head.name) == (takes, hidden, name)
        assert next(m.p for m in head.modules() if isinstance(m, nn.Dropout)) == dropout


@pytest.mark.parametrize("name", TABLE)
@given(batch=st.integers(2, 4), features=st.integers(1, 9), outputs=st.integers(1, 6), extra=st.integers(0, 3))
@settings(max_examples=15, deadline=None)
def test_a_head_gives_one_row_an_image(name: str, batch: int, features: int, outputs: int, extra: int) -> None:
    head = build(name, features, outputs, extra, **({} if name == "linear" else {"hidden": 5}))
    x, p = taken(head, batch, features), torch.randn(batch, extra) if extra else None
    hidden = head.hidden(x, p)
    assert hidden.shape == (batch, head.output.in_features)
    assert head(x, p).shape == (batch, outputs)


@pytest.mark.parametrize("name", TABLE)
def test_the_configured_dropout_reaches_the_layer(name: str) -> None:
    torch.manual_seed(0)
    head = build(name, 16, 3, dropout=0.37).train()
    x = taken(head, 4, 16)
    assert {m.p for m in head.modules() if isinstance(m, nn.Dropout)} == {0.37}
    assert not torch.equal(head(x), head(x))
    assert torch.equal(head.eval()(x), head(x))
    without = build(name, 16, 3, dropout=0).train()
    assert torch.equal(without(x), without(x))


def test_a_linear_heads_dropout_zeroes_the_configured_share_of_features() -> None:
    torch.manual_seed(0)
    dropped = build("linear", 20_000, 1, dropout=0.25).input_dropout(torch.ones(1, 20_000))
    assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert dropped.max().item() == pytest.approx(1 / 0.75)


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("p", [-0.1, 1.0, 5])
def test_an_impossible_dropout_is_refused(name: str, p: float) -> None:
    with pytest.raises(UserError, match=r"head\.dropout"):
        build(name, 4, 2, dropout=p)


@pytest.mark.parametrize("name", TABLE)
def test_every_parameter_of_a_head_gets_a_gradient_and_extra_matters(name: str) -> None:
    torch.manual_seed(0)
    head = build(name, 6, 3, 2, dropout=0.0)
    x, p = taken(head, 5, 6), torch.randn(5, 2)
    head(x, p).square().sum().backward()
    assert all(q.grad is not None and q.grad.abs().sum() > 0 for q in head.parameters())
    assert not torch.allclose(head(x, p), head(x, -p))


def test_decoder_1_is_the_papers() -> None:
    head = build("mlp", 512, 1)
    assert [type(m).__name__ for m in head.layers] == ["Linear", "BatchNorm1d", "ReLU", "Dropout"]
    assert (head.layers[0].out_features, head.output.in_features) == (512, 512)


def test_decoder_2_halves_seven_to_four_to_two_and_doubles_the_channels() -> None:
    head = build("conv", 8, 1).eval()
    x = torch.randn(1, 8, 7, 7)
    shapes = []
    for layer in head.blocks:
        x = layer(x)
        if isinstance(layer, nn.ReLU):
            shapes.append(tuple(x.shape[1:]))
    assert shapes == [(16, 4, 4), (32, 2, 2)]
    assert sum(isinstance(m, nn.Linear) for m in head.modules()) == 3


def test_a_map_without_extent_is_refused_with_a_way_out() -> None:
    head = build("conv", 8, 1).eval()
    head(torch.randn(1, 8, 2, 2))
    with pytest.raises(UserError, match="head=mlp"):
        head(torch.randn(1, 8, 1, 1))


# --- the last layer of a regression -----------------------------------------------------------------------------------


def of_task(task: Task, name: str, **more: int) -> Head:
    torch.manual_seed(0)
    small = {} if name == "linear" else {"hidden": 6}
    make = instantiate(OmegaConf.merge(OmegaConf.load(CONF / f"{name}.yaml"), small), _partial_=True)
    return SameKind(make)(task, 8, **more).eval()


@pytest.mark.parametrize("name", TABLE)
def test_a_values_head_is_float32_under_autocast_and_a_classs_is_not(name: str) -> None:
    with torch.no_grad():
        for task, dtype in ((HARDNESS, torch.float32), (CLASS, torch.bfloat16)):
            head = of_task(task, name)
            x = taken(head, 64, 8)
            with torch.autocast("cpu", torch.bfloat16):
                hidden = head.hidden(head.input_dropout(x)).bfloat16()
                found = head.output(hidden)
                assert head(x).dtype == dtype
            assert found.dtype == dtype
            by_hand = hidden.float() @ head.output.weight.T + head.output.bias
            rounded = (by_hand.bfloat16().float() - by_hand).abs().max()
            assert rounded > 1e-4
            if task is HARDNESS:
                torch.testing.assert_close(found, by_hand, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", TABLE)
def test_without_autocast_a_values_head_is_the_plain_one_bit_for_bit(name: str) -> None:
    head = of_task(HARDNESS, name)
    after = torch.rand(1)
    torch.manual_seed(0)
    plain = build(name, 8, 1, **({} if name == "linear" else {"hidden": 6})).eval()
    assert torch.equal(torch.rand(1), after)  # no other random numbers
    assert list(head.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(head.parameters(), plain.parameters(), strict=True))
    x = taken(head, 5, 8)
    found = []
    for h in (head, plain):
        out = h(x)
        out.square().sum().backward()
        found.append([out, *(p.grad for p in h.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert torch.equal(head.double()(x.double()), plain.double()(x.double()))


@pytest.mark.parametrize("name", TABLE)
def test_gradients_pass_the_float32_layer(name: str) -> None:
    head = of_task(HARDNESS, name).train()
    with torch.autocast("cpu", torch.bfloat16):
        out = head(taken(head, 5, 8))
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 and p.grad.any() for p in head.parameters())


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("autocast", [False, True])
def test_a_values_head_compiles_to_one_graph_and_exports(name: str, autocast: bool) -> None:
    head = of_task(HARDNESS, name)
    x = taken(head, 3, 8)
    torch._dynamo.reset()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = head(x)
        compiled = torch.compile(head, backend="eager", fullgraph=True)(x)
        read = torch.export.export(head, (x,)).module()(x)
    assert compiled.dtype == read.dtype == torch.float32
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(read, expected)


def test_a_head_may_have_more_outputs_than_its_task() -> None:
    head = of_task(HARDNESS, "mlp", extra_features=2, outputs=4)
    assert isinstance(head.output, Float32Linear)
    assert head(torch.randn(2, 8), torch.randn(2, 2)).shape == (2, 4)
    assert type(of_task(CLASS, "mlp").output) is nn.Linear
    with torch.device("meta"):
        assert of_task(HARDNESS, "mlp", outputs=4)(torch.randn(2, 8)).shape == (2, 4)


def test_a_kind_for_each_task_has_float32_values_too() -> None:
    heads = per_task(kinds={"hardness": "mlp"})
    assert type(heads(CLASS, 16).output) is nn.Linear
    assert isinstance(heads(HARDNESS, 16).output, Float32Linear)
    assert heads(HARDNESS, 16, outputs=3).output.out_features == 3


# --- a kind for each task ---------------------------------------------------------------------------------------------


def per_task(**changes: object) -> PerTask:
    heads = instantiate(OmegaConf.merge(OmegaConf.load(CONF / "per_task.yaml"), changes), _convert_="all")
    assert isinstance(heads, PerTask)
    return heads


def test_tasks_get_the_kinds_and_options_they_are_given() -> None:
    heads = per_task(kinds={"hardness": "mlp"}, options={"hardness": {"hidden": 7, "dropout": 0.2}}, dropout=0.4)
    first, second = heads(CLASS, 16), heads(HARDNESS, 16, 2)
    assert (first.name, second.name) == ("linear", "mlp")
    assert (first.output.out_features, second.output.out_features) == (3, 1)
    assert second.output.in_features == 7
    assert [m.p for h in (first, second) for m in h.modules() if isinstance(m, nn.Dropout)] == [0.4, 0.2]
    assert second(torch.randn(2, 16), torch.randn(2, 2)).shape == (2, 1)
    assert per_task(kinds={"hardness": "mlp"})(HARDNESS, 16).layers[-1].p == 0.5


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"default": "liner"}, "head.default should be one of conv, linear, mlp. Found 'liner'. Did you mean 'linear'"),
        ({"kinds": {"class": "per_task"}}, "head.kinds.class should be one of"),
        ({"kinds": {"hardnes": "mlp"}}, "head.kinds names 'hardnes', which is no task here. Did you mean 'hardness'"),
        ({"options": {"clas": {"hidden": 3}}}, "head.options names 'clas'"),
        (
            {"options": {"class": {"hidden": 3}}},
            "head.options.class.hidden: head=linear has no such option. There are: dr",
        ),
        ({"options": {"class": {"name": "x"}}}, "head.options.class.name: head=linear has no such option"),
        (
            {"options": {"class": {"dropout": "abc"}}},
            "The head of class: head.dropout should be a number of at least 0",
        ),
        (
            {"default": "mlp", "options": {"class": {"hidden": -3}}},
            "The head of class: head.hidden should be a whole n",
        ),
        ({"options": 5}, "head.options should be a dictionary, such as .* Found 5"),
        ({"options": {"class": 5}}, "head.options.class should be a dictionary"),
        ({"kinds": "mlp"}, "head.kinds should be a dictionary, such as {hardness:mlp}. Found 'mlp'"),
        ({"dropout": 1.5}, "head.dropout should be"),
    ],
)
def test_impossible_kinds_and_options_are_named(changes: dict, says: str) -> None:
    def use() -> None:
        heads = per_task(**changes)
        heads.check(("class", "hardness"))
        heads(CLASS, 4)

    with pytest.raises((UserError, InstantiationException), match=says):
        use()
