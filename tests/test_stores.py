"""The cache's file: written without a mapping, read from memory or the disk alike, compared with full decoding."""

import contextlib
import errno
import gc
import os
import re
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from mtlcar.data import cache as cache_module
from mtlcar.data import commands, stores
from mtlcar.data import parallel as parallel_module
from mtlcar.data.cache import open_store
from mtlcar.data.decode import ImageDecoder
from mtlcar.data.parallel import in_parallel
from mtlcar.data.row_file import RowWriter, read_row
from mtlcar.data.stores import ImageCache
from mtlcar.errors import UserError
from tests.test_cache import many, picture, table
from tests.test_datamodule import YAML, write_images
from tests.test_decode import difference, encoded, plainly, scene

# Writing


def test_rows_written_in_any_order_are_the_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 4), dtype=np.uint8)
    expected[3] = 0
    pwrite, preadv = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda file, view, place: pwrite(file, view[:7], place))  # as the system may
    monkeypatch.setattr(os, "preadv", lambda file, views, place: preadv(file, [views[0][:5]], place))
    with RowWriter(tmp_path / "images.npy", expected.shape) as rows:
        for row in (4, 0, 2, 1):
            rows.write(row, expected[row])
    got = np.load(tmp_path / "images.npy", mmap_mode="r")
    assert np.array_equal(got, expected), "rows never written are zero"
    out = np.empty((3, 4, 4), np.uint8)
    with (tmp_path / "images.npy").open("rb") as file:
        for row in (3, 0, 4):
            read_row(file.fileno(), got.offset, row, out)
            assert np.array_equal(out, expected[row])
        with pytest.raises(OSError, match="ends before row 5"):
            read_row(file.fileno(), got.offset, 5, out)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_a_build_maps_nothing_so_its_memory_does_not_grow_with_the_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mapped() -> bool:
        """Whether a cache below this test's folder is: other tests' may be too."""
        return any(str(tmp_path) in x and "images.npy" in x for x in Path("/proc/self/maps").read_text().splitlines())

    maps = []
    decode = cache_module.decode_row

    def watched(*arguments: object) -> np.ndarray:
        maps.append(mapped())
        return decode(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(cache_module, "decode_row", watched)
    store = open_store(many(tmp_path), ImageDecoder(8), tmp_path / "cache")
    assert len(maps) == 40
    assert not any(maps)
    assert isinstance(store, ImageCache)
    assert mapped(), "as a mapping would have shown"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_while_images_are_written_is_the_same_error(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    def full(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", cannot, raising=False)
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(UserError, match="Too little disk"):
        open_store(many(tmp_path), ImageDecoder(8), tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("images-*/"))


def test_a_file_that_cannot_be_brought_to_the_disk_is_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(UserError, match="Input/output error"):
        open_store(many(tmp_path), ImageDecoder(8), tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("images-*/"))


@pytest.mark.parametrize(("count", "cpus"), [(1, 16), (7, 2), (40, 16), (300, 16), (100_000, 2)])
def test_all_items_are_done_once_and_by_all_threads(count: int, cpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel_module, "cpus", lambda: cpus)
    done: list[int] = []
    started = threading.local()
    all_started = threading.Barrier(min(cpus, count))

    def work(i: int) -> None:
        if not hasattr(started, "yes"):
            started.yes = True
            all_started.wait(10)
        done.append(i)

    in_parallel(work, count, "Counting")
    assert sorted(done) == list(range(count))


# Reading


def spread(root: Path) -> tuple[ImageCache, np.ndarray]:
    """A cache, and rows far enough apart to be read through the file."""
    store = open_store(many(root), ImageDecoder(8), root / "cache")
    assert isinstance(store, ImageCache)
    return store, np.array([30, 2, 2, 39, 0, 17, 25, 8, 11, 5])


def test_images_from_the_disk_and_from_memory_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, rows = spread(tmp_path)
    expected = torch.from_numpy(np.array(store.images[rows]))
    read: list[int] = []
    monkeypatch.setattr(
        stores, "read_row", lambda file, start, row, out: (read.append(row), read_row(file, start, row, out))
    )
    for read_from_disk, through_file in ((True, True), (False, True), (False, False), (True, False), (False, True)):
        # the first batch goes through the file, each other one where the one before it should have gone
        counter = threading.local()

        def blocks(counter: threading.local = counter, step: int = 8 * read_from_disk) -> int:
            counter.value = getattr(counter, "value", 100) + step
            return int(counter.value)

        monkeypatch.setattr(stores, "blocks_read", blocks)
        read.clear()
        out = torch.full((10, 3, 8, 8), 77, dtype=torch.uint8)
        assert store.gather(rows, out) is out
        assert torch.equal(out, expected)
        assert sorted(read) == (sorted(rows.tolist()) if through_file else [])
    for few in (0, 1, 3):
        assert torch.equal(ImageCache(store.folder).gather(rows[:few]), expected[:few])


def test_rows_side_by_side_come_from_the_mapping_which_is_read_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = spread(tmp_path)

    def forbidden(*_: object) -> None:
        raise AssertionError("read one by one")

    monkeypatch.setattr(stores, "read_row", forbidden)
    assert torch.equal(store.gather(np.arange(10, 30)), torch.from_numpy(np.array(store.images[10:30])))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_a_cache_that_is_not_used_any_more_keeps_no_file_open(tmp_path: Path) -> None:
    def held() -> int:
        count = 0
        for entry in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # the one that lists them
                file = entry.readlink()
                count += file.name == "images.npy" and tmp_path in file.parents
        return count

    assert held() == 0
    store, rows = spread(tmp_path)
    store.gather(rows)
    assert held() > 0
    del store
    gc.collect()
    assert held() == 0


# Verifying


def test_verify_tells_how_far_the_cache_is_from_full_decoding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    write_images(tmp_path / "numbers")
    assert commands.verify(OmegaConf.create(YAML), tmp_path) == 0
    assert "60 images decoded in full differ from it by at most 0.00 of 255" in capsys.readouterr().out
    large = tmp_path / "numbers" / "31.png"
    large.write_bytes(encoded(scene(433, 301), quality=75))
    mean, _ = difference(ImageDecoder(8)(large), plainly(large.read_bytes(), 8))
    assert mean > 0.05
    assert commands.verify(OmegaConf.create(YAML), tmp_path) == 0
    assert f"differ from it by at most {mean:.2f} of 255" in capsys.readouterr().out
    streamed = OmegaConf.merge(OmegaConf.create(YAML), {"cache": False})
    assert commands.verify(streamed, tmp_path) == 0  # type: ignore[arg-type]
    assert "Cache: there is none" in capsys.readouterr().out


@pytest.mark.parametrize("row", [0, 23, 59])
def test_verify_finds_a_damaged_row_of_the_cache(row: int, tmp_path: Path) -> None:
    write_images(tmp_path / "numbers")
    assert commands.prepare(OmegaConf.create(YAML), tmp_path) == 0
    folder = next((tmp_path / "images").glob("images-*/"))
    with (folder / "images.npy").open("r+b") as file:
        file.seek(np.load(folder / "images.npy", mmap_mode="r").offset + row * 3 * 8 * 8 + 100)
        file.write(b"\x2a")
    with pytest.raises(UserError, match=re.compile(rf"1 images in the cache.*{row:02d}\.png.*Delete", re.DOTALL)):
        commands.verify(OmegaConf.create(YAML), tmp_path)


def test_one_picture_many_times_is_decoded_into_every_row(tmp_path: Path) -> None:
    picture(20, 20).save(tmp_path / "a.png")
    store = open_store(table(tmp_path, ["a.png"] * 300), ImageDecoder(8), tmp_path / "cache")
    expected = torch.from_numpy(np.asarray(picture(20, 20).resize((8, 8), Image.Resampling.BILINEAR)).copy())
    assert torch.equal(store.gather(np.arange(300)), expected.permute(2, 0, 1).expand(300, 3, 8, 8))
