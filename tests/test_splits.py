"""Splits never overlap, keep their sizes, classes and groups, and depend on nothing but the seed."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mtlcar.data.annotations import Annotations
from mtlcar.data.split_counts import stratified_counts
from mtlcar.data.splits import SPLITS, make_splits
from mtlcar.errors import UserError
from mtlcar.tasks import Task, TaskSet
from tests.layout_samples import output_with_hash_seed

FRACTIONS = ([0.8, 0.1, 0.1], [0.7, 0.1, 0.2], [0.7, 0.15, 0.15], [0.5, 0.25, 0.25], [0.8, 0.2, 0.0], [1.0, 0.0, 0.0])


def one_task(classes: int) -> TaskSet:
    return TaskSet([Task("model", "classification", tuple(f"c{i}" for i in range(max(2, classes))))])


def table(label, split="", groups=None, **more) -> Annotations:
    label = np.asarray(label, dtype=np.int64)
    n = len(label)
    return Annotations(
        root=Path("data"),
        paths=tuple(f"{i:05d}.jpg" for i in range(n)),
        targets={"model": label} | {k: np.asarray(v, dtype=np.int64) for k, v in more.items()},
        split=np.asarray(split if not isinstance(split, str) else [split] * n, dtype="<U5"),
        groups=None if groups is None else np.asarray(groups),
    )


def counts(annotations: Annotations, rows: dict[str, np.ndarray], classes: int) -> np.ndarray:
    y = annotations.targets["model"]
    return np.stack([np.bincount(y[rows[s]][y[rows[s]] >= 0], minlength=classes) for s in SPLITS], axis=1)


sizes_of_classes = st.lists(st.integers(1, 60), min_size=2, max_size=25)


@settings(deadline=None, max_examples=150)
@given(sizes=sizes_of_classes, fractions=st.sampled_from(FRACTIONS), seed=st.integers(0, 99), missing=st.integers(0, 5))
def test_stratified_splits_divide_all_rows_and_cover_classes(sizes, fractions, seed, missing):
    label = np.concatenate([np.repeat(np.arange(len(sizes)), sizes), np.full(missing, -1)])
    annotations = table(np.random.default_rng(seed).permutation(label))
    rows = make_splits(annotations, one_task(len(sizes)), "stratified", fractions, seed)
    joined = np.concatenate([rows[s] for s in SPLITS])
    assert sorted(joined.tolist()) == list(range(len(label)))
    assert all(r.dtype == np.int64 and (np.diff(r) > 0).all() for r in rows.values())
    per_class = counts(annotations, rows, len(sizes))
    used = np.array(fractions) > 0
    enough = np.array(sizes) >= used.sum()
    assert (per_class[enough][:, used] > 0).all()
    assert (per_class[:, 0] > 0).all()
    assert (per_class[:, ~used] == 0).all()
    assert (annotations.targets["model"][np.concatenate([rows["val"], rows["test"]])] >= 0).all()
    large = np.array(sizes) * min(f for f in fractions if f > 0) >= 1
    assert (np.abs(per_class - np.outer(sizes, fractions))[large] < 1 + 1e-9).all()


@settings(deadline=None, max_examples=150)
@given(sizes=st.lists(st.integers(10, 300), min_size=2, max_size=60), fractions=st.sampled_from(FRACTIONS))
@example(sizes=[15, 168, 168, 205, 205], fractions=[0.7, 0.1, 0.2])  # no class can move directly
def test_stratified_sizes_are_the_fractions_rounded(sizes, fractions):
    per_class = stratified_counts(np.array(sizes), np.array(fractions))
    assert per_class.sum(axis=1).tolist() == sizes
    assert (np.abs(per_class.sum(axis=0) - sum(sizes) * np.array(fractions)) < 1).all()
    assert (np.abs(per_class - np.outer(sizes, fractions)) < 1 + 1e-9).all()


def test_seeds_differ_and_repeat():
    annotations = table(np.arange(200) % 5)
    a, b, c = (make_splits(annotations, one_task(5), "stratified", [0.8, 0.1, 0.1], s) for s in (0, 0, 1))
    assert all((a[s] == b[s]).all() for s in SPLITS)
    assert not np.array_equal(a["test"], c["test"])


@pytest.mark.parametrize("split", ["stratified", "grouped", "official"])
def test_row_order_does_not_matter(split):
    rng = np.random.default_rng(0)
    annotations = table(np.arange(300) % 6, ["train"] * 200 + ["test"] * 100, [f"g{i % 60:02d}" for i in range(300)])
    other = annotations.select(rng.permutation(300))
    chosen = [make_splits(a, one_task(6), split, [0.7, 0.15, 0.15], 3) for a in (annotations, other)]
    for s in SPLITS:
        assert {annotations.paths[i] for i in chosen[0][s]} == {other.paths[i] for i in chosen[1][s]}


@settings(deadline=None, max_examples=100)
@given(
    groups=st.lists(st.tuples(st.integers(0, 5), st.integers(1, 20)), min_size=6, max_size=60),
    fractions=st.sampled_from(FRACTIONS),
    seed=st.integers(0, 99),
    mixed=st.booleans(),
)
def test_groups_never_cross_and_training_has_every_class(groups, fractions, seed, mixed):
    kinds = sorted({c for c, _ in groups})
    label = np.concatenate([np.full(n, kinds.index(c)) for c, n in groups])
    group = np.concatenate([np.full(n, g) for g, (_, n) in enumerate(groups)])
    if mixed:
        label = np.random.default_rng(seed).permutation(label)
    annotations = table(label, groups=group.astype(str))
    used = np.array(fractions) > 0
    if len(kinds) < 2:
        return
    rows = make_splits(annotations, one_task(len(kinds)), "grouped", fractions, seed)
    sets = [set(group[rows[s]].tolist()) for s in SPLITS]
    assert sum(map(len, sets)) == len(set.union(*sets)) == len(groups)
    per_class = counts(annotations, rows, len(kinds))
    assert (per_class[:, 0] > 0).all()
    assert (per_class[:, ~used] == 0).all()
    if not mixed:
        enough = np.bincount([kinds.index(c) for c, _ in groups]) >= used.sum()
        assert (per_class[enough][:, used] > 0).all()


def test_grouped_sizes_are_near_the_fractions_with_many_groups():
    rng = np.random.default_rng(0)
    size = rng.integers(1, 30, 250)
    label = np.repeat(np.arange(250) % 6, size)
    annotations = table(label, groups=np.repeat(np.arange(250), size).astype(str))
    rows = make_splits(annotations, one_task(6), "grouped", [0.7, 0.15, 0.15], 0)
    share = counts(annotations, rows, 6) / np.bincount(label)[:, None]
    assert np.abs(share - [0.7, 0.15, 0.15]).max() < 0.04


def test_official_uses_the_publishers_splits_and_leaves_the_rest_out():
    annotations = table([0, 1, 0, 1, 0, 1, 0], ["train", "train", "val", "val", "test", "test", ""])
    rows = make_splits(annotations, one_task(2), "official", [0.8, 0.1, 0.1], 0)
    assert {s: r.tolist() for s, r in rows.items()} == {"train": [0, 1], "val": [2, 3], "test": [4, 5]}


def test_official_without_validation_takes_its_share_from_training():
    annotations = table(np.arange(300) % 3, ["train"] * 200 + ["test"] * 100)
    rows = make_splits(annotations, one_task(3), "official", [0.6, 0.2, 0.2], 0)
    assert rows["test"].tolist() == list(range(200, 300))
    assert len(rows["val"]) == 50
    assert len(rows["train"]) == 150
    assert not set(rows["val"]) & set(rows["train"])


@pytest.mark.parametrize(("split", "missing"), [("train", "test"), ("test", "train"), ("", "train")])
def test_official_without_test_or_train_images_advises_stratified(split, missing):
    with pytest.raises(UserError, match=rf"no labelled {missing} images.*data\.split=stratified"):
        make_splits(table([0, 1], split), one_task(2), "official", [0.8, 0.1, 0.1], 0)


def test_a_class_of_the_test_split_unseen_in_training_is_named():
    annotations = table([0, 1, 0, 2], ["train", "train", "test", "test"])
    with pytest.raises(UserError, match=r"Task 'model': 1 class \('c2'\) in the test split, never seen in training"):
        make_splits(annotations, one_task(3), "official", [0.8, 0.0, 0.2], 0)


@pytest.mark.parametrize("split", ["stratified", "grouped", "official"])
def test_an_empty_class_is_named(split):
    annotations = table(np.arange(40) % 2, ["train", "train", "test", "test"] * 10, groups=np.arange(40).astype(str))
    with pytest.raises(UserError, match=r"1 class \('c2'\) without a single image"):
        make_splits(annotations, one_task(3), split, [0.8, 0.1, 0.1], 0)


def test_training_gets_every_class_of_the_other_tasks_too():
    label = np.arange(400) % 4
    year = np.full(400, 0)
    year[::37] = 1 + np.arange(len(year[::37])) // 2
    tasks = TaskSet([*one_task(4), Task("year", "classification", tuple(f"y{i}" for i in range(year.max() + 1)))])
    tasks = TaskSet(tasks, {})
    annotations = table(label, year=year)
    for seed in range(20):
        rows = make_splits(annotations, tasks, "stratified", [0.5, 0.25, 0.25], seed)
        assert set(year[rows["train"]]) == set(year)


def test_regression_alone_is_split_at_random():
    annotations = table(np.zeros(50))
    rows = make_splits(
        annotations, TaskSet([Task("weight", "regression", unit="kg")]), "stratified", [0.8, 0.1, 0.1], 0
    )
    assert [len(rows[s]) for s in SPLITS] == [40, 5, 5]


@pytest.mark.parametrize(
    "fractions", [[0.8, 0.1], [0.8, 0.1, 0.2], [0.0, 0.5, 0.5], [1.1, -0.1, 0.0], ["a", 0, 1], [float("nan"), 0.5, 0.5]]
)
def test_bad_fractions_are_refused(fractions):
    with pytest.raises(UserError, match="sum to 1"):
        make_splits(table([0, 1]), one_task(2), "stratified", fractions, 0)


def test_bad_split_names_and_missing_groups_are_refused():
    with pytest.raises(UserError, match="Did you mean 'stratified'"):
        make_splits(table([0, 1]), one_task(2), "stratifed", [0.8, 0.1, 0.1], 0)
    with pytest.raises(UserError, match="no groups"):
        make_splits(table([0, 1]), one_task(2), "grouped", [0.8, 0.1, 0.1], 0)
    with pytest.raises(UserError, match=r"at least 3 groups\. Found 2"):
        make_splits(table([0, 1], groups=["a", "b"]), one_task(2), "grouped", [0.8, 0.1, 0.1], 0)


def test_splits_do_not_depend_on_the_hash_seed():
    code = (
        "from tests.test_splits import *\n"
        "a = table(np.arange(90) % 7, groups=[f'g{i % 31}' for i in range(90)])\n"
        "print([{s: r.tolist() for s, r in make_splits(a, one_task(7), k, [.7, .1, .2], 1).items()}"
        " for k in ('stratified', 'grouped')])"
    )
    assert output_with_hash_seed(code, 1) == output_with_hash_seed(code, 2)
