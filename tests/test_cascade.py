"""The cascade: the papers' equation, what is fed and in which order; and what single and parallel have of their own."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtlcar.architectures.cascade import Cascade
from mtlcar.architectures.task_graph import parents
from mtlcar.errors import UserError
from mtlcar.heads.float32 import Float32Linear
from mtlcar.tasks import Task, TaskSet
from tests.expert_networks import with_mixed_heads
from tests.networks import (
    CARS,
    IMAGE,
    MAKE,
    MODEL,
    PAIR,
    STEEL,
    assert_above_is_what_lies_between,
    assert_evaluates_compiles_exports,
    assert_shared_is_what_two_losses_reach_and_none_is_idle,
    build,
    losses,
)

HEADS = ("linear", "mlp", "conv", "mixed")
FEEDS = ("logits", "softmax", "hidden", "label")
COMBINES = ("concat", "add", "gate")


def options() -> list[object]:
    """`mixed` has an mlp and a conv head: all of one of these are slow, but where a hidden layer is fed."""
    rows: list[object] = []
    for feed, detach, combine, head in itertools.product(FEEDS, (False, True), COMBINES, HEADS):
        if feed == "hidden" and head == "linear":
            continue
        backbone = "vit_tiny" if combine == "gate" else "tiny"
        settings = {"feed": feed, "detach": detach, "combine": combine}
        if feed == "label":  # a regression cannot feed its label
            settings["order"] = [["make", "model"], ["model", "weight"]]
        else:  # a diamond, with a regression that feeds
            settings["order"] = [["make", "weight"], ["make", "model"], ["weight", "model"]]
        marks = () if head in ("linear", "mixed") or (feed, head) == ("hidden", "mlp") else (pytest.mark.slow,)
        name = f"{feed}-{detach}-{combine}-{head}-{backbone}"
        rows.append(pytest.param(head, backbone, settings, id=name, marks=marks))
    for feed, detach, head in itertools.product(("softmax", "label"), (False, True), HEADS):
        settings = {"feed": feed, "detach": detach, "combine": "select", "order": [["model", "weight"]]}
        rows.append(pytest.param(head, "tiny", settings, id=f"{feed}-{detach}-select-{head}"))
    return rows


@pytest.mark.parametrize(("head", "backbone", "settings"), options())
def test_shared_parameters_are_those_that_two_losses_reach_and_none_is_idle(
    head: str, backbone: str, settings: dict
) -> None:
    network = build("cascade", head=head, backbone=backbone, **settings)
    assert_shared_is_what_two_losses_reach_and_none_is_idle(network)
    assert_above_is_what_lies_between(network)


@pytest.mark.parametrize("tasks", [PAIR, CARS], ids=["one vector head", "two vector heads"])
@pytest.mark.parametrize(("name", "more"), [("parallel", {}), ("cascade", {}), ("cascade", {"detach": True})])
def test_the_poolings_own_layers_belong_to_the_heads_that_take_the_vector(
    name: str, more: dict, tasks: TaskSet
) -> None:
    # Above the bottleneck where another head takes the map, and private if only one needs them.
    network = with_mixed_heads(name, tasks, **more)
    assert_shared_is_what_two_losses_reach_and_none_is_idle(network)
    assert_above_is_what_lies_between(network)
    scale = network.backbone.scale
    assert any(scale is p for p in network.above_bottleneck())


# --- what is computed -------------------------------------------------------------------------------------------------


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


# --- one output per class of the parent -------------------------------------------------------------------------------


def selecting(feed: str, head: str = "linear", **more: object) -> Cascade:
    network = build("cascade", STEEL, head=head, feed=feed, combine="select", **more)
    assert isinstance(network, Cascade)
    return network


def per_class(network: Cascade, image: Tensor) -> tuple[Tensor, Tensor]:
    """Class probabilities [B, 3] and the value that each class has [B, 3], by hand, for linear heads."""
    f = network.backbone.pool(network.backbone(image)[-1])
    classes, value = (h.output for h in network.heads)
    return (f @ classes.weight.T + classes.bias).softmax(1), f @ value.weight.T + value.bias


def test_select_has_an_output_for_each_class_and_reads_the_features_alone() -> None:
    for head in ("linear", "mlp", "conv"):
        classes, value = selecting("softmax", head).heads
        assert (value.output.out_features, value.output.in_features) == (3, classes.output.in_features)


def test_select_by_softmax_is_the_expectation() -> None:
    network = selecting("softmax").eval()
    p, values = per_class(network, IMAGE)
    torch.testing.assert_close(network(IMAGE).outputs["hardness"], (p * values).sum(1))
    assert (p.max(1).values < 0.9).any()  # what an argmax would not give


def test_select_by_label_is_the_true_classs_value_in_training_and_the_predicted_ones_in_evaluation() -> None:
    network = selecting("label").eval()
    with torch.no_grad():  # images of different predicted classes
        network.heads[0].output.bias -= network(IMAGE).outputs["class"].mean(0)
    p, values = per_class(network, IMAGE)
    predicted = p.argmax(1)
    assert len(predicted.unique()) > 1
    of_predicted = values.gather(1, predicted[:, None])[:, 0]
    label = (predicted + torch.tensor([1, 2, 0, 1, 2, 0])) % 3
    target = {"class": label, "hardness": torch.zeros(6)}
    for targets in (None, target):
        torch.testing.assert_close(network(IMAGE, targets).outputs["hardness"], of_predicted)
    network.train()
    network.backbone.eval()  # whose batch norm would give other features in training
    torch.testing.assert_close(network(IMAGE, target).outputs["hardness"], values.gather(1, label[:, None])[:, 0])
    some = {**target, "class": torch.where(torch.arange(6) < 3, label, -1)}
    expected = torch.cat([values.gather(1, label[:, None])[:3, 0], of_predicted[3:]])
    torch.testing.assert_close(network(IMAGE, some).outputs["hardness"], expected)


@pytest.mark.parametrize("head", ["linear", "mlp", "conv"])
def test_with_labels_only_the_true_classs_output_learns(head: str) -> None:
    target = {"class": torch.ones(6).long(), "hardness": torch.randn(6)}
    for feed in ("label", "softmax"):
        network = selecting(feed, head).train()
        network(IMAGE, target).outputs["hardness"].square().sum().backward()
        output = network.heads[1].output
        learns = [bool(output.weight.grad[c].any() and output.bias.grad[c]) for c in range(3)]
        assert learns == ([False, True, False] if feed == "label" else [True] * 3)
        assert (network.heads[0].output.weight.grad is None) == (feed == "label")


def test_selects_heads_may_be_of_different_kinds() -> None:
    network = build("cascade", STEEL, head="mixed", feed="label", combine="select").eval()
    assert isinstance(network.heads[1].output, Float32Linear)
    assert network.heads[1].output.out_features == 3
    assert network(IMAGE).outputs["hardness"].shape == (6,)


@pytest.mark.parametrize("feed", ["softmax", "label"])
def test_selected_values_are_float32_under_autocast_and_the_network_compiles_and_exports(feed: str) -> None:
    network = selecting(feed, "mlp", backbone="short").eval()
    assert_evaluates_compiles_exports(network)
    with torch.autocast("cpu", torch.bfloat16):
        value = network(IMAGE).outputs["hardness"]
    assert value.dtype == torch.float32
    assert not torch.equal(value.bfloat16().float(), value)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        f = network.backbone.pool(network.backbone(IMAGE)[-1])
        h = [head.hidden(f) for head in network.heads]
        logits = network.heads[0].output(h[0])
    values = h[1].float() @ network.heads[1].output.weight.T + network.heads[1].output.bias
    p = logits.float().softmax(1) if feed == "softmax" else torch.eye(3)[logits.argmax(1)]
    torch.testing.assert_close(value, (p * values).sum(1), rtol=1e-5, atol=1e-6)


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
        ({"combine": "select"}, STEEL, "architecture.feed=logits does not hand on. Use architecture.feed=label or"),
        ({"combine": "select", "feed": "hidden"}, STEEL, "architecture.feed=hidden does not hand on"),
        (
            {"combine": "select", "feed": "softmax"},
            CARS,
            r"make \(classification\) above model \(classification\). .*order=\[\[model,weight\]\]",
        ),
        ({"combine": "select", "feed": "label"}, PAIR, "above model .* Use another architecture.combine"),
        (
            {"combine": "select", "feed": "softmax", "order": [["make", "weight"], ["model", "weight"]]},
            CARS,
            r"make \(classification\) and model \(classification\) above weight \(regression\)",
        ),
        (
            {"combine": "select", "feed": "softmax"},
            TaskSet([Task("a", "regression"), Task("b", "regression")]),
            r"a \(regression\) above b \(regression\)",
        ),
    ],
)
def test_impossible_cascades_are_refused(changes: dict, tasks: TaskSet, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        build("cascade", tasks, **changes)
