"""Metrics: against brute force and torchmetrics, any partition into batches, missing labels, the hierarchy."""

import copy
import itertools
import math

import networkx as nx
import numpy as np
import pytest
import torch
import torchmetrics.functional.classification as tm
import torchmetrics.functional.regression as tr
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtlcar.metrics.classification import label_rank
from mtlcar.metrics.direction import lower_is_better
from mtlcar.metrics.hierarchy import imply
from mtlcar.metrics.tasks import TaskMetrics
from mtlcar.tasks import Task, TaskSet

NAN = float("nan")
# `type` is a name that a ModuleDict would refuse.
CARS = TaskSet(
    [
        Task("type", "classification", classes=("s", "t")),
        Task("make", "classification", classes=("a", "b", "c", "d"), parent="type"),
        Task("model", "classification", classes=tuple("pqrstuvw"), parent="make"),
        Task("weight", "regression", unit="kg"),
    ],
    {"make": (0, 0, 1, 1), "model": (0, 0, 1, 1, 2, 2, 3, 3)},
)
Batch = tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]


def example(size: int, seed: int = 0, tasks: TaskSet = CARS, missing: float = 0.3) -> Batch:
    """Predictions, targets (consistent with the hierarchy, some missing) and scores; predictions are often right."""
    rng = np.random.default_rng(seed)
    fine = rng.integers(0, len(tasks.finest().classes), size)
    predictions, targets, scores = {}, {}, {}
    for task in tasks:
        gone = rng.random(size) < missing
        if task.kind == "regression":
            y = rng.normal(1400, 300, size).astype(np.float32)
            predictions[task.name] = torch.from_numpy(y + rng.normal(0, 90, size).astype(np.float32))
            targets[task.name] = torch.from_numpy(np.where(gone, np.float32(NAN), y))
        else:
            label = np.asarray(tasks.ancestor_table(tasks.finest().name, task.name))[fine]
            logits = rng.normal(size=(size, len(task.classes))) + 1.5 * np.eye(len(task.classes))[label]
            scores[task.name] = torch.from_numpy(logits.astype(np.float32)).softmax(1)
            predictions[task.name] = scores[task.name].argmax(1)
            targets[task.name] = torch.from_numpy(np.where(gone, -1, label))
    return predictions, targets, scores


def metrics(*batches: Batch, tasks: TaskSet = CARS, prefix: str = "") -> TaskMetrics:
    m = TaskMetrics(tasks, prefix)
    for batch in batches:
        m.update(*batch)
    return m


def rows(batch: Batch, index: object) -> Batch:
    return tuple({k: v[index] for k, v in part.items()} for part in batch)  # type: ignore[return-value, index]


def tree_height(a: int, b: int) -> int:
    """Height of the lowest common ancestor of two models in the tree of CARS, by networkx."""
    tree = nx.DiGraph([("root", ("type", i)) for i in range(2)])
    tree.add_edges_from((("type", up), ("make", i)) for i, up in enumerate(CARS.parent_of["make"]))
    tree.add_edges_from((("make", up), ("model", i)) for i, up in enumerate(CARS.parent_of["model"]))
    common = nx.lowest_common_ancestor(tree, ("model", a), ("model", b))
    return int(nx.dag_longest_path_length(tree.subgraph(nx.descendants(tree, common) | {common})))


def brute_force(batch: Batch) -> dict[str, float]:
    """The definitions, one image at a time."""
    p, t, s = ({k: v.numpy() for k, v in part.items()} for part in batch)
    found: dict[str, float] = {}
    n = len(t["type"])
    for name in ("type", "make", "model"):
        k_classes = len(CARS[name].classes)
        ok = [i for i in range(n) if t[name][i] >= 0]
        found[f"{name}/accuracy"] = np.mean([p[name][i] == t[name][i] for i in ok])
        for k in (3, 5):
            if k < k_classes:
                order = [np.argsort(-s[name][i], kind="stable")[:k] for i in ok]
                found[f"{name}/top{k}"] = np.mean([t[name][i] in o for i, o in zip(ok, order, strict=True)])
        f1 = []
        for c in range(k_classes):
            tp = sum(p[name][i] == c and t[name][i] == c for i in ok)
            fp = sum(p[name][i] == c and t[name][i] != c for i in ok)
            fn = sum(p[name][i] != c and t[name][i] == c for i in ok)
            if tp + fp + fn:
                f1.append(2 * tp / (2 * tp + fp + fn))
        found[f"{name}/macro_f1"] = np.mean(f1)
    makes, types = np.array(CARS.parent_of["model"]), np.array(CARS.parent_of["make"])
    ok = [i for i in range(n) if t["make"][i] >= 0]
    found["make/implied_accuracy"] = np.mean([makes[p["model"][i]] == t["make"][i] for i in ok])
    ok = [i for i in range(n) if t["type"][i] >= 0]
    found["type/implied_accuracy"] = np.mean([types[makes[p["model"][i]]] == t["type"][i] for i in ok])
    found["hierarchy/consistency"] = np.mean((makes[p["model"]] == p["make"]) & (types[p["make"]] == p["type"]))
    ok = [i for i in range(n) if min(t[k][i] for k in ("type", "make", "model")) >= 0]
    right = [all(p[k][i] == t[k][i] for k in ("type", "make", "model")) for i in ok]
    found["hierarchy/full_path_accuracy"] = np.mean(right)
    ok = [i for i in range(n) if t["model"][i] >= 0]
    heights = [tree_height(int(p["model"][i]), int(t["model"][i])) for i in ok]
    found["hierarchy/mistake_severity"] = np.mean([h for h in heights if h])
    found["hierarchy/distance"] = np.mean(heights)
    ok = [i for i in range(n) if not np.isnan(t["weight"][i])]
    y, e = t["weight"][ok].astype(float), (p["weight"][ok].astype(float) - t["weight"][ok].astype(float))
    found |= {"weight/mae": np.mean(np.abs(e)), "weight/mse": np.mean(e**2), "weight/rmse": np.mean(e**2) ** 0.5}
    found["weight/mape"] = 100 * np.mean(np.abs(e / y))
    found["weight/within_8"] = np.mean(np.abs(e / y) <= 0.08)
    found["weight/r2"] = 1 - np.sum(e**2) / np.sum((y - y.mean()) ** 2)
    return {k: float(v) for k, v in found.items()}


@pytest.mark.parametrize("missing", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(3))
def test_metrics_equal_a_brute_force_computation(seed: int, missing: float) -> None:
    batch = example(60, seed, missing=missing)
    assert metrics(batch).compute() == pytest.approx(brute_force(batch), rel=1e-9)


def test_metrics_equal_torchmetrics() -> None:
    p, t, s = batch = example(80)
    found = metrics(batch).compute()
    for name in ("make", "model"):
        options = {"num_classes": len(CARS[name].classes), "ignore_index": -1}
        same = {
            "accuracy": tm.multiclass_accuracy(p[name], t[name], average="micro", **options),
            "top3": tm.multiclass_accuracy(s[name], t[name], average="micro", top_k=3, **options),
            "macro_f1": tm.multiclass_f1_score(p[name], t[name], average="macro", **options),
        }
        for key, value in same.items():
            assert found[f"{name}/{key}"] == pytest.approx(float(value), rel=1e-6), key
    ok = ~t["weight"].isnan()
    a, b = p["weight"][ok].double(), t["weight"][ok].double()
    assert found["weight/mape"] == pytest.approx(100 * float(tr.mean_absolute_percentage_error(a, b)))
    assert found["weight/r2"] == pytest.approx(float(tr.r2_score(a, b)))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 500), size=st.integers(1, 40), cuts=st.lists(st.integers(0, 40), max_size=5))
def test_any_partition_into_batches_gives_the_same_values(seed: int, size: int, cuts: list[int]) -> None:
    batch = example(size, seed)
    edges = [0, *sorted(min(c, size) for c in cuts), size]
    parts = [rows(batch, slice(a, b)) for a, b in itertools.pairwise(edges)]  # some may be empty
    whole, split = metrics(batch), metrics(*parts)
    assert split.compute() == pytest.approx(whole.compute(), rel=1e-9, nan_ok=False)
    assert split.tables().keys() == whole.tables().keys()
    for task, table in whole.tables().items():
        for name, row in table.items():
            assert split.tables()[task][name] == pytest.approx(row, rel=1e-9)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 500), order=st.permutations(range(6)))
def test_renaming_the_classes_keeps_every_metric(seed: int, order: list[int]) -> None:
    tasks = TaskSet([Task("c", "classification", classes=tuple("abcdef"))])
    p, t, s = example(40, seed, tasks)
    table = torch.tensor(order)
    back = torch.argsort(table)
    renamed = (
        {"c": table[p["c"]]},
        {"c": torch.where(t["c"] >= 0, table[t["c"].clamp(min=0)], -1)},
        {"c": s["c"][:, back]},
    )
    assert metrics(renamed, tasks=tasks).compute() == pytest.approx(metrics((p, t, s), tasks=tasks).compute())


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 500))
def test_missing_labels_give_the_values_of_the_labelled_subset(seed: int) -> None:
    for name in ("model", "weight"):
        tasks = CARS.subset([name])
        p, t, s = ({name: part[name]} if name in part else {} for part in example(40, seed))
        known = ~t[name].isnan() if name == "weight" else t[name] >= 0
        if not known.any():
            continue
        subset = metrics(rows((p, t, s), known), tasks=tasks).compute()
        assert subset
        assert metrics((p, t, s), tasks=tasks).compute() == pytest.approx(subset, rel=1e-12)


def test_perfect_predictions_are_perfect() -> None:
    _, t, _ = example(50, missing=0.0)
    scores = {k: torch.nn.functional.one_hot(t[k], len(CARS[k].classes)).float() for k in ("type", "make", "model")}
    found = metrics((dict(t), t, scores)).compute()
    errors = {"weight/mae", "weight/mse", "weight/rmse", "weight/mape", "hierarchy/distance"}
    names = [k for k in TaskMetrics.names(CARS) if k != "hierarchy/mistake_severity"]  # there is no mistake
    assert found == {k: 0.0 if k in errors else 1.0 for k in names}


def test_names_are_prefixed_and_complete() -> None:
    found = metrics(example(50), prefix="test/").compute()
    assert list(found) == [f"test/{name}" for name in TaskMetrics.names(CARS)]
    assert all(type(v) is float for v in found.values())
    assert not any(name.startswith(("type/top", "make/top5")) for name in TaskMetrics.names(CARS))  # too few classes


@pytest.mark.filterwarnings("error")
def test_nothing_labelled_gives_nothing_and_no_warning() -> None:
    assert metrics().compute() == {}
    assert metrics().tables() == {}
    p, t, s = example(10, missing=1.0)
    assert set(metrics((p, t, s)).compute()) == {"hierarchy/consistency"}  # needs no labels
    assert metrics((p, t, s)).tables() == {}


def test_tasks_that_are_not_predicted_are_left_out_but_the_implied_ones_are_there() -> None:
    p, t, s = example(60)
    only = {"model": p["model"]}
    plain = metrics((only, t, {"model": s["model"]})).compute()
    assert {k.split("/")[0] for k in plain} == {"model", "make", "type", "hierarchy"}
    assert {k for k in plain if k.startswith("hierarchy")} == {"hierarchy/mistake_severity", "hierarchy/distance"}
    assert "make/accuracy" not in plain
    implied = metrics((imply(CARS, only), t, {"model": s["model"]})).compute()
    assert implied["make/accuracy"] == implied["make/implied_accuracy"] == plain["make/implied_accuracy"]
    assert implied["hierarchy/consistency"] == 1.0
    assert implied["hierarchy/full_path_accuracy"] > 0
    assert "make/top3" not in implied  # no scores


def test_imply_fills_coarser_classes_from_the_finest_and_keeps_what_was_predicted() -> None:
    model = torch.tensor([0, 3, 5, 7, -1])
    found = imply(CARS, {"weight": torch.zeros(5), "model": model})
    assert list(found) == ["type", "make", "model", "weight"]
    assert found["make"].tolist() == [0, 1, 2, 3, -1]
    assert found["type"].tolist() == [0, 0, 1, 1, -1]
    given_make = imply(CARS, {"make": torch.tensor([3] * 5), "model": model})
    assert given_make["make"].tolist() == [3] * 5
    assert given_make["type"].tolist() == [0, 0, 1, 1, -1]
    assert list(imply(CARS, {"make": torch.tensor([0])})) == ["type", "make"]


def test_no_class_is_wrong_inconsistent_and_no_false_positive() -> None:
    _, t, _ = example(40, missing=0.0)
    found = metrics(({k: torch.full_like(v, -1) for k, v in t.items() if k != "weight"}, t, {})).compute()
    assert (found.pop("hierarchy/mistake_severity"), found.pop("hierarchy/distance")) == (3.0, 3.0)  # as far as can be
    assert set(found.values()) == {0.0}


def test_severity_is_of_mistakes_and_distance_of_all_labelled_images() -> None:
    # Right; the other model of the make; the other make of the type; the other type; no label.
    p = {"model": torch.tensor([0, 1, 2, 7, 3])}
    t = {"model": torch.tensor([0, 0, 0, 0, -1]), "make": torch.zeros(5).long(), "type": torch.zeros(5).long()}
    found = metrics((p, t, {})).compute()
    assert (found["hierarchy/mistake_severity"], found["hierarchy/distance"]) == (2.0, 1.5)
    two = CARS.subset(["make", "model"])  # without the type the root is above the makes
    found = metrics((p, t, {}), tasks=two).compute()
    assert (found["hierarchy/mistake_severity"], found["hierarchy/distance"]) == (5 / 3, 5 / 4)
    for task, tasks in (("make", CARS), ("model", CARS.subset(["model"])), ("type", CARS.subset(["type"]))):
        alone = metrics(({task: t[task]}, t, {}), tasks=tasks).compute()
        assert not {"hierarchy/mistake_severity", "hierarchy/distance"} & set(alone), (
            "of the finest task, if it has one"
        )
    assert all(lower_is_better(f"test/hierarchy/{kind}") for kind in ("mistake_severity", "distance"))
    assert not lower_is_better("test/hierarchy/consistency")


def test_equal_or_nan_scores_do_not_look_right() -> None:
    target = torch.tensor([0, 4, 7])
    assert label_rank(torch.zeros(3, 8), target).tolist() == [0, 4, 7]
    assert label_rank(torch.full((3, 8), NAN), target).tolist() == [8, 8, 8]
    scores = torch.tensor([[0.1, NAN, 0.9, 0.3]])
    assert [int(label_rank(scores, torch.tensor([c]))) for c in (2, 3, 0, 1)] == [0, 1, 2, 4]


def test_zero_labels_do_not_enter_mape_and_equal_labels_have_no_r2() -> None:
    tasks = TaskSet([Task("w", "regression", unit="kg")])

    def values(prediction: list[float], target: list[float]) -> dict[str, float]:
        return metrics(({"w": torch.tensor(prediction)}, {"w": torch.tensor(target)}, {}), tasks=tasks).compute()

    assert values([1.0, 3.0], [0.0, 2.0])["w/mape"] == 50.0
    assert set(values([1.0], [0.0])) == {"w/mae", "w/mse", "w/rmse"}
    for constant in (0.1, 3.3, 689.3, 1000.1, -1e6):
        for size in range(1, 60):
            assert "w/r2" not in values([1.0] * size, [constant] * size)  # only rounding spreads them
    assert values([1000.2, 1000.3], [1000.2, 1000.3])["w/r2"] == 1.0
    assert math.isnan(values([NAN, 1.0], [1.0, 1.0])["w/mae"])  # a NaN prediction is not hidden
    assert values([NAN, 1.0], [NAN, 1.0])["w/mae"] == 0.0


def test_within_8_counts_its_edge_and_leaves_out_labels_that_are_0() -> None:
    tasks = TaskSet([Task("w", "regression", unit="kg"), Task("c", "classification", classes=("a", "b"))])
    # Off by -8 %, +8 %, a little more, of a negative label; no number; of 0; of a missing label.
    p = {"w": torch.tensor([92.0, 270.0, 108.01, -107.0, NAN, 0.0, 1.0]), "c": torch.zeros(7, dtype=torch.int64)}
    t = {"w": torch.tensor([100.0, 250.0, 100.0, -100.0, 100.0, 0.0, NAN]), "c": torch.tensor([0, 0, 0, 1, 1, 1, 1])}
    m = metrics((p, t, {}), tasks=tasks, prefix="test/")
    assert m.compute()["test/w/within_8"] == 3 / 5
    assert [m.tables()["c"][name]["w/within_8"] for name in ("a", "b")] == [2 / 3, 1 / 2]


def test_tables_give_recall_and_errors_per_class_of_the_finest_task() -> None:
    tasks = TaskSet(
        [
            Task("property", "regression", unit="HV"),
            Task("steel", "classification", classes=("f", "m", "p")),
        ]
    )
    p = {"steel": torch.tensor([0, 1, 0, 2, 0]), "property": torch.tensor([210.0, 400.0, 550.0, 1.0, 1.0])}
    t = {"steel": torch.tensor([0, 0, 0, -1, 1]), "property": torch.tensor([200.0, 500.0, NAN, 1.0, NAN])}
    m = metrics((p, t, {}), tasks=tasks)
    tables = m.tables()
    assert list(tables) == ["steel"]
    assert tables["steel"]["m"] == {"count": 1, "accuracy": 0.0}
    assert "p" not in tables["steel"]
    row = tables["steel"]["f"]
    assert (row["count"], row["property/count"]) == (3, 2)
    assert row["accuracy"] == pytest.approx(2 / 3)
    assert row["property/mae"] == 55.0
    assert row["property/mse"] == 5050.0
    assert row["property/mape"] == pytest.approx(12.5)
    assert row["property/within_8"] == 0.5
    # The image without a class counts in the whole, not in a class.
    assert m.compute()["property/mae"] == pytest.approx(110 / 3)


def test_two_ranks_sums_add_up_to_the_whole() -> None:
    here, there = metrics(example(30, 1)), metrics(example(20, 2), example(5, 3))
    for a, b in zip((*here.sums, here.hierarchy), (*there.sums, there.hierarchy), strict=True):
        a.merge_state(b)  # by each state's dist_reduce_fx, as DDP does
    whole = metrics(example(30, 1), example(20, 2), example(5, 3))
    assert here.compute() == pytest.approx(whole.compute(), rel=1e-12)


def test_reset_forgets() -> None:
    m = metrics(example(30, 1))
    m.compute()
    m.reset()
    assert m.compute() == {}
    m.update(*example(30, 2))
    assert m.compute() == metrics(example(30, 2)).compute()


def test_sums_stay_exact_when_the_network_changes_its_dtype() -> None:
    m = TaskMetrics(CARS, "").to(torch.bfloat16)
    batches = [example(50, i) for i in range(8)]
    for batch in batches:
        m.update(*batch)
    assert m.compute() == metrics(*batches).compute()


def test_update_works_in_and_out_of_inference_mode() -> None:
    m = TaskMetrics(CARS, "")
    with torch.inference_mode():
        m.update(*example(20, 0))
        m.reset()
        m.update(*example(20, 1))
    m.update(*example(20, 2))
    assert copy.deepcopy(m).compute() == metrics(example(20, 1), example(20, 2)).compute()


def test_an_update_does_not_wait_for_the_device() -> None:
    batch = rows(example(8), slice(None))
    m = TaskMetrics(CARS, "").to("meta")
    # A meta tensor has no values: .item(), boolean-mask indexing or a branch on a value would raise.
    m.update(*({k: v.to("meta") for k, v in part.items()} for part in batch))


def test_predictions_of_another_shape_are_refused() -> None:
    p, t, s = example(6)
    with pytest.raises(ValueError, match="weight"):
        TaskMetrics(CARS, "").update({**p, "weight": p["weight"][:, None]}, t, s)


def test_metric_states_are_not_in_the_checkpoint() -> None:
    assert metrics(example(5)).state_dict() == {}
