"""`mtlcar bench pipeline`: both loaders feed the same step with the same images. No time is asserted."""

import json
import math
import multiprocessing
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from mtlcar.bench import pipeline, roofline
from mtlcar.bench.dataset_rig import DatasetRig
from mtlcar.bench.feeds import Feed, Stretch, feeds, read_through, stretch
from mtlcar.bench.plain import PadToSquare, transforms
from mtlcar.bench.timing import Paired
from mtlcar.cli import main
from mtlcar.data.augment import Augment
from tests.test_bench import SMALL, torch_settings

# Python 3.12 warns of every fork beside threads, and torch has some.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
KEYS = {
    "name", "augment", "images_per_second", "ratio_to_model_only", "ratio_low", "ratio_high", "step_ms", "wait_ms",
    "batches", "bytes_per_second",
}  # fmt: skip
CARS = ["data.makes=2", "data.models_per_make=2", "data.images=40", "data.size=40", "data.levels=[make,model,weight]"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [*SMALL, *CARS, f"paths.cache={tmp_path_factory.mktemp('cache')}"]


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(pipeline, "WARM_UP_EPOCHS", 1)
    monkeypatch.setattr(pipeline, "SECONDS", 0.0)
    monkeypatch.setattr(pipeline, "FEWEST", 3)
    monkeypatch.setattr(pipeline, "READ_SECONDS", 0.0)
    monkeypatch.setattr(roofline, "SECONDS", 0.0)
    monkeypatch.setattr(roofline, "MATRIX", {"cpu": 64})
    monkeypatch.setattr("gc.collect", lambda: 0)
    before = torch_settings()
    yield
    assert torch_settings() == before, "the command put back what it set"


@pytest.fixture
def three(small: list[str], request: pytest.FixtureRequest) -> Iterator[tuple[DatasetRig, dict[str, Feed]]]:
    """The feeds by name, without random augmentation unless the test asks for some."""
    cfg, _ = pipeline.configuration([*small, getattr(request, "param", "data.augment.flip=0")])
    with pipeline.settings(1):
        rig = DatasetRig(cfg)
        yield rig, {feed.name: feed for feed in feeds(rig.parts, rig, 2)}


def rows(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[list[dict[str, Any]], str]:
    """The rows and what was said next to them."""
    assert main(["bench", "pipeline", "--json", "--rounds", "1", *words]) == 0
    captured = capsys.readouterr()
    return json.loads(captured.out), captured.err


def epoch(feed: Feed, batches: int) -> dict[int, tuple[Tensor, dict[str, Tensor]]]:
    """index -> image and labels."""
    found: dict[int, tuple[Tensor, dict[str, Tensor]]] = {}
    made = feed.batches()
    for _ in range(batches):
        batch = feed.ready(next(made))
        for i, index in enumerate(batch["index"].tolist()):
            assert index not in found, "an image comes once in an epoch"
            found[index] = batch["image"][i], {task: y[i] for task, y in batch["target"].items()}
    made.close()
    return found


def test_both_augmentations_have_a_row_for_each_input(capsys: pytest.CaptureFixture[str], small: list[str]) -> None:
    found, err = rows(capsys, "--workers", "1", *small)
    names = ("model", "mtlcar", "plain")
    assert [(r["augment"], r["name"]) for r in found] == [(a, n) for a in pipeline.AUGMENTATIONS for n in names]
    for row in found:
        more = {"flops_per_second", "peak_flops_per_second"} if row["name"] == "model" else set()
        assert set(row) == KEYS | more
        numbers = [row[k] for k in (KEYS | more) - {"name", "augment", "bytes_per_second"}]
        assert all(math.isfinite(x) and x > 0 for x in numbers)
        assert row["ratio_low"] <= row["ratio_to_model_only"] <= row["ratio_high"]
        assert row["images_per_second"] == pytest.approx(4000 / row["step_ms"], rel=1e-3)
        assert row["wait_ms"] < row["step_ms"]
        assert row["batches"] == 3
        byte = {"model": 0, "mtlcar": 1, "plain": 4}[row["name"]]
        assert row["bytes_per_second"] == pytest.approx(row["images_per_second"] * byte * 3 * 32**2, rel=1e-3)
    assert {r["ratio_to_model_only"] for r in found if r["name"] == "model"} == {1.0}
    assert "1 threads" in err
    assert "1 worker processes" in err
    assert "GFLOP/s" in err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpus_copies_and_memory_are_reported(capsys: pytest.CaptureFixture[str], small: list[str]) -> None:
    words = [word for word in small if word != "trainer=cpu"]
    found, err = rows(capsys, "--workers", "2", "data.augment.flip=0.5", *words)
    assert [r["name"] for r in found] == ["model", "mtlcar", "plain"]
    assert "GB/s within the GPU" in err
    assert "tensors on the GPU" in err


def test_the_users_own_augmentation_is_measured_alone(capsys: pytest.CaptureFixture[str], small: list[str]) -> None:
    words = ["--workers", "0", "data.augment.hue=0.1", "data.augment.crop_scale=[0.3,1]", "data.cache=false"]
    assert main(["bench", "pipeline", "--rounds", "1", *words, *small]) == 0
    out = capsys.readouterr().out
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("|")]
    own = "flip=0.5 crop_scale=[0.3,1] crop_ratio=[0.75,1.3333] hue=0.1"
    assert [line[:2] for line in table[2:]] == [["model", own], ["mtlcar streamed", own], ["plain", own]]
    assert {len(line) for line in table} == {6}
    assert "synthetic_cars: tiny, 32 px, batch 4" in out


@pytest.mark.parametrize(
    ("three", "levels"), [("data.augment.flip=0", 1), ("data.augment={flip:0,brightness:1e-9}", 0)], indirect=["three"],
    ids=["tensors", "PIL pictures"],
)  # fmt: skip
def test_the_plain_loader_gives_our_pixels_and_labels(three: tuple[DatasetRig, dict[str, Feed]], levels: int) -> None:
    """Up to so many of 255 levels: torchvision's own resize is PIL's but for rounding."""
    rig, found = three
    tolerance = 1e-5 + levels / 255 / min(rig.architecture.backbone.std)
    n = len(rig.parts.data.train_dataloader())
    ours, plain = epoch(found["mtlcar"], n), epoch(found["plain"], n)
    both = ours.keys() & plain.keys()
    assert len(both) > 0.6 * len(rig.parts.data.indices["train"]) > 10, "an incomplete last batch is left out"
    for index in both:
        torch.testing.assert_close(plain[index][0], ours[index][0], rtol=0, atol=tolerance)
        assert plain[index][1].keys() == ours[index][1].keys() == {"make", "model", "weight"}
        for task, label in ours[index][1].items():
            assert plain[index][1][task] == label
            assert plain[index][1][task].dtype == label.dtype


@pytest.mark.parametrize("name", ["mtlcar", "plain"])
def test_every_step_has_a_batch_of_its_own_also_past_an_epoch(
    name: str, three: tuple[DatasetRig, dict[str, Feed]]
) -> None:
    feed = three[1][name]
    seen: list[tuple[int, ...]] = []
    for _ in range(2):
        stretch(feed, lambda batch: seen.append(tuple(batch["index"].tolist())), 6, lambda: None)
    assert len(seen) == 2 * (feed.ahead + 1 + 6) > 2 * len(three[0].parts.data.train_dataloader())
    assert len(set(seen)) == len(seen)


def test_the_model_alone_sees_one_batch(three: tuple[DatasetRig, dict[str, Feed]]) -> None:
    seen: list[Tensor] = []
    stretch(three[1]["model"], lambda batch: seen.append(batch["image"]), 3, lambda: None)
    assert len({image.data_ptr() for image in seen}) == 1


def test_what_the_queue_holds_is_used_up_before_the_clock_starts(three: tuple[DatasetRig, dict[str, Feed]]) -> None:
    rig, found = three
    assert found["plain"].ahead == 4, "two batches of two workers"
    assert found["mtlcar"].ahead > rig.parts.data.train_dataloader().prefetch
    said: list[str] = []
    stretch(found["plain"], lambda batch: said.append("step"), 2, lambda: said.append("wait"))
    assert said == [*["step"] * 5, "wait", "step", "step", "wait"]


@pytest.mark.parametrize("name", ["mtlcar", "plain"])
def test_a_stretch_leaves_no_thread_and_no_process(name: str, three: tuple[DatasetRig, dict[str, Feed]]) -> None:
    before = set(threading.enumerate())
    inside: list[tuple[bool, int]] = []

    def step(batch: dict[str, Any]) -> None:
        inside.append((set(threading.enumerate()) > before, len(multiprocessing.active_children())))

    feed = three[1][name]
    for use in (lambda: stretch(feed, step, 2, lambda: None), lambda: read_through(feed, 40, 4, 0.05)):
        use()
        assert not multiprocessing.active_children()
        for thread in set(threading.enumerate()) - before:
            thread.join(10)  # those of a closed queue take a moment
            assert not thread.is_alive()
    assert inside[0] == (True, 0 if name == "mtlcar" else 2), "while it lasts"


def test_the_step_trains(three: tuple[DatasetRig, dict[str, Feed]]) -> None:
    rig, found = three
    before = [p.detach().clone() for p in rig.architecture.parameters()]
    rig.optimizer.param_groups[0]["lr"] = 1e-2  # type: ignore[union-attr]
    batches = found["mtlcar"].batches()
    rig.step(found["mtlcar"].ready(next(batches)))
    batches.close()
    assert all((p != b).any() for p, b in zip(rig.architecture.parameters(), before, strict=True) if p.requires_grad)


def test_a_ratio_is_to_the_model_of_the_same_round(monkeypatch: pytest.MonkeyPatch) -> None:
    ms = iter([1.0, 2.0, 4.0, 10.0, 40.0, 20.0])
    said: list[str] = []

    def one(feed: Feed, *args: object) -> Stretch:
        said.append(feed.name)
        return Stretch(next(ms), 0.5)

    monkeypatch.setattr(pipeline, "stretch", one)
    fed = [Feed(n, lambda: pytest.fail("not asked"), lambda batch: batch, 0, 0) for n in ("model", "a", "b")]
    found = pipeline.interleave(fed, lambda batch: None, 1, 2, seed=0, synchronize=lambda: None, tick=lambda: None)
    assert sorted(said[:3]) == sorted(said[3:]) == ["a", "b", "model"]
    took = {(i // 3, name): t for i, (name, t) in enumerate(zip(said, [1, 2, 4, 10, 40, 20], strict=True))}
    for measured, name in zip(found, ("model", "a", "b"), strict=True):
        assert isinstance(measured, Paired)
        assert measured.ms == [took[r, name] for r in (0, 1)]
        assert measured.ratios == [took[r, "model"] / took[r, name] for r in (0, 1)]


T = [v2.ToDtype, v2.Normalize]


@pytest.mark.parametrize(
    ("augment", "resize", "expected"),
    [
        ({}, "stretch", [v2.ToImage, v2.Resize, *T]),
        ({}, "crop", [v2.ToImage, v2.Resize, v2.CenterCrop, *T]),
        ({}, "pad", [PadToSquare, v2.ToImage, v2.Resize, *T]),
        ({"crop_scale": [0.5, 1]}, "stretch", [v2.ToImage, v2.RandomResizedCrop, *T]),
        ({"crop_scale": [0.5, 1]}, "pad", [PadToSquare, v2.ToImage, v2.RandomResizedCrop, *T]),
        ({"flip": 0.5}, "stretch", [v2.ToImage, v2.Resize, v2.RandomHorizontalFlip, *T]),
        ({"vertical_flip": 0.1}, "stretch", [v2.ToImage, v2.Resize, v2.RandomVerticalFlip, *T]),
        ({"rotation": 9}, "stretch", [v2.ToImage, v2.Resize, v2.RandomRotation, *T]),
        ({"quarter_turns": True}, "stretch", [v2.ToImage, v2.Resize, v2.RandomChoice, *T]),
        ({"flip": 0.5, "hue": 0.1}, "stretch", [v2.Resize, v2.RandomHorizontalFlip, v2.ColorJitter, v2.ToImage, *T]),
        ({"grayscale": 0.1}, "stretch", [v2.ToImage, v2.Resize, v2.RandomGrayscale, *T]),
        ({"erasing": 0.2}, "stretch", [v2.ToImage, v2.Resize, *T, v2.RandomErasing]),
    ],
)  # fmt: skip
def test_the_plain_transforms_follow_the_configuration(
    augment: dict[str, Any], resize: str, expected: list[type]
) -> None:
    found = transforms(Augment(**augment), 32, resize, (0.5,) * 3, (0.25,) * 3)
    assert [type(t) for t in found.transforms] == expected
    image = found(Image.new("RGB", (50, 20), (255, 255, 255)))
    assert image.shape == (3, 32, 32)
    assert image.dtype == torch.float32
    if not augment:
        assert image[:, 16, 16].tolist() == [2.0] * 3
        corner = (128 / 255 - 0.5) / 0.25 if resize == "pad" else 2.0
        assert image[:, 0, 16].tolist() == pytest.approx([corner] * 3, abs=1e-5)


def test_the_plain_transforms_have_the_configured_numbers() -> None:
    values: dict[str, Any] = {
        "flip": 0.3, "rotation": 15, "crop_scale": [0.4, 0.9], "crop_ratio": [0.8, 1.25], "brightness": 0.4,
        "contrast": 0.3, "saturation": 0.2, "hue": 0.1, "grayscale": 0.15, "erasing": 0.25, "erasing_scale": [0.1, 0.2],
    }  # fmt: skip
    by_type: dict[type, Any] = {
        type(t): t for t in transforms(Augment(**values), 32, "stretch", (0.1, 0.2, 0.3), (1, 2, 3)).transforms
    }
    crop, erasing = by_type[v2.RandomResizedCrop], by_type[v2.RandomErasing]
    assert (tuple(crop.size), tuple(crop.scale), tuple(crop.ratio)) == ((32, 32), (0.4, 0.9), (0.8, 1.25))
    assert by_type[v2.RandomHorizontalFlip].p == 0.3
    assert tuple(by_type[v2.RandomRotation].degrees) == (-15, 15)
    jitter = by_type[v2.ColorJitter]
    assert tuple(jitter.brightness) == (0.6, 1.4)
    assert tuple(jitter.contrast) == (0.7, 1.3)
    assert tuple(jitter.saturation) == (0.8, 1.2)
    assert tuple(jitter.hue) == (-0.1, 0.1)
    assert by_type[v2.RandomGrayscale].p == 0.15
    assert (erasing.p, tuple(erasing.scale)) == (0.25, (0.1, 0.2))
    assert list(by_type[v2.Normalize].mean) == [0.1, 0.2, 0.3]
    assert list(by_type[v2.Normalize].std) == [1, 2, 3]


def test_what_counts_as_the_machines_peak_is_in_the_runs_precision() -> None:
    assert roofline.step_flops(2.0, 10) == 6 * 2e9 * 10
    types = {p: roofline.matmul_dtype(p) for p in ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true")}
    assert list(types.values()) == [torch.float32, torch.bfloat16, torch.float16, torch.bfloat16, torch.float64]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rounds", "0"], "at least 1"),
        (["--workers", "-1"], "0 or more"),
        (["--tasks", "2"], "--tasks is of `mtlcar bench weightings` and `mtlcar bench step`"),
        (["--peers"], "--peers is of `mtlcar bench weightings`"),
        (["--jobs", "2"], "--jobs is of `mtlcar bench sweep`"),
        (["backbone=tinny"], "'tiny'"),
        (["backbone=tiny,resnet18"], "one setting"),
        (["data.augment.fliip=1"], "flip"),
        (["data.augment.hue=3"], "data.augment.hue should be between 0"),
        (["trainer.precision=17"], "trainer"),
    ],
)
def test_mistakes_are_named(
    words: list[str], message: str, small: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    taken = {w.split("=")[0] for w in words}
    assert main(["bench", "pipeline", *words, *(o for o in small if o.split("=")[0] not in taken)]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_dataset_says_how_to_get_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data=stanford_cars", f"data.root={tmp_path / 'nowhere'}", f"paths.cache={tmp_path}", *SMALL]
    assert main(["bench", "pipeline", *words]) == 2
    assert str(tmp_path / "nowhere") in capsys.readouterr().err


def test_each_measurement_has_its_own_number_of_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int]] = []
    for name in ("weightings", "step", "pipeline"):

        def command(overrides: list[str], *, rounds: int, name: str = name, **rest: object) -> int:
            seen.append((name, rounds))
            return 0

        monkeypatch.setattr(f"mtlcar.bench.{name}.command", command)
        assert main(["bench", name]) == 0
        assert main(["bench", name, "--rounds", "3"]) == 0
    assert seen == [("weightings", 12), ("weightings", 3), ("step", 12), ("step", 3), ("pipeline", 7), ("pipeline", 3)]
