"""Decodings of a hierarchy against enumeration of all its paths, and what they do to metrics."""

import itertools
import math
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtlcar.errors import UserError
from mtlcar.metrics.decoding import DECODINGS, decode_levels, probabilities
from mtlcar.metrics.tasks import TaskMetrics
from mtlcar.report.per_image import by_decoding
from mtlcar.tasks import Task, TaskSet

CARS = TaskSet(
    [
        Task("make", "classification", classes=("a", "b")),
        Task("model", "classification", classes=("a1", "a2", "b1", "b2"), parent="make"),
        Task("weight", "regression", unit="kg"),
    ],
    {"model": (0, 0, 1, 1)},
)
CHAIN = TaskSet(
    [
        Task("body", "classification", classes=("s", "t")),
        Task("make", "classification", classes=tuple("abcd"), parent="body"),
        Task("model", "classification", classes=tuple("pqrstuvw"), parent="make"),
    ],
    {"make": (1, 0, 0, 1), "model": (3, 0, 1, 1, 2, 0, 3, 2)},
)


@st.composite
def hierarchies(draw: st.DrawFn, childless: bool = True) -> TaskSet:
    """Up to 4 tasks, each below an earlier one or below none, in any order of classes."""
    tasks: list[Task] = []
    parent_of = {}
    for i in range(draw(st.integers(2, 4))):
        parent = draw(st.sampled_from([None, *tasks])) if i else None
        least = len(parent.classes) if parent and not childless else 2
        count = draw(st.integers(least, max(least, 4)))
        if parent is not None:
            above = st.integers(0, len(parent.classes) - 1)
            table = draw(st.lists(above, min_size=count, max_size=count))
            if not childless:
                table[: len(parent.classes)] = range(len(parent.classes))
            parent_of[f"t{i}"] = draw(st.permutations(table))
        name = None if parent is None else parent.name
        tasks.append(Task(f"t{i}", "classification", tuple(map(str, range(count))), parent=name))
    return TaskSet(tasks, parent_of)


def in_hierarchy(tasks: TaskSet) -> list[Task]:
    return [t for t in tasks if t.parent or any(other.parent == t.name for other in tasks)]


def random_scores(tasks: TaskSet, seed: int, n: int = 5) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {t.name: rng.dirichlet(np.full(len(t.classes), 0.5), n).astype(np.float32) + 1e-6 for t in tasks}


def known_levels(tasks: TaskSet, scored: set[str]) -> list[Task]:
    """Levels with scores, and those above them; every parent before its children."""
    return [
        t
        for t in in_hierarchy(tasks)
        if t.name in scored or any(o.name in scored and t.name in tasks.ancestors(o.name) for o in tasks)
    ]


def paths(tasks: TaskSet, known: list[Task]) -> Iterator[dict[str, int]]:
    """Every assignment of a class to each level that fits the one above; -1 only where there is no child."""
    if not known:
        yield {}
        return
    *before, last = known
    for path in paths(tasks, before):
        if last.parent is None:
            options = list(range(len(last.classes)))
        else:
            options = [c for c, above in enumerate(tasks.parent_of[last.name]) if above == path[last.parent]] or [-1]
        for c in options:
            yield {**path, last.name: c}


def brute_force_joint(tasks: TaskSet, scores: dict[str, np.ndarray], i: int) -> list[tuple[int, float]]:
    """(levels without a class, -log of the product) of every path of image i."""
    known = known_levels(tasks, set(scores))
    found = []
    for path in paths(tasks, known):
        chosen = [float(scores[name][i, c]) for name, c in path.items() if name in scores and c >= 0]
        found.append((sum(c < 0 for c in path.values()), -sum(map(math.log, chosen))))
    return found


@settings(deadline=None, max_examples=150)
@given(tasks=hierarchies(), seed=st.integers(0, 10_000), data=st.data())
def test_joint_is_the_best_of_all_paths(tasks: TaskSet, seed: int, data: st.DataObject) -> None:
    names = [t.name for t in in_hierarchy(tasks)]
    scored = set(names) - (data.draw(st.sets(st.sampled_from(names))) if names else set())
    scores = {name: p for name, p in random_scores(tasks, seed).items() if name in scored}
    found = decode_levels(scores, tasks, "joint")
    known = known_levels(tasks, scored)
    assert list(found) == [t.name for t in known]
    for i in range(5 if scored else 0):
        path = {name: int(classes[i]) for name, classes in found.items()}
        assert path in list(paths(tasks, known)), "it is a path"
        missing, cost = min(brute_force_joint(tasks, scores, i), key=lambda pair: (pair[0], pair[1]))
        own = [float(scores[name][i, c]) for name, c in path.items() if name in scores and c >= 0]
        assert sum(c < 0 for c in path.values()) == missing
        assert -sum(map(math.log, own)) == pytest.approx(cost, rel=1e-12)


@settings(deadline=None, max_examples=100)
@given(tasks=hierarchies(), seed=st.integers(0, 10_000))
def test_top_down_takes_the_best_child_of_the_class_above(tasks: TaskSet, seed: int) -> None:
    scores = random_scores(tasks, seed)
    found = decode_levels(scores, tasks, "top_down")
    known = in_hierarchy(tasks)
    whole = [path for path in paths(tasks, known) if min(path.values(), default=-1) >= 0]
    if not whole:
        return
    for i in range(5):
        chosen: dict[str, int] = {}
        for task in known:  # parents come first
            fits = {p[task.name] for p in whole if all(p[name] == c for name, c in chosen.items())}
            chosen[task.name] = max(sorted(fits), key=lambda c: scores[task.name][i, c])
        assert {name: int(classes[i]) for name, classes in found.items()} == chosen


@settings(deadline=None, max_examples=100)
@given(tasks=hierarchies(), seed=st.integers(0, 10_000))
def test_marginal_sums_the_finest_level(tasks: TaskSet, seed: int) -> None:
    scores = random_scores(tasks, seed)
    found, p = decode_levels(scores, tasks, "marginal"), probabilities(scores, tasks, "marginal")
    for task in in_hierarchy(tasks):
        below = [t for t in tasks if task.name in tasks.ancestors(t.name)]
        finest = max(below, key=lambda t: (tasks.depth(t.name), len(t.classes)), default=task)
        table = tasks.ancestor_table(finest.name, task.name)
        for i in range(5):
            sums = [math.fsum(float(x) for x, a in zip(scores[finest.name][i], table, strict=True) if a == c)
                    for c in range(len(task.classes))]  # fmt: skip
            assert p[task.name][i] == pytest.approx(sums, abs=1e-12)
            assert sums[found[task.name][i]] == pytest.approx(max(sums), rel=1e-12)


@settings(deadline=None, max_examples=100)
@given(tasks=hierarchies(childless=False), seed=st.integers(0, 10_000), data=st.data())
def test_joint_probabilities_are_sums_over_all_paths(tasks: TaskSet, seed: int, data: st.DataObject) -> None:
    names = [t.name for t in in_hierarchy(tasks)]
    scored = set(names) - (data.draw(st.sets(st.sampled_from(names))) if names else set())
    scores = {name: p for name, p in random_scores(tasks, seed).items() if name in scored}
    found = probabilities(scores, tasks, "joint")
    known = known_levels(tasks, scored)
    for i in range(5 if scored else 0):
        expected = {t.name: np.zeros(len(t.classes)) for t in known}
        total = 0.0
        for path in paths(tasks, known):
            product = math.prod(float(scores[name][i, c]) for name, c in path.items() if name in scores)
            total += product
            for name, c in path.items():
                expected[name][c] += product
        for name, values in expected.items():
            np.testing.assert_allclose(found[name][i], values / total, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("how", ["top_down", "joint", "marginal"])
def test_a_make_has_the_sum_of_its_models(how: str) -> None:
    p = probabilities(random_scores(CHAIN, 3, n=20), CHAIN, how)
    for child, parent in (("make", "body"), ("model", "make")):
        table = np.asarray(CHAIN.parent_of[child])
        for c in range(len(CHAIN[parent].classes)):
            np.testing.assert_allclose(p[child][:, table == c].sum(axis=1), p[parent][:, c], rtol=1e-12)
    if how != "marginal":
        np.testing.assert_allclose(p["body"].sum(axis=1), 1, rtol=1e-12)


def test_top_down_probabilities_keep_the_coarsest_level_and_the_ratios_of_siblings() -> None:
    scores = random_scores(CHAIN, 5, n=20)
    p = probabilities(scores, CHAIN, "top_down")
    own = scores["body"].astype(float)
    np.testing.assert_allclose(p["body"], own / own.sum(axis=1, keepdims=True), rtol=1e-12)
    q, r = 1, 5  # models of the same make
    assert CHAIN.parent_of["model"][q] == CHAIN.parent_of["model"][r]
    ratio = scores["model"][:, q].astype(float) / scores["model"][:, r]
    np.testing.assert_allclose(p["model"][:, q] / p["model"][:, r], ratio, rtol=1e-9)


def test_an_example_by_hand_in_which_all_four_differ() -> None:
    scores = {"make": np.array([[0.55, 0.45]]), "model": np.array([[0.24, 0.28, 0.40, 0.08]])}
    expected = {
        "independent": (0, 2),  # a, and b1 at odds with it
        "top_down": (0, 1),
        "marginal": (0, 2),  # 0.52 against 0.48
        "joint": (1, 2),  # 0.45 * 0.40 = 0.18 against 0.55 * 0.28 = 0.154
    }
    for how in DECODINGS:
        found = decode_levels(scores, CARS, how)
        assert (int(found["make"][0]), int(found["model"][0])) == expected[how], how
    scores["model"][0, :2] = 0.2, 0.2
    assert decode_levels(scores, CARS, "marginal")["make"][0] == 1, "the coarse head is not asked"
    total = 0.55 * 0.2 + 0.55 * 0.2 + 0.45 * 0.4 + 0.45 * 0.08
    p = probabilities(scores, CARS, "joint")
    assert p["make"][0].tolist() == pytest.approx([0.22 / total, 0.216 / total])
    assert p["make"][0].argmax() == 0, "the make with most probability, though the best path is b1's"
    assert decode_levels(scores, CARS, "joint")["make"][0] == 1


def test_with_one_scored_level_all_four_are_the_same() -> None:
    scores = random_scores(CHAIN, 1, n=50)
    table = CHAIN.ancestor_table("model", "body")
    for name, expected in (("model", ["body", "make", "model"]), ("make", ["body", "make"])):
        found = [decode_levels({name: scores[name]}, CHAIN, how) for how in DECODINGS]
        for one in found:
            assert list(one) == expected
            for level in expected:
                np.testing.assert_array_equal(one[level], found[0][level])
        np.testing.assert_array_equal(found[0][name], scores[name].argmax(axis=1))
    model = decode_levels({"model": scores["model"]}, CHAIN, "joint")
    assert model["body"].tolist() == [table[c] for c in model["model"]]


def test_a_level_without_scores_between_two_that_have_them_is_implied() -> None:
    scores = random_scores(CHAIN, 2, n=40)
    del scores["make"]
    bodies = np.asarray(CHAIN.ancestor_table("model", "body"))
    for how in DECODINGS:
        found = decode_levels(scores, CHAIN, how)
        np.testing.assert_array_equal(found["make"], np.asarray(CHAIN.parent_of["model"])[found["model"]])
    for i, (body, model) in enumerate(zip(scores["body"], scores["model"], strict=True)):
        found = decode_levels(scores, CHAIN, "top_down")
        inside = [c for c in range(8) if bodies[c] == body.argmax()]
        assert found["model"][i] == max(inside, key=lambda c: model[c])


def test_independent_is_what_the_network_said_and_other_tasks_stay() -> None:
    scores = random_scores(CARS.subset(["make", "model"]), 4, n=6)
    own = {
        "make": torch.tensor([1, 1, 1, 0, 0, 0]),
        "model": torch.tensor([0, 1, 2, 3, 0, 1]),
        "weight": torch.arange(6.0),
    }
    found = decode_levels(scores, CARS, "independent", own)
    assert list(found) == ["make", "model", "weight"]
    for name in ("make", "model"):
        assert found[name].dtype == np.int64
        np.testing.assert_array_equal(found[name], own[name])
    joint = decode_levels(scores, CARS, "joint", own)
    np.testing.assert_array_equal(joint["weight"], own["weight"])
    assert (np.asarray(CARS.parent_of["model"])[joint["model"]] == joint["make"]).all()
    assert list(decode_levels(scores, CARS, "joint")) == ["make", "model"]


def test_tensors_and_arrays_give_the_same() -> None:
    scores = random_scores(CHAIN, 6)
    tensors = {name: torch.from_numpy(p) for name, p in scores.items()}
    for how in DECODINGS:
        a, b = decode_levels(scores, CHAIN, how), decode_levels(tensors, CHAIN, how)
        assert {k: v.tolist() for k, v in a.items()} == {k: v.tolist() for k, v in b.items()}


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), models=st.permutations(range(8)), makes=st.permutations(range(4)))
def test_renaming_classes_renames_what_is_decoded(seed: int, models: list[int], makes: list[int]) -> None:
    """Class c becomes class `order.index(c)`."""
    scores = random_scores(CHAIN, seed, n=20)
    tasks = TaskSet(
        CHAIN,
        {
            "make": [CHAIN.parent_of["make"][c] for c in makes],
            "model": [makes.index(CHAIN.parent_of["model"][c]) for c in models],
        },
    )
    renamed = {"body": scores["body"], "make": scores["make"][:, makes], "model": scores["model"][:, models]}
    for how in DECODINGS:
        a, b = decode_levels(scores, CHAIN, how), decode_levels(renamed, tasks, how)
        np.testing.assert_array_equal(a["model"], np.asarray(models)[b["model"]])
        np.testing.assert_array_equal(a["make"], np.asarray(makes)[b["make"]])
        np.testing.assert_array_equal(a["body"], b["body"])


def test_ties_go_to_the_lowest_index() -> None:
    flat = {t.name: np.full((1, len(t.classes)), 1 / len(t.classes)) for t in CHAIN}
    for how in ("top_down", "joint"):
        found = {k: int(v[0]) for k, v in decode_levels(flat, CHAIN, how).items()}
        assert found == {"body": 0, "make": 1, "model": 2}, how  # the first of each level below the one above
    assert [int(v[0]) for v in decode_levels(flat, CHAIN, "independent").values()] == [0, 0, 0]


@pytest.mark.filterwarnings("error")
def test_probabilities_of_0_and_nan_give_a_path_and_no_warning() -> None:
    scores = {"make": np.array([[0, 1]], np.float32), "model": np.array([[0.9, 0.1, 0, 0]], np.float32)}
    found = decode_levels(scores, CARS, "joint")
    assert (int(found["make"][0]), int(found["model"][0])) == (1, 2), "1 * 1e-45 against 1e-45 * 0.9: still told apart"
    scores["model"] = np.array([[0.2, 0.8, 0, 0]], np.float32)
    scores["make"] = np.array([[0, 0]], np.float32)
    assert int(decode_levels(scores, CARS, "joint")["model"][0]) == 1, "zeros at one level do not hide the other"
    lost = {name: np.full_like(p, np.nan) for name, p in scores.items()}
    for how in DECODINGS:
        found = decode_levels(lost, CARS, how)
        assert all(0 <= int(v[0]) < len(CARS[k].classes) for k, v in found.items())
    for how in ("joint", "top_down"):
        for p in probabilities(scores, CARS, how).values():
            assert np.isfinite(p).all()


def test_no_image_no_hierarchy_and_no_scores_are_nothing_to_decode() -> None:
    empty = {"make": np.zeros((0, 2), np.float32), "model": np.zeros((0, 4), np.float32)}
    flat = TaskSet([Task("c", "classification", classes=("x", "y"))])
    for how in DECODINGS:
        assert {k: v.shape for k, v in decode_levels(empty, CARS, how).items()} == {"make": (0,), "model": (0,)}
        assert {k: v.shape for k, v in probabilities(empty, CARS, how).items()} == {"make": (0, 2), "model": (0, 4)}
        assert decode_levels({"c": np.ones((3, 2)) / 2}, flat, how) == {}
        assert decode_levels({}, CARS, how) == {}
        own = decode_levels({}, CARS, how, {"make": np.array([1, 0])})
        assert own["make"].tolist() == [1, 0]


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(UserError, match="Did you mean 'top_down'"):
        decode_levels({}, CARS, "topdown")
    with pytest.raises(ValueError, match="model"):
        decode_levels({"model": np.ones((3, 5))}, CARS, "joint")


def rows(seed: int, n: int = 80, missing: float = 0.2) -> dict[str, np.ndarray]:
    """What `PredictionCollector.rows` gives for CHAIN."""
    rng = np.random.default_rng(seed)
    model = rng.integers(0, 8, n)
    found: dict[str, np.ndarray] = {"index": np.arange(n)}
    for task in CHAIN:
        label = np.asarray(CHAIN.ancestor_table("model", task.name))[model]
        logits = rng.normal(size=(n, len(task.classes))) + 1.2 * np.eye(len(task.classes))[label]
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        found[f"{task.name}/scores"] = p.astype(np.float32)
        found[f"{task.name}/prediction"] = found[f"{task.name}/scores"].argmax(axis=1)
        found[f"{task.name}/target"] = np.where(rng.random(n) < missing, -1, label)
    return found


def metrics(table: dict[str, np.ndarray], predictions: dict[str, np.ndarray]) -> dict[str, float]:
    m = TaskMetrics(CHAIN, "")
    targets = {name: torch.from_numpy(table[f"{name}/target"]) for name in CHAIN.names}
    m.update({name: torch.from_numpy(p) for name, p in predictions.items()}, targets)
    return m.compute()


@pytest.mark.parametrize("seed", range(3))
def test_numbers_by_decoding_are_those_of_the_metrics(seed: int) -> None:
    """The report's numpy against TaskMetrics' torch, decoding by decoding."""
    table = rows(seed)
    scores = {name: table[f"{name}/scores"] for name in CHAIN.names}
    found = by_decoding(table, CHAIN)
    assert list(found) == list(DECODINGS)
    for how, values in found.items():
        expected = metrics(table, decode_levels(scores, CHAIN, how))
        assert values == pytest.approx({name: expected[name] for name in values}, rel=1e-12), how
        assert set(values) == {f"{name}/accuracy" for name in CHAIN.names} | {
            f"hierarchy/{kind}" for kind in ("consistency", "full_path_accuracy", "mistake_severity", "distance")
        }
    assert found["joint"]["hierarchy/consistency"] == found["top_down"]["hierarchy/consistency"] == 1.0
    assert found["independent"]["hierarchy/consistency"] < 1.0


def test_numbers_by_decoding_need_two_scored_levels() -> None:
    table = rows(0)
    for name in ("body", "make"):
        del table[f"{name}/scores"]
    assert by_decoding(table, CHAIN) == {}


def test_joint_is_never_less_likely_than_top_down() -> None:
    scores = random_scores(CHAIN, 9, n=200)

    def product(how: str) -> np.ndarray:
        found = decode_levels(scores, CHAIN, how)
        return np.prod([scores[name][np.arange(200), c] for name, c in found.items()], axis=0)

    assert (product("joint") >= product("top_down") * (1 - 1e-5)).all()
    assert (product("joint") > product("top_down") * 1.01).any()


def test_a_make_without_a_model_is_passed_over_where_others_have_one() -> None:
    tasks = TaskSet(
        [
            Task("make", "classification", classes=("a", "b", "c")),
            Task("model", "classification", classes=("a1", "c1"), parent="make"),
        ],
        {"model": (0, 2)},
    )
    scores = {"make": np.array([[0.1, 0.8, 0.1]]), "model": np.array([[0.3, 0.7]])}
    found = {how: [int(v[0]) for v in decode_levels(scores, tasks, how).values()] for how in DECODINGS}
    assert found == {"independent": [1, 1], "top_down": [0, 0], "marginal": [2, 1], "joint": [2, 1]}
    # Two tasks below make, no make with a child in both: the one that is missing has no class.
    split = TaskSet(
        [*tasks, Task("trim", "classification", classes=("x", "y"), parent="make")], {"model": (0, 2), "trim": (1, 1)}
    )
    scores["trim"] = np.array([[0.5, 0.5]])
    found = {how: [int(v[0]) for v in decode_levels(scores, split, how).values()] for how in ("top_down", "joint")}
    assert found == {"top_down": [1, -1, 0], "joint": [1, -1, 0]}


def test_nothing_here_needs_torch() -> None:
    """The report and `mtlcar runs` must not pay for its import."""
    code = "import sys, mtlcar.report.decodings, mtlcar.report.per_image; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120, check=False).returncode == 0


def test_all_products_of_levels_and_decodings_are_int64() -> None:
    scores = random_scores(CHAIN, 0)
    for how, name in itertools.product(DECODINGS, CHAIN.names):
        assert decode_levels(scores, CHAIN, how)[name].dtype == np.int64
