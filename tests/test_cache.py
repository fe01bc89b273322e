"""Decoding and the decode-once cache: right pixels, right errors, no half-built cache is ever used."""

import contextlib
import errno
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mtlcar.data import cache as cache_module
from mtlcar.data import cache_key
from mtlcar.data.annotations import Annotations
from mtlcar.data.cache import ImageCache, ImageStream, open_store
from mtlcar.data.decode import ImageDecoder
from mtlcar.data.picture import DamagedImageError
from mtlcar.errors import UserError


def picture(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    """Smooth colours, so that lossy formats stay close."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    rng = np.random.default_rng(seed)
    channels = [127 + 120 * np.sin(rng.uniform(1, 4) * x + rng.uniform(1, 4) * y + rng.uniform(0, 6)) for _ in "rgb"]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


def table(root: Path, names: list[str], boxes: list[list[float]] | None = None) -> Annotations:
    return Annotations(
        root=root,
        paths=tuple(names),
        targets={"make": np.arange(len(names)) % 2},
        split=np.array([""] * len(names)),
        boxes=None if boxes is None else np.array(boxes, dtype=np.float32),
    )


FORMATS = {
    "rgb.jpg": lambda f: picture().save(f, quality=95),
    "grey.jpg": lambda f: picture().convert("L").save(f, quality=95),
    "cmyk.jpg": lambda f: picture().convert("CMYK").save(f, quality=95),
    "rgb.png": lambda f: picture().save(f),
    "palette.png": lambda f: picture().quantize(16).save(f),
    "alpha.png": lambda f: picture().convert("RGBA").save(f),
    "grey_alpha.png": lambda f: picture().convert("LA").save(f),
    "bilevel.png": lambda f: picture().convert("1").save(f),
    "sixteen.png": lambda f: Image.fromarray(np.asarray(picture().convert("L"), np.uint16) * 257).save(f),
    "rgb.tif": lambda f: picture().save(f),
    "jpeg.tif": lambda f: picture().save(f, compression="jpeg", quality=95),
    "sixteen.tif": lambda f: Image.fromarray(np.asarray(picture().convert("L"), np.uint16) * 257).save(f),
    "lzw.tif": lambda f: picture().save(f, compression="tiff_lzw"),
}


@pytest.fixture
def pictures(tmp_path: Path) -> Annotations:
    for name, write in FORMATS.items():
        write(tmp_path / name)
    return table(tmp_path, list(FORMATS))


# Decoding


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_colours_of_the_picture(name: str, tmp_path: Path) -> None:
    FORMATS[name](tmp_path / name)
    expected = picture().resize((16, 16), Image.Resampling.BILINEAR)
    if "grey" in name or "sixteen" in name:
        expected = picture().convert("L").resize((16, 16), Image.Resampling.BILINEAR).convert("RGB")
    tolerance = {"bilevel.png": 60, "palette.png": 25}.get(name, 3)
    got = ImageDecoder(16)(tmp_path / name)
    assert got.shape == (16, 16, 3)
    assert got.dtype == np.uint8
    assert np.abs(got.astype(int) - np.asarray(expected)).mean() <= tolerance


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image.save(tmp_path / "a.png")
    indexed = Image.new("P", (8, 8), 0)
    indexed.putpalette([0, 0, 255] * 256)
    indexed.save(tmp_path / "p.png", transparency=0)
    assert (ImageDecoder(4)(tmp_path / "a.png") == 255).all()
    assert (ImageDecoder(4)(tmp_path / "p.png") == 255).all()


def test_sixteen_bit_uses_the_full_range(tmp_path: Path) -> None:
    values = np.array([[0, 65535], [257, 32896]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "v.png")
    assert ImageDecoder(2)(tmp_path / "v.png")[..., 0].tolist() == [[0, 255], [1, 128]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_after_the_box(orientation: int, tmp_path: Path) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    picture(40, 20).save(tmp_path / "a.png", exif=exif)
    stored = picture(40, 20).crop((0, 0, 20, 20))
    stored.getexif()[0x0112] = orientation
    got = ImageDecoder(20)(tmp_path / "a.png", np.array([0, 0, 20, 20.0]))
    assert np.array_equal(got, np.asarray(ImageOps.exif_transpose(stored)))


def test_resize_modes_keep_what_they_promise(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20), "red")
    image.paste("lime", (10, 0, 30, 20))
    image.save(tmp_path / "a.png")
    stretched, padded, cropped = (ImageDecoder(20, how)(tmp_path / "a.png") for how in ("stretch", "pad", "crop"))
    assert (cropped == (0, 255, 0)).all(), "the centre square"
    assert (padded[:5] == 128).all()
    assert (padded[15:] == 128).all()
    assert (padded[5:15, 1] == (255, 0, 0)).all()
    assert (stretched[:, :4] == (255, 0, 0)).all()
    assert (stretched[:, 6:14] == (0, 255, 0)).all()


def test_an_extremely_narrow_picture_is_no_error(tmp_path: Path) -> None:
    Image.new("RGB", (1, 500)).save(tmp_path / "a.png")
    for how in ("stretch", "pad", "crop"):
        assert ImageDecoder(8, how)(tmp_path / "a.png").shape == (8, 8, 3)


def test_box_and_margin_cut_what_they_say(tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 40), "red")
    image.paste("lime", (10, 10, 30, 30))
    image.save(tmp_path / "a.png")
    box = np.array([10, 10, 30, 30], dtype=np.float32)
    assert (ImageDecoder(20)(tmp_path / "a.png", box) == (0, 255, 0)).all()
    wider = ImageDecoder(40, margin=0.5)(tmp_path / "a.png", box)
    assert np.array_equal(wider, np.asarray(image))
    assert np.array_equal(ImageDecoder(40, margin=None)(tmp_path / "a.png", box), np.asarray(image))
    assert np.array_equal(ImageDecoder(40)(tmp_path / "a.png", np.full(4, np.nan)), np.asarray(image))


def damage(file: Path, kind: str) -> None:
    picture(200, 150).save(file, format="JPEG", quality=95)
    if kind == "truncated":
        file.write_bytes(file.read_bytes()[:2000])
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "text":
        file.write_bytes(b"<html>404 not found</html>" * 20)
    elif kind == "missing":
        file.unlink()
    elif kind == "directory":
        file.unlink()
        file.mkdir()
    elif kind == "png header":
        picture().save(file, format="PNG")
        file.write_bytes(file.read_bytes()[:60])
    elif kind == "tiff":
        picture(200, 150).save(file, format="TIFF", compression="tiff_lzw")
        file.write_bytes(file.read_bytes()[:-800] + b"\0" * 10)
    elif kind == "bomb":
        Image.new("1", (10000, 9000)).save(file, format="PNG")


KINDS = ("truncated", "empty", "text", "missing", "directory", "png header", "tiff", "bomb")


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_an_error_that_names_the_file(kind: str, tmp_path: Path) -> None:
    damage(tmp_path / "bad.jpg", kind)
    with pytest.raises(DamagedImageError, match=r"bad\.jpg: "):
        ImageDecoder(16)(tmp_path / "bad.jpg")


@given(st.binary(max_size=300), st.sampled_from(["JPEG", "PNG", "TIFF", "GIF", "BMP"]), st.integers(0, 900))
def test_random_bytes_in_a_file_are_pixels_or_a_damaged_image(noise: bytes, kind: str, at: int) -> None:
    import io
    import tempfile

    buffer = io.BytesIO()
    picture().save(buffer, format=kind)
    data = bytearray(buffer.getvalue())
    data[at : at + len(noise)] = noise
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "x.img"
        file.write_bytes(bytes(data))
        with contextlib.suppress(DamagedImageError):
            assert ImageDecoder(8)(file).shape == (8, 8, 3)


@pytest.mark.parametrize(("key", "value"), [("resize", "streched"), ("size", 0), ("margin", -1)])
def test_a_wrong_decoder_setting_is_explained(key: str, value: object) -> None:
    with pytest.raises(UserError, match=r"data\."):
        ImageDecoder(**{"size": 8, key: value})


# The cache


def test_cached_streamed_and_direct_pixels_are_the_same(pictures: Annotations, tmp_path: Path) -> None:
    decoder = ImageDecoder(16)
    cached = open_store(pictures, decoder, tmp_path / "cache")
    streamed = open_store(pictures, decoder, tmp_path / "cache", cache=False)
    assert isinstance(cached, ImageCache)
    assert isinstance(streamed, ImageStream)
    rows = np.array([3, 0, 0, len(pictures) - 1, 5])
    direct = torch.stack([torch.from_numpy(decoder(pictures.file(r))).permute(2, 0, 1) for r in rows])
    assert torch.equal(cached.gather(rows), direct)
    assert torch.equal(streamed.gather(rows), direct)
    everything = np.arange(len(pictures))
    assert torch.equal(cached.gather(everything), streamed.gather(everything))
    assert torch.equal(pickle.loads(pickle.dumps(cached)).gather(rows), direct)
    assert torch.equal(pickle.loads(pickle.dumps(streamed)).gather(rows), direct)
    assert len(pickle.dumps(cached)) < 1000, "another process maps the file; the array must not travel"


def test_a_second_start_decodes_nothing_and_reads_no_file(
    pictures: Annotations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_store(pictures, ImageDecoder(16), tmp_path / "cache")
    before = first.gather(np.arange(3))

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a file was read")

    monkeypatch.setattr(cache_module, "in_parallel", forbidden)
    monkeypatch.setattr(cache_key, "in_parallel", forbidden)
    again = open_store(pictures, ImageDecoder(16), tmp_path / "cache")
    assert torch.equal(again.gather(np.arange(3)), before)


def folders(cache: Path) -> list[str]:
    return sorted(p.name for p in cache.glob("images-*") if p.is_dir())


def test_content_boxes_and_settings_are_in_the_key_but_place_and_time_are_not(
    pictures: Annotations, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    store = open_store(pictures, ImageDecoder(16), cache)
    assert isinstance(store, ImageCache)
    for file in tmp_path.glob("*.*"):
        os.utime(file, (1, 1))
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in pictures.paths:
        shutil.copy(tmp_path / name, moved / name)
    assert len(folders(cache)) == 1
    for same in (pictures, table(moved, list(pictures.paths))):
        again = open_store(same, ImageDecoder(16), cache)
        assert isinstance(again, ImageCache)
        assert again.folder == store.folder
    boxed = table(tmp_path, list(pictures.paths), [[0, 0, 20, 20]] * len(pictures))
    whole = table(tmp_path, list(pictures.paths), [[np.nan] * 4] * len(pictures))
    open_store(boxed, ImageDecoder(16), cache)
    open_store(whole, ImageDecoder(16), cache)
    open_store(pictures, ImageDecoder(17), cache)
    open_store(pictures, ImageDecoder(16, "pad"), cache)
    assert len(folders(cache)) == 5
    picture(seed=9).save(tmp_path / "rgb.png")
    fresh = open_store(pictures, ImageDecoder(16), cache)
    assert len(folders(cache)) == 6
    row = pictures.paths.index("rgb.png")
    expected = torch.from_numpy(ImageDecoder(16)(tmp_path / "rgb.png")).permute(2, 0, 1)
    assert torch.equal(fresh.gather(np.array([row]))[0], expected)


def test_the_margin_and_the_decoders_version_are_in_the_key(
    pictures: Annotations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boxed = table(tmp_path, list(pictures.paths), [[5, 5, 20, 20]] * len(pictures))
    keys = {cache_key.cache_key(boxed, ImageDecoder(16, margin=m), tmp_path / "cache") for m in (None, 0.0, 0.1)}
    monkeypatch.setattr(cache_key, "DECODE_VERSION", cache_key.DECODE_VERSION + 1)
    keys.add(cache_key.cache_key(boxed, ImageDecoder(16, margin=0.1), tmp_path / "cache"))
    assert len(keys) == 4


@pytest.mark.parametrize("cache", [True, False])
def test_a_complete_cache_in_a_folder_that_cannot_be_written_is_used(
    cache: bool, pictures: Annotations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.arange(len(pictures))
    expected = open_store(pictures, ImageDecoder(16), tmp_path / "cache", cache=cache).gather(rows)
    shutil.rmtree(tmp_path / "cache" / "digests")  # the images were touched since, say

    def read_only(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(cache_module, "FileLock", read_only)  # permissions would not stop root
    monkeypatch.setattr(cache_key, "write_atomically", read_only)
    again = open_store(pictures, ImageDecoder(16), tmp_path / "cache", cache=cache)
    assert torch.equal(again.gather(rows), expected)
    with pytest.raises(UserError, match=r"Read-only file system[^§]*paths\.cache"):
        open_store(pictures, ImageDecoder(17), tmp_path / "cache", cache=cache)


def many(root: Path, n: int = 40) -> Annotations:
    for i in range(n):
        picture(20, 20, i).save(root / f"{i}.png")
    return table(root, [f"{i}.png" for i in range(n)])


@pytest.mark.parametrize("cache", [True, False])
def test_all_damaged_images_are_reported_together_before_training(cache: bool, tmp_path: Path) -> None:
    annotations = many(tmp_path)
    for i in range(3, 16):
        (tmp_path / f"{i}.png").write_bytes(b"")
    with pytest.raises(UserError) as caught:
        open_store(annotations, ImageDecoder(8), tmp_path / "cache", cache=cache)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("13 of 40")
    assert "3.png: the file is empty" in lines[1]
    assert lines[11] == "  ... and 3 more"
    assert len(lines) == 13
    assert folders(tmp_path / "cache") == []


@pytest.mark.parametrize("cache", [True, False])
def test_skip_leaves_a_few_damaged_images_out_and_no_more(
    cache: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    annotations = many(tmp_path)
    (tmp_path / "3.png").write_bytes(b"")
    (tmp_path / "7.png").unlink()
    with pytest.raises(UserError, match="on_bad_image=skip"):
        open_store(annotations, ImageDecoder(8), tmp_path / "cache", cache=cache)
    store = open_store(annotations, ImageDecoder(8), tmp_path / "cache", cache=cache, on_bad_image="skip")
    assert list(store.bad) == [3, 7]
    assert "3.png" in caplog.text
    with pytest.raises(UserError, match=r"2 of 40[^§]*3\.png"):
        open_store(annotations, ImageDecoder(8), tmp_path / "cache", cache=cache)
    for i in range(8, 13):
        (tmp_path / f"{i}.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="at most 5 of 40"):
        open_store(annotations, ImageDecoder(8), tmp_path / "cache", cache=cache, on_bad_image="skip")
    picture().save(tmp_path / "3.png")
    picture().save(tmp_path / "7.png")
    for i in range(8, 13):
        picture().save(tmp_path / f"{i}.png")
    assert not open_store(annotations, ImageDecoder(8), tmp_path / "cache", cache=cache).bad


def test_a_box_outside_names_file_box_and_picture(tmp_path: Path) -> None:
    picture(40, 30).save(tmp_path / "car.jpg")
    annotations = table(tmp_path, ["car.jpg"], [[0, 0, 80, 30]])
    with pytest.raises(UserError, match=r"car\.jpg.*outside.*\(0, 0, 80, 30\).*40 x 30"):
        open_store(annotations, ImageDecoder(8), tmp_path / "cache")


@pytest.mark.parametrize(
    "damage", ["half the file", "no bytes", "no meta", "no images", '{"bad":', "[]", '{"bad": 3}', "null"]
)
def test_an_incomplete_cache_is_built_again(damage: str, tmp_path: Path) -> None:
    annotations = many(tmp_path)
    store = open_store(annotations, ImageDecoder(8), tmp_path / "cache")
    assert isinstance(store, ImageCache)
    expected = store.gather(np.arange(40))
    images, meta = store.folder / "images.npy", store.folder / "meta.json"
    if damage == "half the file":
        images.write_bytes(images.read_bytes()[: images.stat().st_size // 2])
    elif damage == "no bytes":
        images.write_bytes(b"")
    elif damage == "no meta":
        meta.unlink()
    elif damage == "no images":
        images.unlink()
    else:
        meta.write_text(damage)
    again = open_store(annotations, ImageDecoder(8), tmp_path / "cache")
    assert torch.equal(again.gather(np.arange(40)), expected)


BUILD = """
    import logging, os, signal, sys, time
    from pathlib import Path
    sys.path.insert(0, {repo!r})
    logging.basicConfig(level="INFO", stream=sys.stdout)
    from mtlcar.data import cache
    from mtlcar.data.decode import ImageDecoder
    from tests.test_cache import table
    root, mode = Path(sys.argv[1]), sys.argv[2]
    decode = cache.decode_row
    def slow(annotations, row, decoder):
        os.write(1, b"decode\\n")
        if mode == "die" and row == 20:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.02)
        return decode(annotations, row, decoder)
    cache.decode_row = slow
    store = cache.open_store(table(root, [f"{{i}}.png" for i in range(40)]), ImageDecoder(8), root / mode)
    print("sum", int(store.images.astype(int).sum()))
"""


def start_build(root: Path, mode: str) -> subprocess.Popen[str]:
    repo = str(Path(__file__).parents[1])
    code = textwrap.dedent(BUILD.format(repo=repo))
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", code, str(root), mode], stdout=subprocess.PIPE, text=True, env=env)


def test_two_processes_at_once_build_it_once_and_a_killed_build_is_never_used(tmp_path: Path) -> None:
    annotations = many(tmp_path)
    live = [start_build(tmp_path, "live") for _ in range(2)]
    killed = start_build(tmp_path, "die")
    outputs = [process.communicate(timeout=250)[0] for process in live]
    assert [process.returncode for process in live] == [0, 0]
    assert sorted(output.count("decode\n") for output in outputs) == [0, 40], "one builds, the other waits and reuses"
    assert len({output.split("\n")[-2] for output in outputs}) == 1, "both see the same pixels"

    killed.communicate(timeout=250)
    assert killed.returncode == -9
    assert [name.endswith(".tmp") for name in folders(tmp_path / "die")] == [True], "it died in the middle"
    again, complete = (open_store(annotations, ImageDecoder(8), tmp_path / name) for name in ("die", "live"))
    assert torch.equal(again.gather(np.arange(40)), complete.gather(np.arange(40)))
    assert [name.endswith(".tmp") for name in folders(tmp_path / "die")] == [False], "the remains are cleared"


def test_too_little_disk_is_said_with_numbers_before_anything_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    annotations = many(tmp_path)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 10_000))
    with pytest.raises(UserError, match=r"Too little disk.*0\.01 GB needed, 0\.00 GB free"):
        open_store(annotations, ImageDecoder(256), tmp_path / "cache")
    assert folders(tmp_path / "cache") == []


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="needs posix_fallocate")
def test_a_disk_that_fills_while_the_file_is_reserved_is_the_same_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match="Too little disk"):
        open_store(many(tmp_path), ImageDecoder(8), tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.tmp"))


def test_a_cache_folder_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    images = many(tmp_path)
    for folder in (tmp_path / "file", tmp_path / "file" / "cache", Path("/proc/nope")):
        with pytest.raises(UserError, match=r"paths\.cache"):
            open_store(images, ImageDecoder(8), folder)
