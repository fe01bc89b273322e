"""The data module: the batch contract, splits without damaged images, and resuming under Lightning."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from mtlcar.data.annotations import Annotations
from mtlcar.data.datamodule import MultiTaskData
from mtlcar.errors import UserError
from mtlcar.tasks import Task, TaskSet

N = 60


def write_images(root: Path) -> None:
    """Row i is a picture of one colour that tells i."""
    root.mkdir(parents=True, exist_ok=True)
    for i in range(N):
        Image.new("RGB", (10, 8), (4 * i, 255 - 4 * i, i)).save(root / f"{i:02d}.png")


def read(root: Path, levels: tuple[str, ...] = ("make", "model")) -> tuple[Annotations, TaskSet]:
    tasks = [
        Task("make", "classification", classes=("a", "b")),
        Task("model", "classification", classes=("a1", "a2", "b1", "b2"), parent="make"),
        Task("weight", "regression", unit="kg"),
    ]
    model = np.arange(N) % 4
    weight = np.arange(N, dtype=np.float32)
    weight[::7] = np.nan
    make = model // 2
    make[::11] = -1
    targets = {"make": make, "model": model, "weight": weight}
    chosen = [t for t in tasks if t.name in levels or t.kind == "regression"]
    paths = tuple(f"{i:02d}.png" for i in range(N))
    groups = np.array([f"car{i // 4 // 3}" for i in range(N)])
    annotations = Annotations(root, paths, {t.name: targets[t.name] for t in chosen}, np.array([""] * N), groups=groups)
    return annotations, TaskSet(chosen, {"model": (0, 0, 1, 1)} if "model" in levels and "make" in levels else None)


YAML = """
_target_: mtlcar.data.datamodule.MultiTaskData
name: numbers
root: null
read: {_target_: tests.test_datamodule.read, _partial_: true}
levels: [make, model]
image_size: 8
batch_size: 7
eval_batch_size: null
split: stratified
fractions: [0.6, 0.2, 0.2]
split_seed: 0
resize: stretch
box_margin: 0.0
on_bad_image: error
cache: true
augment: {flip: 0.5, brightness: 0.2}
"""


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    write_images(tmp_path / "cache" / "numbers")
    return tmp_path / "cache"


def make(folder: Path, seed: int = 0, **changes: Any) -> MultiTaskData:
    node = OmegaConf.merge(OmegaConf.create(YAML), changes)
    data: MultiTaskData = instantiate(node, _partial_=True)(cache_dir=folder, seed=seed)
    return data


def test_a_yaml_gives_batches_of_the_contract(cache: Path) -> None:
    data = make(cache)
    data.setup()
    data.setup("fit")
    assert {split: len(rows) for split, rows in data.indices.items()} == {"train": 36, "val": 12, "test": 12}
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        assert not isinstance(loader, list)
        for raw in loader:
            batch = data.on_after_batch_transfer(dict(raw))
            assert set(batch) == {"image", "target", "index"}
            rows = batch["index"]
            assert rows.dtype == torch.int64
            assert raw["image"].dtype == torch.uint8
            assert torch.equal(raw["image"][:, 0, 0, 0].long(), 4 * rows)
            assert batch["image"].dtype == torch.float32
            assert batch["image"].shape == (len(rows), 3, 8, 8)
            assert list(batch["target"]) == list(data.tasks.names) == ["make", "model", "weight"]
            for task, y in batch["target"].items():
                assert np.array_equal(y.numpy(), data.annotations.targets[task][rows.numpy()], equal_nan=True)
    train = torch.cat([batch["index"] for batch in data.train_dataloader()])
    assert len(train) == 35 == len(set(train.tolist()) & set(data.indices["train"].tolist()))
    assert data.steps_per_epoch == 5
    test = torch.cat([batch["index"] for batch in data.test_dataloader()])
    assert test.tolist() == data.indices["test"].tolist()


def test_evaluation_images_are_normalised_and_not_augmented(cache: Path) -> None:
    data = make(cache, augment={"flip": 0.5, "brightness": 0.9})
    data.set_normalization((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    data.setup()
    for raw in data.val_dataloader():
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)))
        expected = (raw["image"] / 255 - mean) / std
        batch = data.on_after_batch_transfer(raw)
        assert torch.allclose(batch["image"], expected, atol=1e-5)
        again = data.on_after_batch_transfer(batch)
        assert again["image"] is batch["image"], "an image that is float already is left alone"


def test_missing_labels_stay_missing_and_are_not_counted(cache: Path) -> None:
    data = make(cache)
    data.setup()
    rows = data.indices["train"]
    y = data.train_targets
    assert np.array_equal(np.isnan(y["weight"].numpy()), rows % 7 == 0)
    assert np.array_equal(y["make"].numpy() == -1, rows % 11 == 0)


def test_the_same_seed_gives_the_same_batches_and_pixels_cached_or_streamed(cache: Path) -> None:
    def epochs(data: MultiTaskData) -> list[Tensor]:
        data.setup()
        loader = data.train_dataloader()
        return [torch.cat([data.on_after_batch_transfer(batch)["image"] for batch in loader]) for _ in range(2)]

    one, two = epochs(make(cache)), epochs(make(cache, cache=False))
    other = epochs(make(cache, seed=1))
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
    assert not torch.equal(one[0], one[1])
    assert not torch.equal(one[0], other[0])


def test_processes_share_the_work_of_one(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = make(cache, batch_size=8)
    alone.setup()
    expected = {}
    for batch in alone.train_dataloader():
        images = alone.on_after_batch_transfer(batch)["image"]
        expected |= {int(row): image for row, image in zip(batch["index"], images, strict=True)}
    seen: dict[int, Tensor] = {}
    for rank in range(2):
        data = make(cache, batch_size=8)
        trainer = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
        monkeypatch.setattr(type(trainer), "global_rank", rank)
        monkeypatch.setattr(type(trainer), "world_size", 2)
        data.trainer = trainer
        data.setup()
        assert data.steps_per_epoch == 4 == alone.steps_per_epoch
        for batch in data.train_dataloader():
            images = data.on_after_batch_transfer(batch)["image"]
            assert len(images) == 4
            assert not set(batch["index"].tolist()) & set(seen)
            seen |= {int(row): image for row, image in zip(batch["index"], images, strict=True)}
    assert set(seen) == set(expected)
    assert all(torch.equal(seen[row], expected[row]) for row in seen), "augmented as in one process"


def test_skipped_images_are_in_no_split(cache: Path) -> None:
    whole = make(cache)
    whole.setup()
    (cache / "numbers" / "13.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"13\.png"):
        make(cache).setup()
    data = make(cache, on_bad_image="skip")
    data.setup()
    assert len(data.annotations) == N, "rows keep their numbers"
    for split, rows in data.indices.items():
        assert rows.tolist() == [row for row in whole.indices[split] if row != 13]


def test_a_class_that_loses_its_training_images_is_an_error(cache: Path) -> None:
    first = make(cache)
    first.setup()
    model = first.annotations.targets["model"]
    for row in first.indices["train"]:
        if model[row] == 3:
            (cache / "numbers" / f"{row:02d}.png").write_bytes(b"")
    lost = sum(model[first.indices["train"]] == 3)
    assert lost > 5, "more than skip allows"
    with pytest.raises(UserError, match="at most 5 of 60"):
        make(cache, on_bad_image="skip").setup()


def test_a_class_that_skipping_leaves_without_training_images_is_an_error(cache: Path) -> None:
    few: dict[str, Any] = {"fractions": [0.2, 0.4, 0.4], "on_bad_image": "skip"}
    first = make(cache, **few)
    first.setup()
    lost = [row for row in first.indices["train"] if first.annotations.targets["model"][row] == 3]
    assert 0 < len(lost) <= 5, "skip allows as many"
    for row in lost:
        (cache / "numbers" / f"{row:02d}.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"Task 'model': 1 class \('b2'\) in the test split, never seen in training"):
        make(cache, **few).setup()


def test_the_digest_follows_labels_tasks_and_paths_but_not_the_place(cache: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "elsewhere")
    data = make(cache)
    assert not hasattr(data, "store")
    digest = data.digest()
    assert not hasattr(data, "store"), "no image is opened for it"
    assert make(cache, root=str(tmp_path / "elsewhere")).digest() == digest
    assert make(cache, image_size=16, augment={}).digest() == digest
    assert make(cache, levels=["make"]).digest() != digest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augment": {"flips": 0.5}}, r"no key 'flips'.*'flip'"),
        ({"augment": {"hue": 3}}, r"data\.augment\.hue"),
        ({"resize": "strech"}, r"data\.resize.*'stretch'"),
        ({"image_size": 0}, r"data\.image_size"),
        ({"batch_size": 0}, r"data\.batch_size"),
        ({"on_bad_image": "ignore"}, r"data\.on_bad_image"),
        ({"split": "random"}, r"data\.split"),
    ],
)
def test_a_wrong_setting_is_explained(changes: dict[str, Any], message: str, cache: Path) -> None:
    node = OmegaConf.merge(OmegaConf.create(YAML), changes)
    if "augment" in changes:
        node.augment = changes["augment"]
    with pytest.raises(UserError, match=message):
        instantiate(node, _partial_=True)(cache_dir=cache).setup()


# Under Lightning


class Recorder(pl.LightningModule):
    """Notes the images it saw; stops, as a crash would, before a given batch of an epoch."""

    def __init__(self, die: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, list[int], float]] = []
        self.validated: list[int] = []
        self.die = die

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        if self.die == (self.current_epoch, batch_idx):
            raise RuntimeError("power cut")
        checksum = float(batch["image"].double().sum())
        self.seen.append((self.current_epoch, batch["index"].tolist(), checksum))
        return self.weight * batch["image"].mean()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.validated += batch["index"].tolist()

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.validated += batch["index"].tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder: Path, limit: float | int = 1.0, epochs: int = 3, save: dict[str, Any] | None = None) -> pl.Trainer:
    checkpoint = ModelCheckpoint(dirpath=folder, filename="last", enable_version_counter=False, **(save or {}))
    return pl.Trainer(
        max_epochs=epochs,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[checkpoint],
        accelerator="cpu",
        limit_train_batches=limit,
        num_sanity_val_steps=1,
    )


# Lightning 2.6 builds a LeafSpec in its CombinedLoader, which torch 2.15 deprecates
lightning_works = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")


@lightning_works
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")  # that is what resuming means
@pytest.mark.parametrize("limit", [1.0, 3], ids=["whole", "limited"])
@pytest.mark.parametrize(
    ("save", "die"),
    [
        ({"every_n_train_steps": 1}, (1, 2)),
        ({"every_n_train_steps": 1}, (1, 0)),
        ({"every_n_train_steps": 2}, (2, 1)),
        ({"every_n_epochs": 1, "save_on_train_epoch_end": False}, (1, 2)),
        ({"every_n_epochs": 1, "save_on_train_epoch_end": True}, (2, 1)),
    ],
    ids=["in an epoch", "epoch start", "every 2", "after validation", "epoch end"],
)
def test_a_resumed_run_sees_the_images_of_an_uninterrupted_one(
    save: dict[str, Any], die: tuple[int, int], limit: float | int, cache: Path, tmp_path: Path
) -> None:
    whole = Recorder()
    trainer(tmp_path / "whole", limit, save=save).fit(whole, datamodule=make(cache))
    steps = 5 if limit == 1.0 else 3
    assert len(whole.seen) == 3 * steps
    assert len({checksum for _, _, checksum in whole.seen}) == len(whole.seen)

    first, resumed = Recorder(die), Recorder()
    with pytest.raises(RuntimeError, match="power cut"):
        trainer(tmp_path / "cut", limit, save=save).fit(first, datamodule=make(cache))
    last = tmp_path / "cut" / "last.ckpt"
    saved = torch.load(last, weights_only=True)["global_step"]
    data = make(cache)
    trainer(tmp_path / "cut", limit, save=save).fit(resumed, datamodule=data, ckpt_path=last, weights_only=True)
    assert first.seen[:saved] + resumed.seen == whole.seen
    assert set(resumed.validated) == set(data.indices["val"].tolist())


@lightning_works
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_training_does_not_go_on_with_other_data(cache: Path, tmp_path: Path) -> None:
    trainer(tmp_path / "run", epochs=1).fit(Recorder(), datamodule=make(cache))
    last = tmp_path / "run" / "last.ckpt"
    other, again = make(cache, levels=["make"]), trainer(tmp_path / "run", epochs=2)
    with pytest.raises(UserError, match="other data"):
        again.fit(Recorder(), datamodule=other, ckpt_path=last, weights_only=True)
    module, data = Recorder(), make(cache, levels=["make"])
    trainer(tmp_path / "run").test(module, datamodule=data, ckpt_path=last, weights_only=True, verbose=False)
    assert module.validated == data.indices["test"].tolist(), "evaluation on other data is allowed"


@lightning_works
@pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero")  # Lightning's hint that val is empty
def test_a_split_without_images_is_no_loader(cache: Path, tmp_path: Path) -> None:
    data = make(cache, fractions=[1.0, 0.0, 0.0])
    data.setup()
    assert data.val_dataloader() == data.test_dataloader() == []
    module = Recorder()
    trainer(tmp_path / "run", epochs=1).fit(module, datamodule=data)
    assert len(module.seen) == data.steps_per_epoch == 8
    assert not module.validated
