"""Where networks look: Grad-CAM of every architecture against the formula written out, and `mtlcar explain`."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from mtlcar.architectures.base import Architecture
from mtlcar.build import build as build_parts
from mtlcar.config import groups
from mtlcar.errors import UserError
from mtlcar.inference import explain
from mtlcar.inference.cam import grid_of, task_cam, view_of, with_grid
from mtlcar.inference.overlay import FADED, GREY, faded, to_size
from mtlcar.runs.evaluate import stored_config
from tests.jobs import write_run
from tests.networks import CARS, IMAGE, build

ARCHITECTURES = [n for n in groups()["architecture"] if n != "constant"]


def warmed(network: Architecture) -> Architecture:
    """With running statistics of BatchNorm that are not those of the start, in evaluation."""
    network.train()
    with torch.no_grad():
        for _ in range(3):
            network(IMAGE, {t.name: torch.zeros(len(IMAGE), dtype=torch.int64) for t in network.tasks})
    return network.eval()


def written_out(maps: Tensor, value: Tensor) -> np.ndarray:
    """Equations 1 and 2 of Selvaraju et al. 2017, image by image: maps [B, K, H, W] in the graph of value [B]."""
    gradient = torch.autograd.grad(value.sum(), maps)[0]
    b, channels, height, width = maps.shape
    found = np.zeros((b, height, width))
    for i in range(b):
        for k in range(channels):
            alpha = sum(float(gradient[i, k, y, x]) for y in range(height) for x in range(width)) / (height * width)
            found[i] += alpha * maps[i, k].detach().double().numpy()
    return np.maximum(found, 0)


def target(network: Architecture, task: str, output: Tensor) -> tuple[Tensor, Tensor | None]:
    """What is explained [B], and the classes."""
    if not network.tasks[task].classes:
        return output, None
    classes = output.argmax(1)
    return output.gather(1, classes[:, None])[:, 0], classes


def cam_of(network: Architecture, task: str, image: Tensor = IMAGE, view: nn.Module | None = None) -> np.ndarray:
    """`view`: where it is there already."""
    with torch.no_grad():
        classes = target(network, task, network(image).outputs[task])[1]
    return task_cam(view or view_of(network, task, image[:1]), image, classes)


@pytest.mark.parametrize("head", ["linear", "mlp", "conv"])
@pytest.mark.parametrize("architecture", ["parallel", "cascade", "single", "kem"])
def test_it_is_the_formula_on_the_last_map_of_the_one_trunk(architecture: str, head: str) -> None:
    network = warmed(build(architecture, head=head, size=64))
    image = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    kept: list[Tensor] = []
    for task in network.tasks.names:
        kept.clear()
        point = network.heads[network.tasks.names.index(task)] if architecture == "kem" else network.backbone
        if architecture == "kem" and head == "conv":  # each head has a map of its own
            handle = point.input_dropout.register_forward_pre_hook(lambda m, x: kept.append(x[0]))
        else:
            handle = network.backbone.register_forward_hook(lambda m, x, y: kept.append(y[-1]))
        value, _ = target(network, task, network(image).outputs[task])
        handle.remove()
        expected = written_out(kept[0], value)
        found = cam_of(network, task, image)
        assert found.shape == expected.shape == (3, 4, 4)
        assert expected.any()
        np.testing.assert_allclose(found, expected, atol=1e-5 * expected.max())


def test_of_pooled_features_and_a_linear_head_it_is_the_class_activation_map() -> None:
    """Zhou et al. 2016: the classifier's weights over the maps; Grad-CAM has them divided by the positions."""
    network = warmed(build("parallel"))
    with torch.no_grad():
        maps = network.backbone(IMAGE)[-1]
        weights = network.heads[1].output.weight[network(IMAGE).outputs["model"].argmax(1)]
        expected = torch.einsum("bk,bkhw->bhw", weights, maps).relu() / maps[0, 0].numel()
    np.testing.assert_allclose(cam_of(network, "model"), expected.numpy(), atol=1e-6)


def test_a_vit_is_looked_at_where_its_last_attention_reads() -> None:
    network = warmed(build("parallel", backbone="vit_tiny"))
    norm = network.backbone.stages[-1][0].ln_1
    assert isinstance(norm, nn.LayerNorm)
    kept: list[Tensor] = []
    handle = norm.register_forward_hook(lambda m, x, y: kept.append(y))
    value, _ = target(network, "model", network(IMAGE).outputs["model"])
    handle.remove()
    gradient = torch.autograd.grad(value.sum(), kept[0])[0][:, 1:]  # without the class token
    expected = (kept[0][:, 1:] * gradient.mean(1, keepdim=True)).sum(2).relu().detach().reshape(-1, 4, 4)
    found = cam_of(network, "model")
    assert found.any()
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5 * float(expected.max()))


def test_each_task_of_mtan_is_explained_by_its_own_attended_map() -> None:
    network = warmed(build("mtan"))
    maps: list[Tensor] = []
    handle = network.backbone.pooling.register_forward_pre_hook(lambda m, x: maps.append(x[0]))
    outputs = network(IMAGE).outputs
    handle.remove()
    for t, task in enumerate(CARS.names):
        value, _ = target(network, task, outputs[task])
        gradient = torch.autograd.grad(value.sum(), maps[t], retain_graph=True)[0]
        expected = (gradient.mean((2, 3), keepdim=True) * maps[t]).sum(1).relu().detach().numpy()
        np.testing.assert_allclose(cam_of(network, task), expected, atol=1e-5 * max(expected.max(), 1e-3))


def test_of_a_mixture_of_experts_it_is_that_of_the_mixed_map() -> None:
    network = warmed(build("mmoe"))
    maps: list[Tensor] = []
    handles = [e.stages[-1].register_forward_hook(lambda m, x, y: maps.append(y)) for e in network.experts]
    network(IMAGE)
    for handle in handles:
        handle.remove()
    stem = network.backbone.through(IMAGE, 0, network.share_until)
    weights = network.gates[1](network.gate_features(stem, IMAGE)).detach()
    mixed = sum(w[:, None, None, None] * m for w, m in zip(weights.unbind(1), maps, strict=True)).detach()
    mixed.requires_grad_()
    value, _ = target(network, "model", network.heads[1](network.backbone.pool(mixed)))
    expected = written_out(mixed, value)
    np.testing.assert_allclose(cam_of(network, "model"), expected, atol=1e-5 * expected.max())


def test_of_cross_stitched_trunks_it_is_that_of_the_stitched_map() -> None:
    network = warmed(build("cross_stitch"))
    maps: list[Tensor] = []
    handle = network.trunks[1].pooling.register_forward_pre_hook(lambda m, x: maps.append(x[0]))
    value, _ = target(network, "model", network(IMAGE).outputs["model"])
    handle.remove()
    expected = written_out(maps[0], value)
    np.testing.assert_allclose(cam_of(network, "model"), expected, atol=1e-5 * expected.max())


def looked_at() -> list[object]:
    """What mixes experts as mmoe does is quick with one trunk and head."""
    found: list[object] = []
    for architecture, head, backbone in itertools.product(ARCHITECTURES, ("linear", "conv"), ("tiny", "vit_tiny")):
        mixed = architecture in ("cgc", "ple", "dselect_k")
        slow = (head, backbone) == ("conv", "vit_tiny") or (mixed and (head, backbone) != ("linear", "tiny"))
        name = f"{architecture}-{head}-{backbone}"
        found.append(pytest.param(architecture, head, backbone, id=name, marks=pytest.mark.slow if slow else ()))
    return found


@pytest.mark.parametrize(("architecture", "head", "backbone"), looked_at())
def test_every_architecture_has_a_map_a_task_and_is_left_as_it_was(architecture: str, head: str, backbone: str) -> None:
    size = 64 if head == "conv" and backbone == "tiny" else 32
    narrow = {"width": 16} if architecture in ("kem", "skem", "cross_attention") else {}
    network = warmed(build(architecture, head=head, backbone=backbone, size=size, **narrow))
    image = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(3))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    trained = [p.requires_grad for p in network.parameters()]
    with torch.no_grad():
        outputs = network(image).outputs
    seen = 0.0
    for task in network.tasks.names:
        view = view_of(network, task, image[:1])
        torch.testing.assert_close(view(image), outputs[task])  # what is explained is what the network says
        cam = cam_of(network, task, image, view)
        assert cam.shape[0] == 2
        assert cam.shape[1] == cam.shape[2] > 1
        assert np.isfinite(cam).all()
        assert (cam >= 0).all()
        seen = max(seen, float(cam.max()))
    assert seen > 0
    assert all(p.grad is None for p in network.parameters())
    assert [p.requires_grad for p in network.parameters()] == trained
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    after = network.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in before.items())
    torch.testing.assert_close(network(image).outputs, outputs)


def test_without_a_trunk_there_is_nothing_to_look_at() -> None:
    with pytest.raises(UserError, match="architecture=constant has no feature map"):
        view_of(build("constant").eval(), "make", IMAGE[:1])


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (2, 3, 5, 4), (2, 17, 3), (2, 16, 3)])
def test_a_grid_goes_back_to_where_it_was(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    grid = grid_of(x)
    assert grid.shape == (2, 3, 4, 4)
    torch.testing.assert_close(with_grid(x, grid), x)
    changed = with_grid(x, grid + 1)
    assert int((changed != x).sum()) == grid.numel()


def test_maps_are_shares_of_their_largest_number_and_zero_stays_zero() -> None:
    cam = np.array([[[2.0, 2.0], [2.0, 2.0]], [[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 5.0]]], dtype=np.float32)
    large = to_size(cam, 8)
    assert large.shape == (3, 8, 8)
    np.testing.assert_allclose(large[0], 1)  # no pattern is made of an even map
    assert not large[1].any()
    assert large[2, -1, -1] == large[2].max() == 1
    assert large[2, 0, 0] == 0


def test_what_does_not_count_fades_to_grey() -> None:
    picture = np.array([[[0, 0, 0], [255, 100, 0]]], dtype=np.uint8)
    np.testing.assert_array_equal(faded(picture, np.ones((1, 2))), picture)
    gone = faded(picture, np.zeros((1, 2))).astype(float)
    np.testing.assert_allclose(gone - GREY, FADED * (picture - GREY), atol=0.5)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(tmp_path_factory.mktemp("explain"))


def untrained(folder: Path, *overrides: str) -> Path:
    """A run directory with the checkpoint of a network that has learnt nothing."""
    directory = write_run(folder, *overrides)
    torch.manual_seed(0)
    module = build_parts(stored_config(directory, [])).module
    (directory / "checkpoints").mkdir()
    torch.save({"state_dict": module.state_dict()}, directory / "checkpoints" / "best.ckpt")
    return directory


def pictures(folder: Path, n: int) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(n):
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(folder / f"{i:02d}.png")
    return folder


def test_the_command_writes_one_row_a_picture_and_one_column_a_task(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pictures(tmp_path / "in", 2)
    sizes = []
    for name, words, tasks in (
        ("a", ["00.png"], None),
        ("b", ["00.png", "01.png"], None),
        ("c", ["00.png"], ["model"]),
    ):
        out = tmp_path / f"{name}.png"
        assert explain.command(str(run), [str(folder / w) for w in words], output=str(out), tasks=tasks) == 0
        assert capsys.readouterr().out.strip() == str(out)
        with Image.open(out) as image:
            sizes.append(image.size)
    (one, two, narrow) = sizes
    assert two[1] > 1.5 * one[1]
    assert abs(two[0] - one[0]) < 0.1 * one[0]
    assert 0.55 < narrow[0] / one[0] < 0.75  # two columns of three
    assert not list(tmp_path.glob(".*"))  # nothing half written


def test_more_pictures_than_fit_are_said_to_be_left_out(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(explain, "MOST", 2)
    explain.command(str(run), [str(pictures(tmp_path / "in", 3))], output=str(tmp_path / "o.png"), tasks=["make"])
    assert "2 pictures: the first of 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ["modle"]}, r"--tasks modle.*Did you mean 'model'.*make, model"),
        ({"output": "o.jpg"}, r"-o .*o\.jpg.*PNG"),
        ({"images": ["gone.png"]}, r"gone\.png"),
        ({"images": ["torn.png"]}, r"torn\.png"),
    ],
)
def test_mistakes_are_named_before_anything_is_written(
    run: Path, tmp_path: Path, change: dict[str, list[str] | str], message: str
) -> None:
    folder = pictures(tmp_path / "in", 1)
    (folder / "torn.png").write_bytes((folder / "00.png").read_bytes()[:200])
    images = [str(folder / w) for w in change.get("images", ["00.png"])]
    output = tmp_path / str(change.get("output", "o.png"))
    tasks = change.get("tasks")
    with pytest.raises(UserError, match=message):
        explain.command(str(run), images, output=str(output), tasks=tasks)  # type: ignore[arg-type]
    assert not output.exists()


def test_without_the_package_the_extra_is_named(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    with pytest.raises(UserError, match=r"pip install 'mtlcar\[explain\]'"):
        explain.command(str(run), [str(pictures(tmp_path / "in", 1))], output=str(tmp_path / "o.png"), tasks=None)


def test_titles_say_what_is_predicted(run: Path) -> None:
    from mtlcar.inference.network import load_network

    network = load_network(run, stored_config(run, []))
    pixels = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    said = network(pixels)
    figure = explain.explained(network, pixels, ["a.png", "b.png"], ["make", "model"])
    rows = [[ax.get_title() for ax in figure.axes[i : i + 3]] for i in (0, 3)]
    for i, (name, *titles) in enumerate(rows):
        assert name == ("a.png", "b.png")[i]
        for task, title in zip(("make", "model"), titles, strict=True):
            c = int(said.scores[task][i].argmax())
            sure = float(said.scores[task][i].max())
            assert title == f"{task} ({100 * sure:.0f} %)\n{network.tasks[task].classes[c]}"


def test_fastcar_is_explained_by_its_position_and_says_class_and_value(tmp_path: Path) -> None:
    from mtlcar.inference.network import load_network

    run = untrained(tmp_path, "label_transform=fastcar", "data.levels=[model,weight]", "weighting=equal")
    network = load_network(run, stored_config(run, []))
    pixels = torch.randint(0, 256, (1, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    said = network(pixels)
    figure = explain.explained(network, pixels, ["a.png"], ["axis"])
    name, title = (ax.get_title() for ax in figure.axes)
    model = network.tasks["model"].classes[int(said.predictions["model"][0])]
    weight = float(said.predictions["weight"][0])
    assert name.splitlines() == ["a.png", f"model: {model}", f"weight: {weight:.4g} {network.tasks['weight'].unit}"]
    assert title.startswith("position on the axis\n")
