"""Architectures: the papers' counts and equations, and exactly what the tasks share."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mtlcar.architectures.base import Architecture
from mtlcar.architectures.cost import cost
from mtlcar.architectures.task_graph import parents
from mtlcar.errors import UserError
from mtlcar.tasks import Task, TaskSet
from tests.networks import CARS, CONF, MAKE, MODEL, PAIR, STEEL, WEIGHT, build, losses, node, targets

# Every yaml of conf/architecture: the tests over it hold for any architecture.
TABLE = ("single", "parallel", "cascade")
HEADS = ("linear", "mlp", "conv", "mixed")
FEEDS = ("logits", "softmax", "hidden", "label")
COMBINES = ("concat", "add", "gate")


def options() -> list[object]:
    rows: list[object] = [
        pytest.param(a, h, b, {}, id=f"{a}-{h}-{b}")
        for a, h, b in itertools.product(("single", "parallel"), HEADS, ("tiny", "vit_tiny"))
    ]
    for feed, detach, combine, head in itertools.product(FEEDS, (False, True), COMBINES, HEADS):
        if feed == "hidden" and head == "linear":
            continue
        backbone = "vit_tiny" if combine == "gate" else "tiny"
        settings = {"feed": feed, "detach": detach, "combine": combine}
        if feed == "label":  # a regression cannot feed its label
            settings["order"] = [["make", "model"], ["model", "weight"]]
        else:  # a diamond, with a regression that feeds
            settings["order"] = [["make", "weight"], ["make", "model"], ["weight", "model"]]
        rows.append(
            pytest.param("cascade", head, backbone, settings, id=f"{feed}-{detach}-{combine}-{head}-{backbone}")
        )
    return rows


@pytest.mark.parametrize(("architecture", "head", "backbone", "settings"), options())
def test_shared_parameters_are_those_that_two_losses_reach_and_none_is_idle(
    architecture: str, head: str, backbone: str, settings: dict
) -> None:
    network = build(architecture, head=head, backbone=backbone, **settings).train()
    trainable = {n: p for n, p in network.named_parameters() if p.requires_grad}
    reached = dict.fromkeys(trainable, 0)
    moved = dict.fromkeys(trainable, False)
    for loss in losses(network, torch.randn(6, 3, 32, 32)):
        grads = torch.autograd.grad(loss, list(trainable.values()), retain_graph=True, allow_unused=True)
        for name, grad in zip(trainable, grads, strict=True):
            reached[name] += grad is not None
            moved[name] |= grad is not None and bool(grad.abs().sum() > 0)
    shared = list(network.shared_parameters())
    assert len({id(p) for p in shared}) == len(shared)
    names = {id(p): n for n, p in trainable.items()}
    assert {names[id(p)] for p in shared} == {n for n, count in reached.items() if count > 1}
    assert [n for n, yes in moved.items() if not yes] == []
    assert_above_is_what_lies_between(network)


def assert_above_is_what_lies_between(network: Architecture) -> None:
    shared = network(torch.randn(6, 3, 32, 32), targets(network.tasks, 6))
    between = shared.concatenated if shared.bottleneck is None else shared.bottleneck
    assert (shared.bottleneck is not None) == (network.has_bottleneck or network.name == "single")
    assert (shared.concatenated is not None) == network.concatenates
    if between is None:
        return
    trainable = [p for p in network.parameters() if p.requires_grad]
    below = torch.autograd.grad(between.sum(), trainable, allow_unused=True)
    expected = {id(p) for p, g in zip(trainable, below, strict=True) if g is None}
    above = [id(p) for p in network.above_bottleneck()]
    assert len(set(above)) == len(above)
    assert set(above) == expected


@pytest.mark.parametrize("tasks", [PAIR, CARS], ids=["one vector head", "two vector heads"])
@pytest.mark.parametrize(("name", "more"), [("parallel", {}), ("cascade", {}), ("cascade", {"detach": True})])
def test_the_poolings_own_layers_belong_to_the_heads_that_take_the_vector(
    name: str, more: dict, tasks: TaskSet
) -> None:
    # ConvNeXt's last norm: above the bottleneck where another head takes the map, and private if only one needs it.
    network = build(name, tasks, head="mixed", backbone="convnext_tiny", **more).train()
    norm = {n for n, _ in network.named_parameters() if n.startswith("backbone.pooling")}
    assert len(norm) == 2
    trainable = dict(network.named_parameters())
    reached = dict.fromkeys(trainable, 0)
    for loss in losses(network, torch.randn(4, 3, 64, 64)):
        grads = torch.autograd.grad(loss, list(trainable.values()), retain_graph=True, allow_unused=True)
        for key, grad in zip(trainable, grads, strict=True):
            reached[key] += grad is not None
    shared = {id(p) for p in network.shared_parameters()}
    assert {n for n, p in trainable.items() if id(p) in shared} == {n for n, c in reached.items() if c > 1}
    assert norm <= {n for n, p in trainable.items() if id(p) in {id(q) for q in network.above_bottleneck()}}


def test_every_yaml_has_a_row() -> None:
    assert sorted(p.stem for p in (CONF / "architecture").glob("*.yaml")) == sorted(TABLE)
    for name in TABLE:
        assert node("architecture", name).name == name


@pytest.mark.parametrize(
    ("backbone", "counts"),
    [
        ("densenet121", (7_154_756, 7_204_981, 7_214_585)),
        ("maxvit_t", (30_508_172, 30_533_309, 30_542_913)),
        ("convnext_base", (87_767_364, 87_817_589, 87_827_193)),
    ],
)
def test_parameter_counts_are_the_papers(backbone: str, counts: tuple[int, int, int]) -> None:
    make = Task("make", "classification", classes=tuple(f"make{i}" for i in range(49)))
    model = Task("model", "classification", classes=tuple(f"model{i}" for i in range(196)), parent="make")
    tasks = TaskSet((make, model), {"model": [i % 49 for i in range(196)]})
    for architecture, expected in zip(("single", "parallel", "cascade"), counts, strict=True):
        with torch.device("meta"):
            network = build(architecture, tasks, backbone=backbone, size=224)
        assert sum(p.numel() for p in network.parameters()) == expected


# --- outputs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["linear", "mlp", "conv"])
@pytest.mark.parametrize("architecture", TABLE)
def test_outputs_have_a_row_of_logits_or_a_value_an_image_in_task_order(architecture: str, head: str) -> None:
    tasks = TaskSet((WEIGHT, MODEL, MAKE), {"model": (0, 0, 1)})  # children before their parents
    network = build(architecture, tasks, head=head)
    shared = network(torch.randn(5, 3, 32, 32))
    expected = {"weight": (5,), "model": (5, 3), "make": (5, 2)}
    assert list(shared.outputs) == list(network.tasks.names)
    assert {k: tuple(v.shape) for k, v in shared.outputs.items()} == {n: expected[n] for n in network.tasks.names}
    assert network.has_bottleneck == (architecture != "single")
    assert shared.bottleneck.shape == ((5, 64, 2, 2) if head == "conv" else (5, 64))


@pytest.mark.parametrize("architecture", TABLE)
def test_evaluation_is_deterministic_and_compiles_to_one_graph(architecture: str) -> None:
    network = build(architecture, dropout=0.5).eval()
    image = torch.randn(2, 3, 32, 32)
    first = network(image).outputs
    torch._dynamo.reset()
    compiled = torch.compile(network, backend="eager", fullgraph=True)(image).outputs
    for name, value in network(image).outputs.items():
        assert torch.equal(value, first[name])
        torch.testing.assert_close(compiled[name], value)


def test_task_names_that_modules_have_themselves_work() -> None:
    kinds = Task("type", "classification", classes=("suv", "van"))
    tasks = TaskSet((kinds, Task("train", "classification", classes=("x", "y"), parent="type")), {"train": (0, 1)})
    for architecture in TABLE:
        assert list(build(architecture, tasks)(torch.randn(2, 3, 32, 32)).outputs)[-1] == "train"


@pytest.mark.parametrize("architecture", TABLE)
@pytest.mark.parametrize("head", ["linear", "mlp", "conv"])
def test_the_configured_dropout_reaches_every_head(architecture: str, head: str) -> None:
    image = torch.randn(4, 3, 32, 32)
    network = build(architecture, head=head, dropout=0.37).train()
    for h in network.heads:
        assert {m.p for m in h.modules() if isinstance(m, nn.Dropout)} == {0.37}
    first, second = network(image).outputs, network(image).outputs
    assert all(not torch.equal(first[n], second[n]) for n in first)
    without = build(architecture, head=head, dropout=0.0).train()
    first, second = without(image).outputs, without(image).outputs
    assert all(torch.equal(first[n], second[n]) for n in first)


# --- single, parallel -------------------------------------------------------------------------------------------------


def test_single_trains_the_finest_class_unless_told() -> None:
    assert build("single").tasks.names == ("model",)
    assert build("single", task="weight").tasks.names == ("weight",)
    assert build("single", STEEL).tasks.names == ("class",)
    with pytest.raises(UserError, match="Did you mean 'model'"):
        build("single", task="modl")


def test_parallel_heads_see_one_dropout_mask() -> None:
    tasks = TaskSet((MAKE, Task("other", "classification", classes=("a", "b"))))
    network = build("parallel", tasks, dropout=0.5).train()
    network.heads[1].load_state_dict(network.heads[0].state_dict())
    outputs = network(torch.randn(4, 3, 32, 32)).outputs
    assert torch.equal(outputs["make"], outputs["other"])


# --- cascade ----------------------------------------------------------------------------------------------------------


def test_cascade_is_the_papers_equation() -> None:
    network = build("cascade", PAIR).eval()
    image = torch.randn(3, 3, 32, 32)
    f = network.backbone.pool(network.backbone(image)[-1])
    make_head, model_head = (h.output for h in network.heads)
    make = f @ make_head.weight.T + make_head.bias
    model = torch.cat([f, make], 1) @ model_head.weight.T + model_head.bias
    outputs = network(image).outputs
    torch.testing.assert_close(outputs["make"], make)
    torch.testing.assert_close(outputs["model"], model)


def test_raw_logits_are_fed_without_dropout() -> None:
    network = build("cascade", PAIR, dropout=0.9).train()
    with torch.no_grad():
        output = network.heads[1].output
        output.weight.zero_()
        output.bias.zero_()
        output.weight[:2, -2:] = torch.eye(2)
    outputs = network(torch.randn(8, 3, 32, 32)).outputs
    torch.testing.assert_close(outputs["model"][:, :2], outputs["make"])


def test_a_linear_logit_cascade_has_the_function_class_of_parallel_heads() -> None:
    cascade, parallel = build("cascade", PAIR).eval(), build("parallel", PAIR).eval()
    (make, model), (make2, model2) = ([h.output for h in n.heads] for n in (cascade, parallel))
    with torch.no_grad():
        w_f, w_make = model.weight[:, :-2], model.weight[:, -2:]
        make2.load_state_dict(make.state_dict())
        model2.weight.copy_(w_f + w_make @ make.weight)
        model2.bias.copy_(model.bias + w_make @ make.bias)
    image = torch.randn(3, 3, 32, 32)
    folded, outputs = parallel(image).outputs, cascade(image).outputs
    for name in outputs:
        torch.testing.assert_close(folded[name], outputs[name])


@pytest.mark.parametrize("combine", COMBINES)
@pytest.mark.parametrize("head", ["linear", "mlp", "conv"])
def test_the_child_hears_its_parent_and_not_the_other_way(combine: str, head: str) -> None:
    network = build("cascade", PAIR, head=head, combine=combine).eval()
    image = torch.randn(3, 3, 32, 32)
    before = network(image).outputs
    with torch.no_grad():
        network.heads[0].output.bias += torch.tensor([3.0, -3.0])
    after = network(image).outputs
    assert not torch.allclose(before["model"], after["model"])
    with torch.no_grad():
        network.heads[1].output.bias += 1
    assert torch.equal(network(image).outputs["make"], after["make"])


def test_teacher_forcing_feeds_the_label_in_training_only() -> None:
    network = build("cascade", PAIR, feed="label").train()
    image = torch.randn(3, 3, 32, 32)
    zero, one = ({"make": torch.full((3,), i), "model": torch.zeros(3).long()} for i in (0, 1))
    column = network.heads[1].output.weight[:, -2:]
    with torch.no_grad():
        difference = network(image, one).outputs["model"] - network(image, zero).outputs["model"]
        torch.testing.assert_close(difference, (column[:, 1] - column[:, 0]).expand(3, 3))
        network.eval()
        assert torch.equal(network(image, zero).outputs["model"], network(image, one).outputs["model"])
        assert torch.equal(network(image, zero).outputs["model"], network(image).outputs["model"])
    with pytest.raises(ValueError, match="targets in training"):
        network.train()(image)


def test_a_missing_label_is_replaced_by_the_prediction() -> None:
    network = build("cascade", PAIR, feed="label").train()
    softmax = build("cascade", PAIR, feed="softmax").train()
    softmax.load_state_dict(network.state_dict())
    image = torch.randn(4, 3, 32, 32)
    missing = {"make": torch.tensor([0, -1, 1, -1]), "model": torch.zeros(4).long()}
    forced, predicted = network(image, missing).outputs["model"], softmax(image).outputs["model"]
    assert torch.allclose(forced, predicted, atol=1e-6) is False
    torch.testing.assert_close(forced[[1, 3]], predicted[[1, 3]])


def test_detach_stops_the_childs_loss_at_the_parents_head() -> None:
    for detach in (False, True):
        network = build("cascade", PAIR, detach=detach)
        grad = torch.autograd.grad(
            losses(network, torch.randn(4, 3, 32, 32))[1], list(network.heads[0].parameters()), allow_unused=True
        )
        assert all((g is None) == detach for g in grad)


def test_frozen_trunk_is_not_shared() -> None:
    network = build("parallel", frozen=4)
    assert list(network.shared_parameters()) == []
    partly = build("parallel", frozen=2)
    assert {id(p) for p in partly.shared_parameters()} == {
        id(p) for s in partly.backbone.stages[2:] for p in s.parameters()
    }


def test_a_map_head_freezes_the_norm_it_never_reaches() -> None:
    with torch.device("meta"):
        network = build("parallel", head="conv", backbone="convnext_tiny", size=64)
        vector = build("parallel", backbone="convnext_tiny", size=64)
    frozen = {n for n, p in network.named_parameters() if not p.requires_grad}
    assert frozen == {"backbone.pooling.1.weight", "backbone.pooling.1.bias"}
    assert all(p.requires_grad for p in vector.parameters())


# --- order ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tasks", "expected"),
    [
        (PAIR, {"make": (), "model": ("make",)}),
        (TaskSet((MODEL, MAKE), {"model": (0, 0, 1)}), {"make": (), "model": ("make",)}),
        (CARS, {"make": (), "model": ("make",), "weight": ("model",)}),
        (STEEL, {"class": (), "hardness": ("class",)}),
        (
            TaskSet([Task(n, "classification", classes=("a", "b")) for n in ("view", "colour", "body")]),
            {"view": (), "colour": ("view",), "body": ("colour",)},
        ),
        (TaskSet([Task("a", "regression"), Task("b", "regression")]), {"a": (), "b": ("a",)}),
    ],
)
def test_the_order_comes_from_the_tasks(tasks: TaskSet, expected: dict) -> None:
    assert parents(tasks, None) == expected


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_parents_come_before_their_children_in_any_acyclic_order(data: st.DataObject) -> None:
    names = data.draw(st.permutations(["a", "b", "c", "d", "e"]))
    pairs = [(p, c) for i, p in enumerate(names) for c in names[i + 1 :]]
    edges = data.draw(st.lists(st.sampled_from(pairs), min_size=1))
    tasks = TaskSet([Task(n, "regression") for n in "abcde"])
    graph = parents(tasks, edges)
    done = list(graph)
    assert sorted(done) == sorted(tasks.names)
    assert {(p, c) for c, above in graph.items() for p in above} == set(edges)
    assert all(done.index(p) < done.index(c) for p, c in edges)


@pytest.mark.parametrize(
    ("changes", "tasks", "hint"),
    [
        ({}, TaskSet((MAKE,)), "architecture=single"),
        ({"order": [["make", "model"], ["model", "make"]]}, PAIR, "cycle: (make -> model|model -> make)"),
        ({"order": [["make", "make"]]}, PAIR, "cycle"),
        ({"order": [["make", "modle"]]}, PAIR, "Did you mean 'model'"),
        ({"order": ["make", "model"]}, PAIR, r"\[\[make,model\]\]"),
        ({"order": [["make", "model", "weight"]]}, CARS, r"\[parent, child\]"),
        ({"order": []}, PAIR, "architecture=parallel"),
        ({"feed": "logit"}, PAIR, "architecture.feed should be one of logits"),
        ({"combine": "sum"}, PAIR, "architecture.combine should be one of concat"),
        ({"feed": "hidden"}, PAIR, "head=mlp"),
        ({"feed": "label", "order": [["weight", "make"]]}, CARS, "weight is a regression"),
    ],
)
def test_impossible_cascades_are_refused(changes: dict, tasks: TaskSet, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        build("cascade", tasks, **changes)


# --- cost -------------------------------------------------------------------------------------------------------------


def test_cost_counts_multiply_adds_as_torchvision_does() -> None:
    thousand = TaskSet((Task("c", "classification", classes=tuple(map(str, range(1000)))),))
    network = build("single", thousand, backbone="resnet18", size=224)
    assert cost(network, 224)["forward_gmacs"] == pytest.approx(1.814, abs=1e-3)  # torchvision's table


def test_cost_counts_attention_and_shared_parameters_and_leaves_the_mode() -> None:
    network = build("parallel", PAIR, backbone="vit_tiny", frozen=1).train()
    modes = [m.training for m in network.modules()]
    report = cost(network, 32)
    tokens, width = 16 + 1, 48
    layer = 4 * tokens * width**2 + 2 * tokens**2 * width + 2 * tokens * width * 96
    expected = 16 * 3 * 64 * width + 4 * layer + width * 5
    assert report["forward_gmacs"] * 1e9 == pytest.approx(expected)
    assert report["parameters"] == sum(p.numel() for p in network.parameters())
    assert report["shared_parameters"] == sum(p.numel() for s in network.backbone.stages[1:] for p in s.parameters())
    assert [m.training for m in network.modules()] == modes
    assert torch.backends.mha.get_fastpath_enabled()
