"""Large JPEG files are decoded smaller, and still look as full decoding by plain Pillow calls makes them look."""

import io
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFile, ImageOps

from mtlcar.data import picture
from mtlcar.data.decode import ImageDecoder
from mtlcar.data.picture import DamagedImageError, open_picture, reduction
from mtlcar.data.window import crop_window

MEAN, PERCENTILE_99 = 1.0, 8
"""Bounds of the absolute difference from full decoding, of 255. Found in 1,500 cases: 0.25 on average, 0.94 and 7 at
worst; at 64 to 224 pixels, where less of a scene changes from pixel to pixel, 0.5 and 3."""


@cache
def scene(width: int, height: int, seed: int = 0) -> Image.Image:
    """What photographs have: detail at all scales (amplitude 1/f), hard edges, thin lines and sensor noise."""
    rng = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), 120.0)
    for k in (2, 4, 8, 16, 32, 64, 128):
        layer = rng.normal(size=(k, k, 3)).astype(np.float32) + rng.normal(size=(k, k, 1)).astype(np.float32)
        smooth = [Image.fromarray(layer[..., c]).resize((width, height), Image.Resampling.BICUBIC) for c in range(3)]
        pixels += 60 / k * np.stack([np.asarray(channel) for channel in smooth], -1)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(8):
        x, y = (int(rng.integers(side)) for side in (width, height))
        r = int(rng.integers(4, min(width, height) // 4))
        colour, line = (tuple(int(v) for v in rng.integers(256, size=3)) for _ in range(2))
        draw.polygon([(x, y), (x + r, y + r // 3), (x - r // 2, y + r)], fill=colour)
        draw.line((x, y, *(int(rng.integers(side)) for side in (width, height))), fill=line, width=2)
    noisy = np.asarray(image) + rng.normal(scale=2, size=(height, width, 3))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", orientation: int = 1, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, kind, exif=exif, **options)
    return buffer.getvalue()


def plainly(
    data: bytes, size: int, how: str = "stretch", box: list[float] | None = None, margin: float = 0.0
) -> np.ndarray:
    """The oracle: the whole picture decoded, cut, turned upright, resized."""
    image = Image.open(io.BytesIO(data))
    orientation = image.getexif().get(0x0112, 1)
    image = image.convert("RGB")
    if box is not None:
        x1, y1, x2, y2 = box
        dx, dy = margin * (x2 - x1), margin * (y2 - y1)
        left, top = max(0, math.floor(x1 - dx)), max(0, math.floor(y1 - dy))
        right, bottom = min(image.width, math.ceil(x2 + dx)), min(image.height, math.ceil(y2 + dy))
        image = image.crop((left, top, right, bottom))
    image.getexif()[0x0112] = orientation
    image = ImageOps.exif_transpose(image)
    if how == "crop":
        return np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR))
    if how == "stretch":
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
    scale = size / max(image.size)
    inner = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), 2)
    out = np.full((size, size, 3), 128, np.uint8)
    top, left = (size - inner.height) // 2, (size - inner.width) // 2
    out[top : top + inner.height, left : left + inner.width] = np.asarray(inner)
    return out


def difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    off = np.abs(a.astype(int) - b.astype(int))
    return float(off.mean()), float(np.percentile(off, 99))


def boxes(width: int, height: int) -> st.SearchStrategy[list[float] | None]:
    def spans(side: int) -> st.SearchStrategy[tuple[float, float]]:
        least = side // 3
        return st.floats(0, side - least).flatmap(
            lambda start: st.tuples(st.just(start), st.floats(start + least, side))
        )

    both = st.tuples(spans(width), spans(height))
    return st.none() | both.map(lambda xy: [xy[0][0], xy[1][0], xy[0][1], xy[1][1]])


SIZES = [(500, 400), (433, 301), (301, 433), (801, 200)]
ENCODINGS: list[tuple[str, dict[str, Any]]] = [
    ("RGB", {"quality": 75, "subsampling": 2}),
    ("RGB", {"quality": 90, "subsampling": 1, "progressive": True}),
    ("RGB", {"quality": 95, "subsampling": 0}),
    ("L", {"quality": 85}),
    ("CMYK", {"quality": 85}),
]


@settings(derandomize=True, max_examples=80)
@given(st.data())
def test_decoding_smaller_looks_like_full_decoding(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    width, height = data.draw(st.sampled_from(SIZES))
    mode, options = data.draw(st.sampled_from(ENCODINGS))
    orientation = data.draw(st.integers(1, 8))
    box, margin = data.draw(boxes(width, height)), data.draw(st.sampled_from([0.0, 0.1]))
    size, how = data.draw(st.sampled_from([16, 24, 48])), data.draw(st.sampled_from(["stretch", "pad", "crop"]))
    file = tmp_path_factory.getbasetemp() / "scene.jpg"
    file.write_bytes(encoded(scene(width, height).convert(mode), orientation=orientation, **options))
    expected = plainly(file.read_bytes(), size, how, box, margin)
    decoder, at = ImageDecoder(size, how, margin), None if box is None else np.array(box)
    mean, percentile = difference(decoder(file, at), expected)
    assert mean < MEAN
    assert percentile <= PERCENTILE_99
    assert np.array_equal(decoder(file, at, full=True), expected)


@pytest.mark.parametrize("how", ["stretch", "pad", "crop"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_window_between_the_decoded_pixels_is_where_it_was_in_every_orientation(
    orientation: int, how: str, tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(scene(433, 301), orientation=orientation, quality=90))
    box = [101.0, 57, 383, 292]  # 12.625, 7.125, 47.875, 36.5 in pixels of 1/8
    got = ImageDecoder(14, how)(tmp_path / "a.jpg", np.array(box))
    mean, _ = difference(got, plainly((tmp_path / "a.jpg").read_bytes(), 14, how, box))
    assert mean < MEAN


def test_a_window_off_by_one_decoded_pixel_is_no_such_likeness(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(scene(700, 500), quality=90))
    box = [100.0, 60, 500, 460]
    near = ImageDecoder(48)(tmp_path / "a.jpg", np.array(box))
    for shift in ([4, 0, 4, 0], [0, 4, 0, 4], [-4, 0, 4, 0], [0, -4, 0, 4]):
        off = [edge + by for edge, by in zip(box, shift, strict=True)]
        mean, percentile = difference(near, plainly((tmp_path / "a.jpg").read_bytes(), 48, box=off))
        assert mean > MEAN or percentile > PERCENTILE_99


SMALLEST = {"JPEG": (127, 400), "PNG": (700, 500), "TIFF": (700, 500), "JPEG in TIFF": (700, 500)}
"""A JPEG picture one pixel too small to be reduced, and large pictures in formats that cannot be."""


@pytest.mark.parametrize("how", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("kind", SMALLEST)
def test_where_nothing_is_reduced_the_pixels_are_those_of_full_decoding(
    kind: str, mode: str, how: str, tmp_path: Path
) -> None:
    width, height = SMALLEST[kind]
    if how == "pad" and kind == "JPEG":
        height = 127
    options = {"compression": "jpeg"} if kind == "JPEG in TIFF" else {}
    if kind == "PNG" and mode == "CMYK":
        mode = "P"
    for orientation in (1, 6) if kind == "JPEG" else (1,):
        image = scene(width, height).convert(mode)
        data = encoded(image, kind.removeprefix("JPEG in "), orientation, **options)
        (tmp_path / "a").write_bytes(data)
        for box in (None, [10.2, 20.7, 101.5, 111.1]):
            got = ImageDecoder(32, how, 0.05)(tmp_path / "a", None if box is None else np.array(box))
            assert np.array_equal(got, plainly(data, 32, how, box, 0.05))


@pytest.mark.parametrize(
    ("picture_size", "window", "enough", "expected"),
    [
        ((2000, 1500), (2000, 1500), (448, 448), 2),
        ((4000, 3600), (4000, 3584), (448, 448), 8),
        ((4000, 3600), (4000, 3583), (448, 448), 4),
        ((4000, 3600), (4000, 896), (448, 448), 2),
        ((4000, 3600), (4000, 895), (448, 448), 1),
        ((900, 600), (900, 600), (448, 448), 1),
        ((900, 600), (900, 600), (448, 298), 2),
    ],
)
def test_the_reduction_leaves_enough_of_the_window_not_of_the_picture(
    picture_size: tuple[int, int], window: tuple[int, int], enough: tuple[int, int], expected: int, tmp_path: Path
) -> None:
    for kind in ("JPEG", "PNG"):
        Image.new("L", picture_size).save(tmp_path / "a", kind)
        assert reduction(open_picture(tmp_path / "a"), window, enough) == (expected if kind == "JPEG" else 1)


@pytest.mark.parametrize(("how", "factor"), [("stretch", 4), ("crop", 4), ("pad", 8)])
def test_twice_the_pixels_of_the_result_are_decoded(
    how: str, factor: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: (load(image), loaded.append(image.size))[0])
    (tmp_path / "a.jpg").write_bytes(encoded(scene(700, 500)))
    ImageDecoder(40, how)(tmp_path / "a.jpg")
    assert loaded[0] == (math.ceil(700 / factor), math.ceil(500 / factor))


def test_a_picture_with_too_many_pixels_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(_: object) -> None:
        raise AssertionError("decoded")

    (tmp_path / "a.jpg").write_bytes(encoded(scene(700, 500)))
    monkeypatch.setattr(picture, "MAX_PIXELS", 700 * 500 - 1)
    monkeypatch.setattr(ImageFile.ImageFile, "load", forbidden)
    with pytest.raises(DamagedImageError, match="700 x 500 pixels, more than"):
        ImageDecoder(8)(tmp_path / "a.jpg")


def test_errors_about_a_large_picture_speak_of_its_own_pixels(tmp_path: Path) -> None:
    data = encoded(scene(700, 500))
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(DamagedImageError, match=r"a\.jpg.*outside.*\(0, 0, 800, 500\).*700 x 500"):
        ImageDecoder(8)(tmp_path / "a.jpg", np.array([0.0, 0, 800, 500]))
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(DamagedImageError, match=r"cut\.jpg: cannot be decoded"):
        ImageDecoder(8)(tmp_path / "cut.jpg")


@given(
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    st.lists(st.floats(-400, 700, width=32), min_size=4, max_size=4),
    st.floats(0, 2),
)
def test_a_crop_window_is_inside_the_picture_or_an_error(
    size: tuple[int, int], box: list[float], margin: float
) -> None:
    try:
        x1, y1, x2, y2 = crop_window("a.jpg", size, np.array(box), margin)
    except DamagedImageError:
        return
    assert 0 <= x1 < x2 <= size[0]
    assert 0 <= y1 < y2 <= size[1]


def test_a_box_a_few_pixels_outside_is_clipped_and_one_further_out_is_refused() -> None:
    assert crop_window("a.jpg", (100, 50), np.array([-3.0, 0, 99, 51])) == (0, 0, 99, 50)
    with pytest.raises(DamagedImageError, match=r"a\.jpg.*outside.*\(20, 0, 120, 50\).*100 x 50"):
        crop_window("a.jpg", (100, 50), np.array([20.0, 0, 120, 50]))
    with pytest.raises(DamagedImageError, match="empty box"):
        crop_window("a.jpg", (100, 50), np.array([20.0, 0, 20, 50]))
