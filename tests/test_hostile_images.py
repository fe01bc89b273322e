"""Pictures that are none, that lie about their size, or that cannot be waited for; and odd ones that are sound."""

import io
import os
import struct
import subprocess
import sys
import textwrap
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from mtlcar.data import picture
from mtlcar.data.annotations import Annotations
from mtlcar.data.cache import open_store
from mtlcar.data.decode import ImageDecoder
from mtlcar.data.picture import DamagedImageError
from mtlcar.inference.images import picture_files
from mtlcar.inference.table import as_csv, as_json, as_text
from mtlcar.tasks import Task, TaskSet
from tests.layout_samples import REPO


def gradient(width: int = 24, height: int = 16) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, format=kind, **options)
    return out.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, rows: bytes = b"", more: bytes = b"", depth: int = 8, colour: int = 2) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = chunk(b"IHDR", head) + more + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def jpeg_of(width: int, height: int) -> bytes:
    data = bytearray(encoded(gradient(), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def gif(canvas: tuple[int, int], frame: tuple[int, int, int, int]) -> bytes:
    screen = struct.pack("<HH", *canvas) + b"\xf0\0\0" + b"\0" * 6
    return b"GIF89a" + screen + b"," + struct.pack("<HHHHB", *frame, 0) + b"\2\2\x44\1\0;"


def tiff(width: int, height: int, tile: int | None = None) -> bytes:
    """8-bit grey of zeros, deflated; in one tile, or in one strip."""
    content = zlib.compress(b"\0" * 50_000)
    tags = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 8), (262, 3, 1), (277, 3, 1)]
    if tile:
        tags += [(322, 4, tile), (323, 4, tile), (324, 4, 200), (325, 4, len(content))]
    else:
        tags += [(273, 4, 200), (278, 4, height), (279, 4, len(content))]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in sorted(tags))
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + b"\0\0\0\0"
    return head.ljust(200, b"\0") + content


BOMBS = {
    "png": png(60_000, 60_000),
    "png between the limits": png(9_500, 9_500),
    "png of largest sides": png(2**31 - 1, 2**31 - 1),
    "png text": png(4, 4, b"\0" * 52, chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * 50_000_000))),
    "png profile": png(4, 4, b"\0" * 52, chunk(b"iCCP", b"a\0\0" + zlib.compress(b"\0" * 50_000_000))),
    "jpeg": jpeg_of(65_500, 65_500),
    "gif": gif((65_535, 65_535), (0, 0, 1, 1)),
    "gif frame": gif((4, 4), (0, 0, 60_000, 60_000)),
    "gif frame far off": gif((4, 4), (60_000, 60_000, 2, 2)),
    "tiff": tiff(60_000, 60_000),
    "tiff tile": tiff(10, 10, tile=32_000),
    "ppm": b"P6 60000 60000 255\n" + b"\0" * 100,
    "bmp": encoded(gradient(), "BMP")[:18] + struct.pack("<ii", 60_000, 60_000) + encoded(gradient(), "BMP")[26:],
}


def test_bombs_are_refused_before_their_pixels_are_made(tmp_path: Path) -> None:
    for name, data in BOMBS.items():
        (tmp_path / name).write_bytes(data)
    code = """
        import sys
        from pathlib import Path
        from PIL import Image
        from mtlcar.data.decode import ImageDecoder
        from mtlcar.data.picture import DamagedImageError

        def peak():
            return int([l for l in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in l][0].split()[1])

        Image.init()
        before = peak()
        for file in sorted(Path(sys.argv[1]).iterdir()):
            try:
                ImageDecoder(8)(file)
                print("accepted", file)
            except DamagedImageError:
                pass
            if peak() - before > 60_000:
                print("memory", file, peak() - before)
                before = peak()
    """
    # warnings of Pillow would be printed
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=120, check=True)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("name", ["png", "png between the limits", "jpeg", "gif frame", "tiff tile"])
def test_a_bomb_is_named_with_its_size_and_the_limit(name: str, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(BOMBS[name])
    with pytest.raises(DamagedImageError, match=r"x\.png: .*pixels.*80000000") as caught:
        ImageDecoder(8)(tmp_path / "x.png")
    assert len(str(caught.value)) < 300


FOREIGN = {
    "text": b"not a picture\n" * 10,
    "html": b"<!doctype html><html><body>404</body></html>",
    "pdf": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n" * 5,
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg' width='10' height='10'/>",
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
    "ico": encoded(gradient(), "ICO"),
    "icns": encoded(gradient(32, 32), "ICNS"),
    "pcx": encoded(gradient(), "PCX"),
    "zeros": b"\0" * 1000,
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_picture_of_a_known_format_is_refused_whatever_its_name(kind: str, tmp_path: Path) -> None:
    (tmp_path / "car.jpg").write_bytes(FOREIGN[kind])
    with pytest.raises(DamagedImageError, match=r"car\.jpg: not a picture of a known format \(JPEG, PNG,"):
        ImageDecoder(8)(tmp_path / "car.jpg")


def test_ghostscript_is_never_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: pytest.fail("a file was run as a program"))
    (tmp_path / "car.jpg").write_bytes(FOREIGN["eps"])
    with pytest.raises(DamagedImageError, match="known format"):
        ImageDecoder(8)(tmp_path / "car.jpg")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "JPEG2000"])
def test_a_picture_cut_at_any_length_is_refused(kind: str, tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    data = encoded(noise.quantize() if kind == "GIF" else noise, kind)
    assert ImageDecoder(8)(_file(tmp_path, data)).shape == (8, 8, 3)
    for length in [*range(0, min(200, len(data) - 200), 9), *np.linspace(200, len(data) * 0.9, 20).astype(int)]:
        with pytest.raises(DamagedImageError, match=r"x\.jpg: "):
            ImageDecoder(8)(_file(tmp_path, data[:length]))


def _file(folder: Path, data: bytes, name: str = "x.jpg") -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "null.jpg").symlink_to("/dev/zero")
    (tmp_path / "nowhere.jpg").symlink_to("not there")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    reasons = {
        "pipe.jpg": "cannot be read (it is a named pipe, not a file)",
        "folder.jpg": "cannot be read (it is a folder, not a file)",
        "null.jpg": "cannot be read (it is a device, not a file)",
        "nowhere.jpg": "it is a link to what is not there",
        "loop.jpg": "cannot be read (Too many levels of symbolic links)",
        "gone.jpg": "there is no such file",
        "x" * 300 + ".jpg": "cannot be read (File name too long)",
        "with\0zero.jpg": "there is no such file",
    }
    for name, reason in reasons.items():
        with pytest.raises(DamagedImageError) as caught:
            ImageDecoder(8)(tmp_path / name)
        assert caught.value.reason == reason
    # the cache reads files for its key before it decodes any
    names = [name for name in reasons if (tmp_path / name[:200]).is_symlink() or (tmp_path / name[:200]).exists()]
    gradient().save(tmp_path / "good.png")
    names.append("good.png")
    table = Annotations(tmp_path, tuple(names), {"make": np.arange(len(names)) % 2}, np.array([""] * len(names)))
    store = open_store(table, ImageDecoder(8), tmp_path / "cache", on_bad_image="skip")
    assert [store.bad[i] for i in range(len(names) - 1)] == [reasons[name] for name in names[:-1]]


def test_a_picture_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: object) -> int:
        raise PermissionError(13, "Permission denied")

    file = _file(tmp_path, encoded(gradient(), "PNG"))
    monkeypatch.setattr(os, "open", refused)  # root may read all
    with pytest.raises(DamagedImageError, match=r"x\.jpg: cannot be read \(Permission denied\)"):
        ImageDecoder(8)(file)


def test_a_file_larger_than_any_picture_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "x.tif").open("wb") as file:
        file.truncate(picture.MAX_BYTES + 1)  # a sparse one takes no disk
    with pytest.raises(DamagedImageError, match="640 MB, more than 640 MB"):
        ImageDecoder(8)(tmp_path / "x.tif")


def test_links_out_of_the_folder_are_followed(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    gradient().save(tmp_path / "elsewhere.png")
    (tmp_path / "data" / "x.png").symlink_to(tmp_path / "elsewhere.png")
    assert ImageDecoder(8)(tmp_path / "data" / "x.png").shape == (8, 8, 3)


# Sound, but odd


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_in_every_format_is_applied_once(kind: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(kind, {})
    file = _file(tmp_path, encoded(gradient(), kind, exif=exif, **options))
    upright = gradient()
    upright.getexif()[0x0112] = orientation
    expected = ImageOps.exif_transpose(upright).resize((16, 16), Image.Resampling.BILINEAR)
    difference = np.abs(ImageDecoder(16)(file).astype(int) - np.asarray(expected))
    assert difference.max() <= (4 if kind == "JPEG" else 0)


@pytest.mark.parametrize(
    "block", [b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" * 9]
)
def test_a_damaged_exif_block_leaves_the_picture_upright(block: bytes, tmp_path: Path) -> None:
    whole = encoded(gradient(), "JPEG", quality=95)
    marked = whole[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + whole[2:]
    assert np.array_equal(ImageDecoder(16)(_file(tmp_path, marked)), ImageDecoder(16)(_file(tmp_path, whole, "y.jpg")))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_there_is_not_counts_as_upright(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = _file(tmp_path, encoded(gradient(), "PNG", exif=exif))
    assert np.array_equal(ImageDecoder(16)(file), ImageDecoder(16)(_file(tmp_path, encoded(gradient(), "PNG"), "y")))


def sixteen(levels: np.ndarray, colour: int, more: bytes = b"") -> bytes:
    """A PNG of 16-bit samples [H, W, C]."""
    h, w, _ = levels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    return png(w, h, rows, more, depth=16, colour=colour)


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)], ids=["grey", "rgb", "la", "rgba"])
def test_sixteen_bits_are_scaled_to_eight(colour: int, channels: int, tmp_path: Path) -> None:
    levels = np.random.default_rng(1).integers(0, 65536, (8, 8, channels))
    if channels in (2, 4):
        levels[..., -1] = 65535
    data = sixteen(levels, colour)
    difference = ImageDecoder(8)(_file(tmp_path, data)) - levels[..., : 1 if channels < 3 else 3] / 257
    # Pillow cuts the lower byte off where there are several channels: at most one level darker
    assert np.abs(difference).max() <= (0.5 if channels == 1 else 1.0)


def test_a_transparent_value_of_sixteen_bit_grey_is_white_and_others_keep_their_level(tmp_path: Path) -> None:
    levels = np.arange(64).reshape(8, 8, 1) * 1000
    data = sixteen(levels, 0, chunk(b"tRNS", struct.pack(">H", 5000)))
    expected = (levels[..., 0] + 128) // 257
    expected[0, 5] = 255
    assert np.array_equal(ImageDecoder(8)(_file(tmp_path, data))[..., 0], expected)


def test_grey_with_transparency_and_palettes_are_laid_on_white(tmp_path: Path) -> None:
    grey = Image.merge("LA", (Image.new("L", (2, 1), 100), Image.frombytes("L", (2, 1), bytes([0, 255]))))
    assert ImageDecoder(2)(_file(tmp_path, encoded(grey, "PNG")))[0, :, 0].tolist() == [255, 100]
    indexed = Image.new("P", (2, 1), 0)
    indexed.putpalette([10, 20, 30, 40, 50, 60])
    indexed.putpixel((1, 0), 1)
    file = _file(tmp_path, encoded(indexed, "PNG", transparency=bytes([0, 255])))
    assert ImageDecoder(2)(file)[0].tolist() == [[255] * 3, [40, 50, 60]]


def test_inks_are_read_as_adobe_stores_them(tmp_path: Path) -> None:
    inks = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    data = encoded(inks, "JPEG", quality=100)  # Pillow, like Adobe, writes them inverted, with Adobe's marker
    ours = ImageDecoder(8)(_file(tmp_path, data))
    assert np.abs(ours.astype(int) - (0, 255, 255)).max() <= 2


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_many_frames_the_first_is_taken(kind: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:] * 30, **options)
    assert (ImageDecoder(4)(_file(tmp_path, data)) == (255, 0, 0)).all()


def test_what_pillow_warns_of_does_not_decide(tmp_path: Path) -> None:
    """A tag with two values where one is expected: used here, where warnings are errors, as anywhere else."""
    data = bytearray(encoded(gradient(), "TIFF"))
    data[data.index(struct.pack("<HHI", 259, 3, 1)) + 4] = 2
    with pytest.warns(UserWarning, match="too many entries"):
        Image.open(io.BytesIO(bytes(data))).load()
    assert ImageDecoder(8)(_file(tmp_path, bytes(data))).shape == (8, 8, 3)


def test_names_that_are_no_text_are_found_named_and_written(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    gradient().save(tmp_path / "x.png")
    (tmp_path / "x.png").rename(tmp_path / name)
    files = picture_files([str(tmp_path)])
    assert [file.name for file in files] == [name]
    assert ImageDecoder(8)(files[0]).shape == (8, 8, 3)
    files[0].write_bytes(b"")
    with pytest.raises(DamagedImageError, match=r"caf\\xe9\.png: the file is empty"):
        ImageDecoder(8)(files[0])
    rows = [{"file": str(files[0]), "error": "the file is empty"}]
    tasks = TaskSet([Task("make", "classification", ("a", "b"))])
    for text in (as_json(rows), as_csv(rows, tasks, 3), as_text(rows, tasks, 3)):
        assert "caf\\" in text.encode("utf-8").decode()


@pytest.mark.parametrize("word", ["~nobody-of-this-name/x.jpg", "x" * 5000, "a\0b"])
def test_a_word_that_names_nothing_is_explained(word: str) -> None:
    from mtlcar.errors import UserError

    with pytest.raises(UserError, match="Give picture files") as caught:
        picture_files([word])
    assert len(str(caught.value)) < 6000
