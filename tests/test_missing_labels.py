"""Which training labels are hidden, that nothing else is, and that every method still trains."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from mtlcar.build import build
from mtlcar.config import compose_config, finish
from mtlcar.data.datamodule import MultiTaskData
from mtlcar.data.missing_labels import thin_labels
from mtlcar.data.options import read_annotations
from mtlcar.errors import UserError
from mtlcar.runs.training import make_trainer
from mtlcar.sweeps.cells import CellMaker
from mtlcar.tasks import Task, TaskSet
from tests.test_datamodule import make, write_images

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")

TASKS = TaskSet(
    [
        Task("make", "classification", classes=("a", "b", "c")),
        Task("model", "classification", classes=tuple("pqrst"), parent="make"),
        Task("weight", "regression", unit="kg"),
    ],
    {"model": (0, 0, 1, 1, 2)},
)
N = 200


def labels(seed: int = 0, missing: float = 0.1) -> dict[str, np.ndarray]:
    """Classes of very different sizes, some labels missing from the start."""
    rng = np.random.default_rng(seed)
    model = rng.choice(5, N, p=[0.5, 0.25, 0.15, 0.07, 0.03])
    model[:5] = range(5)
    weight = rng.normal(1000, 100, N).astype(np.float32)
    weight[rng.random(N) < missing] = np.nan
    targets = {"make": np.array([0, 0, 1, 1, 2])[model], "model": model.copy(), "weight": weight}
    for name in ("make", "model"):
        hidden = rng.random(N) < missing
        hidden[:5] = False
        targets[name][hidden] = -1
    return targets


PATHS = tuple(f"car/{i:04d}.png" for i in range(N))
TRAIN = np.arange(0, 150)


def known(y: np.ndarray) -> np.ndarray:
    return np.flatnonzero(~np.isnan(y) if y.dtype.kind == "f" else y >= 0)


@given(share=st.floats(0.005, 1.0), seed=st.integers(0, 50), task=st.sampled_from(TASKS.names))
def test_the_share_is_kept_evenly_over_the_classes_and_nothing_else_changes(share: float, seed: int, task: str) -> None:
    before = labels()
    after = thin_labels(before, TASKS, PATHS, TRAIN, {task: share}, seed)
    assert after.keys() == before.keys()
    for name in TASKS.names:
        if name != task:
            np.testing.assert_array_equal(after[name], before[name])
    was, now = np.intersect1d(known(before[task]), TRAIN), np.intersect1d(known(after[task]), TRAIN)
    assert set(now) <= set(was)
    np.testing.assert_array_equal(after[task][now], before[task][now])
    np.testing.assert_array_equal(after[task][150:], before[task][150:])
    classes = before["model"] if task == "weight" else before[task]
    size = Counter(classes[was].tolist())
    kept = Counter(classes[now].tolist())
    assert len(now) == max(len(size), round(share * len(was)))
    assert set(kept) == set(size)
    first = sum(1 for n in size.values() if n * share < 1)  # classes that are kept from vanishing take from the others
    for c, n in size.items():
        assert abs(kept[c] - share * n) <= 1.5 + first * share * n / max(1.0, share * len(was))


def test_greater_shares_keep_what_smaller_ones_kept_and_other_seeds_other_images() -> None:
    targets = labels()
    kept = [set(known(thin_labels(targets, TASKS, PATHS, TRAIN, {"model": s}, 0)["model"])) for s in (0.1, 0.3, 0.6, 1)]
    assert kept[0] < kept[1] < kept[2] < kept[3] == set(known(targets["model"]))
    other = set(known(thin_labels(targets, TASKS, PATHS, TRAIN, {"model": 0.3}, 1)["model"]))
    assert len(other) == len(kept[1])
    assert other != kept[1]


def test_the_choice_does_not_depend_on_the_order_of_the_images_nor_on_other_splits() -> None:
    targets, order = labels(), np.random.default_rng(5).permutation(N)
    one = thin_labels(targets, TASKS, PATHS, TRAIN, {"model": 0.2, "weight": 0.5}, 7)
    shuffled = {k: y[order] for k, y in targets.items()}
    train = np.flatnonzero(np.isin(order, TRAIN))
    two = thin_labels(shuffled, TASKS, [PATHS[i] for i in order], train, {"model": 0.2, "weight": 0.5}, 7)
    for name in TASKS.names:
        np.testing.assert_array_equal(one[name][order], two[name])


def test_a_class_and_a_value_of_the_same_share_stay_on_the_same_images() -> None:
    """So that one task of both (FastCAR) has as many images as each, and one of every class."""
    targets = labels(missing=0.0)
    found = thin_labels(targets, TASKS, PATHS, TRAIN, {"model": 0.08, "weight": 0.08}, 0)
    np.testing.assert_array_equal(known(found["model"]), known(found["weight"]))
    assert set(found["model"][known(found["weight"])]) == set(range(5))


@pytest.mark.parametrize(
    ("given_", "says"),
    [
        ({"modle": 0.1}, "no task 'modle'; there are make, model, weight. Did you mean 'model'"),
        ({"model": 0}, r"data\.label_fraction\.model should be a number above 0 and at most 1. Found 0"),
        ({"model": 1.5}, "at most 1. Found 1.5"),
        ({"model": None}, "Found None"),
        ({"model": float("nan")}, "Found nan"),
        (0.1, "shares by task"),
        (["model"], "shares by task"),
    ],
)
def test_bad_shares_are_refused(given_: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        thin_labels(labels(), TASKS, PATHS, TRAIN, given_, 0)


# --- the data module -----------------------------------------------------------------------------------------------


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    write_images(tmp_path / "cache" / "numbers")
    return tmp_path / "cache"


def hidden(data: MultiTaskData, task: str, split: str) -> int:
    rows = data.indices[split]
    now, was = data.targets[task].numpy()[rows], data.annotations.targets[task][rows]
    return len(known(was)) - len(known(now))


def test_only_training_batches_lack_labels_and_the_digest_is_of_the_files(numbers: Path) -> None:
    plain, thin = make(numbers), make(numbers, label_fraction={"model": 0.25, "weight": 0.5})
    for data in (plain, thin):
        data.setup()
    assert [hidden(thin, "model", split) for split in ("train", "val", "test")] == [27, 0, 0]
    assert hidden(thin, "weight", "train") > 10
    assert hidden(thin, "make", "train") == hidden(plain, "model", "train") == 0
    assert thin.digest() == plain.digest()
    batches: list[Any] = list(thin.train_dataloader())
    seen = {name: torch.cat([b["target"][name] for b in batches]) for name in ("make", "model")}
    assert int((seen["model"] >= 0).sum()) <= 9 < int((seen["make"] >= 0).sum())
    assert len(known(thin.train_targets["model"].numpy())) == 9
    for loader in (thin.val_dataloader(), thin.test_dataloader()):
        batches = list(loader)
        assert all((batch["target"]["model"] >= 0).all() for batch in batches)


def test_a_damaged_image_does_not_take_the_only_label_of_a_class_with_it(numbers: Path) -> None:
    first = make(numbers, label_fraction={"model": 0.01})
    first.setup()
    kept = known(first.train_targets["model"].numpy())
    assert len(kept) == 4
    victim = first.annotations.file(int(first.indices["train"][kept[0]]))
    victim.write_bytes(victim.read_bytes()[:30])
    again = make(numbers, label_fraction={"model": 0.01}, on_bad_image="skip")
    again.cache_dir = again.cache_dir / "other"
    again.root = numbers / "numbers"
    again.setup()
    assert len(again.store.bad) == 1
    left = again.train_targets["model"].numpy()
    assert set(left[known(left)].tolist()) == {0, 1, 2, 3}


def test_a_class_that_no_training_image_has_is_found_as_before(numbers: Path) -> None:
    data = make(numbers, label_fraction={"model": 0.5})

    def without(root: Path, **options: Any) -> Any:
        annotations, tasks = read_plain(root, **options)
        annotations.targets["model"][annotations.targets["model"] == 3] = -1
        return annotations, tasks

    read_plain, data.read = data.read, without
    with pytest.raises(UserError, match="'b2'"):
        data.load()


# --- training ------------------------------------------------------------------------------------------------------

CARS = ("data.makes=2", "data.models_per_make=2", "data.images=96", "data.size=48", "data.image_size=32",
        "data.batch_size=8", "trainer=cpu", "threads=1", "logger=none", "trainer.max_epochs=1")  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def config(cache: Path, *overrides: str) -> Any:
    cfg = finish(compose_config([*CARS, f"paths.cache={cache}", f"paths.runs={cache / 'runs'}", *overrides]))
    OmegaConf.resolve(cfg)
    return cfg


@pytest.mark.parametrize(
    "overrides",
    [
        ("architecture=parallel",),
        ("architecture=single",),
        ("architecture=cascade", "architecture.feed=label"),
        ("architecture=cascade", "architecture.feed=softmax", "loss.matching=1"),
        ("weighting=pcgrad", "weighting.level=representation"),
        ("weighting=mgda", "weighting.level=parameters"),
        ("weighting=nash_mtl",),
        ("weighting=gradnorm",),
        ("weighting=graddrop", "weighting.level=representation"),
        ("weighting=uncertainty", "loss.matching=1", "loss.matching_kind=kl"),
        ("data.levels=[model,weight]", "label_transform=fastcar", "data.label_fraction={model:0.1,weight:0.1}"),
        ("data.levels=[model,weight]", "label_transform=class_mean", "data.label_fraction={weight:0.1}"),
    ],
    ids=lambda overrides: "-".join(o.split("=")[1] for o in overrides[:2]),
)
def test_methods_train_with_few_labels_of_the_fine_task(cache: Path, overrides: tuple[str, ...]) -> None:
    own = any(override.startswith("data.label_fraction") for override in overrides)
    cfg = config(cache, *(() if own else ("data.label_fraction={model:0.1}",)), *overrides)
    torch.manual_seed(0)
    built = build(cfg)
    before = [p.detach().clone() for p in built.module.architecture.parameters()]
    runner = make_trainer(cfg, [], [], cache)
    runner.fit(built.module, datamodule=built.data, weights_only=True)
    assert built.module.finite.read(built.module.architecture.tasks.names) is None
    moved = [bool((p != b).any()) for p, b in zip(built.module.architecture.parameters(), before, strict=True)]
    assert np.mean(moved) > 0.9
    assert all(np.isfinite(float(v)) for k, v in runner.callback_metrics.items() if k.startswith("val/"))


def test_the_share_is_part_of_the_configuration_and_not_of_the_readers_options(cache: Path) -> None:
    cfg = config(cache, "data.label_fraction={make:1.0,model:0.1}")
    _, tasks = read_annotations(cfg.data, cache)
    assert tasks.names == ("make", "model")
    assert OmegaConf.to_container(cfg.data)["label_fraction"] == {"make": 1.0, "model": 0.1}  # type: ignore[call-overload, index]


def test_a_wrong_task_is_named_when_the_data_is_loaded(cache: Path) -> None:
    with pytest.raises(UserError, match="no task 'class'; there are make, model"):
        build(config(cache, "data.label_fraction={class:0.1}"))


def test_a_wrong_task_is_named_before_a_sweep_starts(cache: Path) -> None:
    words = [*CARS, f"paths.cache={cache}", f"paths.runs={cache / 'runs'}"]
    with pytest.raises(UserError, match="no task 'class'; there are make, model"):
        CellMaker().make([*words, "data.label_fraction={class:0.1}"])
    assert CellMaker().make([*words, "data.label_fraction={model:0.1}"]).tasks.names == ("make", "model")
