"""An exported file is one file, says what `mtlcar predict` says, and is not there when it does not."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mtlcar import __version__
from mtlcar.data.decode import ImageDecoder
from mtlcar.errors import UserError
from mtlcar.inference import export as exporting
from mtlcar.inference.export import command, export
from mtlcar.inference.export_module import Exportable, JointLevels
from mtlcar.inference.exported import ExportedNetwork
from mtlcar.inference.network import load_network
from mtlcar.inference.predictor import Predictor
from mtlcar.inference.resize import Resize
from mtlcar.inference.verify import TOLERANCE, ExportFailedError, compare
from mtlcar.metrics.decoding import decode_levels
from mtlcar.runs.evaluate import stored_config
from mtlcar.tasks import Task, TaskSet
from tests.trained import pictures, trained_run

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
FLIPS = "test_time_augmentation=flips"
ALL = "data.levels=[make,model,weight]"
KINDS = {
    "cascade": (ALL, "architecture=cascade"),
    "vit": (ALL, "backbone=vit_tiny"),
    "fastcar": ("data.levels=[model,weight]", "label_transform=fastcar"),
    "interval_softmax": ("data.levels=[model,weight]", "label_transform=interval_softmax"),
    "ltb": ("architecture=ltb", "data.resize=pad"),
    "single": (ALL, "architecture=single", "label_transform=class_mean", "data.resize=crop", FLIPS),
}
TRIED = [
    *(("cascade", "onnx"), ("fastcar", "onnx"), ("single", "pt2")),
    *(
        pytest.param(*pair, marks=pytest.mark.slow)
        for pair in (("vit", "pt2"), ("vit", "onnx"), ("interval_softmax", "pt2"))
    ),
    *(pytest.param(kind, "pt2", marks=pytest.mark.slow) for kind in ("cascade", "fastcar", "ltb")),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    return trained_run(folder, *KINDS["cascade"], tested=False)


@pytest.fixture(scope="module")
def program(run: Path) -> tuple:
    """The cascade, traced once: `_trace` of the tests that look at what comes after."""
    return exporting._trace(Exportable(load_network(run, stored_config(run, []))).eval(), 32)


@pytest.fixture(scope="module")
def file(run: Path, program: tuple, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("file") / "n.pt2"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "_trace", lambda *_: program)
        export(load_network(run, stored_config(run, [])), path, "pt2")
    return path


# --- what is exported -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "form"), TRIED)
def test_the_file_says_what_predict_says(folder: Path, tmp_path: Path, kind: str, form: str) -> None:
    run = trained_run(folder, *KINDS[kind], tested=False)
    files = [*pictures(run)[:5], *odd_pictures(tmp_path)]
    network = load_network(run, stored_config(run, []))
    rows = list(Predictor(network, "joint", top=100, intervals={}).rows(files))
    difference, about = export(network, tmp_path / f"network.{form}", form)
    assert difference <= TOLERANCE
    assert [p.name for p in tmp_path.iterdir() if "network" in p.name] == [f"network.{form}"]  # one file
    exported = ExportedNetwork(tmp_path / f"network.{form}")
    assert exported.tasks == network.tasks
    found = exported.predict(files)
    assert list(found) == about["outputs"]
    probabilities = exported.probabilities(found)
    for name, said in ((name, [row["tasks"][name] for row in rows]) for name in rows[0]["tasks"]):
        if "value" in said[0]:
            np.testing.assert_allclose(found[name], [s["value"] for s in said], rtol=1e-4)
            continue
        assert found[name].tolist() == [s["index"] for s in said]
        own = probabilities[name] if network.probabilities else found[f"{name}_scores"]
        for i, s in enumerate(said):
            listed = {best["index"]: best.get("probability", best.get("score")) for best in s["top"]}
            np.testing.assert_allclose([listed[c] for c in range(len(listed))], own[i], atol=1e-4)
    assert about["input"]["batch"] is None
    assert len({row["tasks"]["model"]["index"] for row in rows}) > 1


def odd_pictures(folder: Path) -> list[Path]:
    """Pictures of other shapes than the data's."""
    rng = np.random.default_rng(0)
    found = []
    for i, (height, width) in enumerate(((80, 33), (31, 90), (32, 32))):
        small = Image.fromarray(rng.integers(0, 256, (5, 4, 3), dtype=np.uint8))
        found.append(folder / f"odd{i}.png")
        small.resize((width, height), Image.Resampling.BICUBIC).save(found[-1])
    return found


def test_any_number_of_pictures_of_any_size(run: Path, file: Path) -> None:
    module = Exportable(load_network(run, stored_config(run, []))).eval()
    exported = ExportedNetwork(file)
    rng = np.random.default_rng(0)
    for n, height, width in ((1, 1, 1), (4, 32, 32), (2, 200, 50), (7, 9, 64)):
        pixels = rng.integers(0, 256, (n, 3, height, width), dtype=np.uint8)
        with torch.inference_mode():
            expected = module(torch.from_numpy(pixels))
        for name, value in exported.outputs(pixels).items():
            np.testing.assert_allclose(value, expected[name].numpy(), rtol=1e-5, atol=1e-6)


def test_the_file_describes_itself(run: Path, file: Path) -> None:
    extra = {"mtlcar": ""}
    torch.export.load(file, extra_files=extra)
    about = json.loads(extra["mtlcar"])
    assert (about["schema"], about["mtlcar"], about["fingerprint"]) == (1, __version__, run.name)
    tasks = json.loads((run / "tasks.json").read_text())
    assert (about["tasks"], about["parent_of"]) == (tasks["tasks"], tasks["parent_of"])
    assert about["outputs"] == ["make", "make_probabilities", "model", "model_probabilities", "weight"]
    assert (about["input"]["size"], about["input"]["resize"]) == (32, "stretch")
    assert about["input"]["mean"] == list(load_network(run, stored_config(run, [])).architecture.backbone.mean)


# --- resizing ---------------------------------------------------------------------------------------------------------


@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from(["stretch", "pad", "crop"]), st.integers(1, 40))
@settings(max_examples=150)
def test_resizing_gives_the_decoders_pixels(height: int, width: int, resize: str, size: int) -> None:
    pixels = np.random.default_rng(height * 100 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    decoder = ImageDecoder(size, resize)
    expected = np.array(decoder._square(Image.fromarray(pixels), (0, 0, width, height))).astype(int)
    found = Resize(size, resize)(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    difference = np.abs(found - expected)
    assert difference.max() <= (0 if width >= height else 1)


def test_a_picture_of_the_networks_size_is_not_changed() -> None:
    pixels = torch.randint(0, 256, (2, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for resize in ("stretch", "pad", "crop"):
        assert torch.equal(Resize(24, resize)(pixels), pixels.double())


# --- levels -----------------------------------------------------------------------------------------------------------


@st.composite
def hierarchies(draw: st.DrawFn) -> TaskSet:
    """Levels of random tables, in which a class may have no child and a level several children, in any order."""
    sizes = draw(st.lists(st.integers(2, 6), min_size=2, max_size=4))
    tasks = [Task("t0", "classification", tuple("abcdef"[: sizes[0]]))]
    table = {}
    for i, size in enumerate(sizes[1:], start=1):
        above = draw(st.integers(0, i - 1))
        tasks.append(Task(f"t{i}", "classification", tuple("abcdef"[:size]), parent=f"t{above}"))
        table[f"t{i}"] = draw(st.lists(st.integers(0, sizes[above] - 1), min_size=size, max_size=size))
    return TaskSet(draw(st.permutations(tasks)), table)


@given(hierarchies(), st.data())
@settings(max_examples=120)
def test_levels_in_tensors_are_those_of_decode_levels(tasks: TaskSet, data: st.DataObject) -> None:
    scored = data.draw(st.lists(st.sampled_from(tasks.names), min_size=2, unique=True))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    scores = {name: rng.dirichlet(np.ones(len(tasks[name].classes)), 30).astype(np.float32) for name in scored}
    scores[scored[0]][0] = 0.0
    scores[scored[0]][1] = np.nan
    expected = decode_levels(scores, tasks, "joint")
    found = JointLevels(tasks, scored)({name: torch.from_numpy(p) for name, p in scores.items()})
    assert set(found) == set(expected)
    for name, classes in expected.items():
        assert found[name].tolist() == classes.tolist()


# --- what is not written ----------------------------------------------------------------------------------------------


def test_a_file_that_says_something_else_is_not_written(
    run: Path, program: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(exporting, "_trace", lambda *_: program)
    real = ExportedNetwork.outputs

    def wrong(self: ExportedNetwork, pixels: np.ndarray) -> dict[str, np.ndarray]:
        found = real(self, pixels)
        return {**found, "weight": found["weight"] * np.float32(1.001)}

    monkeypatch.setattr(ExportedNetwork, "outputs", wrong)
    assert command(str(run), form="pt2", output=str(tmp_path / "n.pt2")) == 1
    out, err = capsys.readouterr()
    assert list(tmp_path.iterdir()) == []
    assert "weight differs from the network's by 0.001" in err
    assert out == ""


def test_a_network_that_cannot_be_exported_is_said_in_a_sentence(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no such operator\nand much more")

    monkeypatch.setattr(exporting, "_trace", fails)
    assert command(str(run), form="pt2", output=str(tmp_path / "n.pt2")) == 1
    assert "cannot be exported (RuntimeError: no such operator)" in " ".join(capsys.readouterr().err.split())


def test_the_command_prints_the_largest_difference(
    run: Path, program: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(exporting, "_trace", lambda *_: program)
    assert command(str(run), form="pt2", output=str(tmp_path / "n.pt2")) == 0
    out, err = capsys.readouterr()
    assert "largest difference from PyTorch" in out
    assert "any number of pictures" in out
    assert err == ""


class Fake:
    """An exported network that says what it is told to, of any pictures."""

    def __init__(self, said: dict[str, Any]) -> None:
        self.said = said

    def outputs(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        return {
            name: np.array(values[: len(pixels)], dtype=np.asarray(values).dtype) for name, values in self.said.items()
        }


def test_comparing_allows_ties_and_rounding_and_nothing_else() -> None:
    def network(pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        n = len(pixels)
        scores = torch.tensor([[0.5, 0.5 - 5e-5, 5e-5]] * n, dtype=torch.float64)
        return {"x": torch.zeros(n, dtype=torch.int64), "x_probabilities": scores, "y": torch.full((n,), 700.0)}

    good: dict[str, Any] = {
        "x": [0] * 3,
        "x_probabilities": [[0.5, 0.5 - 5e-5, 5e-5]] * 3,
        "y": np.full(3, 700.0, np.float32),
    }
    assert compare(network, Fake(good), 8) == 0
    assert compare(network, Fake({**good, "x": [1] * 3}), 8) == 0  # a tie
    nearly = {**good, "y": np.full(3, 700.05, np.float32)}
    assert 6e-5 < compare(network, Fake(nearly), 8) < 8e-5
    mistakes: tuple[tuple[dict[str, Any], str], ...] = (
        ({"x": [2] * 3}, "x is class 2 where the network says 0"),
        ({"x": [-1] * 3}, "x is class -1"),
        ({"y": np.full(3, 701.0, np.float32)}, "y differs from the network's by 0.0014"),
        ({"y": np.full(3, np.nan, np.float32)}, "y differs"),
        ({"y": np.full(3, 700.0, np.float64)}, "y is float64"),
    )
    for wrong, message in mistakes:
        with pytest.raises(ExportFailedError, match=message):
            compare(network, Fake({**good, **wrong}), 8)
    with pytest.raises(ExportFailedError, match="outputs are x, y"):
        compare(network, Fake({"x": good["x"], "y": good["y"]}), 8)


# --- mistakes ---------------------------------------------------------------------------------------------------------


def test_a_missing_package_is_named_with_the_extra_to_install(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = exporting.importlib.util.find_spec
    monkeypatch.setattr(exporting.importlib.util, "find_spec", lambda name: None if name == "onnx" else real(name))
    with pytest.raises(UserError, match=r"needs onnx\. Install with: pip install 'mtlcar\[export\]'"):
        command(str(run), form="onnx")


def test_names_of_files_are_checked_first(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"writes \.pt2 files"):
        command(str(run), form="pt2", output=str(tmp_path / "n.onnx"))
    (tmp_path / "x.pt2").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        command(str(run), form="pt2", output=str(tmp_path / "x.pt2"))


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        ExportedNetwork(tmp_path / "gone.onnx")
    for name in ("a.onnx", "a.pt2"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(UserError, match=r"is no file of `mtlcar export`"):
            ExportedNetwork(tmp_path / name)
    (tmp_path / "a.txt").touch()
    with pytest.raises(UserError, match=r"expected a file of `mtlcar export`"):
        ExportedNetwork(tmp_path / "a.txt")
