"""`mtlcar data ...`: what they print is what is on the disk, and contact sheets show the right labels."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from mtlcar.data import commands
from mtlcar.data.cache import decode_row
from mtlcar.data.sheet import caption, choose_rows, contact_sheet, pixels
from mtlcar.errors import UserError
from tests.test_datamodule import YAML, make, write_images

SHARED = Path(os.environ.get("MTLCAR_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    write_images(tmp_path / "cache" / "numbers")
    return tmp_path / "cache"


def node(**changes: object) -> DictConfig:
    merged = OmegaConf.merge(OmegaConf.create(YAML), changes)
    assert isinstance(merged, DictConfig)
    return merged


def test_list_names_every_dataset_with_its_header(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.list_datasets() == 0
    out = capsys.readouterr().out
    for file in commands.conf_dir().glob("data/*.yaml"):
        assert file.stem in out
    assert "Krause" in out


def test_prepare_prints_splits_labels_and_the_cache(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.prepare(node(), cache) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["train", "36", "60.0%", "5", "-"] in lines
    assert [line[:3] for line in lines if line[:1] == ["make"]] == [["make", "2", "classes"]]
    assert [line[-1] for line in lines if line[:1] == ["make"]] == ["6"], "missing labels"
    assert [line[-1] for line in lines if line[:1] == ["weight"]] == ["9"]
    assert any("kg" in line for line in lines)
    assert list((cache / "images").glob("images-*"))


def test_groups_that_are_in_training_too_are_counted(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make(cache)
    data.setup()
    groups = data.annotations.groups
    assert groups is not None
    train = set(groups[data.indices["train"]])
    expected = sum(group in train for group in groups[data.indices["test"]])
    assert commands.shared_groups(data)["test"] == expected > 0
    apart = make(cache, split="grouped")
    apart.setup()
    assert commands.shared_groups(apart)["test"] == 0


def test_verify_passes_on_sound_data_and_finds_twins_across_splits(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert commands.verify(node(), cache) == 0
    out = capsys.readouterr().out
    assert "10 to 10 pixels wide, 8 to 8 high" in out
    assert "60 images opened, 0 left out" in out
    assert "pixel for pixel" not in out
    data = make(cache)
    data.load()
    one, other = data.indices["train"][0], data.indices["test"][0]
    (cache / "numbers" / f"{other:02d}.png").write_bytes((cache / "numbers" / f"{one:02d}.png").read_bytes())
    assert commands.verify(node(), cache) == 0
    assert "1 images of test are pixel for pixel in train too" in capsys.readouterr().out


def test_verify_finds_a_cache_that_is_not_what_the_files_show(cache: Path) -> None:
    data = make(cache)
    data.setup()
    folder = next((cache / "images").glob("images-*/"))
    images = np.load(folder / "images.npy", mmap_mode="r+")
    images[17] ^= 1
    images.flush()
    del images
    with pytest.raises(UserError, match=r"1 images in the cache[^§]*17\.png[^§]*Delete"):
        commands.verify(node(), cache)


def test_show_writes_a_sheet(cache: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "sheet.png"
    assert commands.show(node(), cache, output=output, n=9) == 0
    with Image.open(output) as sheet:
        assert sheet.format == "PNG"
        assert sheet.width > 8 * 100
        colours = np.asarray(sheet.convert("RGB")).reshape(-1, 3)
    data = make(cache)
    data.setup()
    for row in choose_rows(data, 9):
        assert (colours == (4 * row, 255 - 4 * row, row)).all(1).sum() > 1000, "the picture of the row is on the sheet"
    assert commands.show(node(), cache, output=output, n=1000, augmented=True) == 0
    with pytest.raises(UserError, match="at least 1"):
        commands.show(node(), cache, output=output, n=0)


def test_captions_are_labels_in_their_units_and_say_what_is_missing(cache: Path) -> None:
    data = make(cache)
    data.setup()
    assert caption(data, 0) == "make: ?\nmodel: a1\nweight: ?"
    assert caption(data, 3) == "make: b\nmodel: b2\nweight: 3 kg"


def test_a_sheet_has_all_classes_before_it_repeats_one(cache: Path) -> None:
    data = make(cache)
    data.setup()
    assert sorted(data.annotations.targets["model"][choose_rows(data, 4)]) == [0, 1, 2, 3]
    assert sorted(data.annotations.targets["model"][choose_rows(data, 6)])[:4] != [0, 0, 0, 0]
    assert len(set(choose_rows(data, 60))) == 60
    assert choose_rows(data, 5).tolist() == choose_rows(data, 5).tolist()


def test_sheet_pixels_are_those_of_the_pipeline(cache: Path) -> None:
    data = make(cache, augment={"flip": 0.0, "brightness": 0.0})
    data.set_normalization((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    data.setup()
    rows = np.array([4, 9])
    plain = pixels(data, rows, augmented=False)
    assert torch.equal(torch.from_numpy(plain).permute(0, 3, 1, 2), data.gather(rows))
    assert np.array_equal(pixels(data, rows, augmented=True), plain)


@pytest.mark.parametrize(("name", "images"), [("stanford_cars", 6509), ("advanced_steel", 4536)])
def test_the_real_data_is_decoded_once_and_right(
    name: str, images: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not (SHARED / name).is_dir():
        pytest.skip(f"{SHARED / name} is not here (MTLCAR_DATA)")
    cfg = OmegaConf.load(commands.conf_dir() / "data" / f"{name}.yaml")
    assert isinstance(cfg, DictConfig)
    cfg.root, cfg.image_size = str(SHARED / name), 32
    assert commands.prepare(cfg, tmp_path) == 0
    assert f"{images * 32 * 32 * 3 / 1e6:.0f} MB of decoded images" in capsys.readouterr().out
    data = commands.make(cfg, tmp_path)
    data.setup()
    assert sum(len(rows) for rows in data.indices.values()) == images
    rows = choose_rows(data, 40)
    again = [torch.from_numpy(decode_row(data.annotations, int(row), data.decoder)) for row in rows]
    assert torch.equal(data.gather(rows), torch.stack(again))
    contact_sheet(data, tmp_path / "sheet.png", 16)
