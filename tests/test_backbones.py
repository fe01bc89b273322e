"""Backbones: same function as the library's network, in stages; weights, freezing, sizes."""

import os
import pickle
import re
import urllib.error
from pathlib import Path

import pytest
import timm
import torch
import torchvision.models as library
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mtlcar.backbones.assemble import IMAGENET_MEAN
from mtlcar.backbones.cut import CutBackbone, cut
from mtlcar.backbones.tiny import tiny
from mtlcar.backbones.torchvision_backbone import from_network, torchvision_backbone
from mtlcar.backbones.vit import map_to_tokens, tokens_to_map, vit_tiny
from mtlcar.errors import UserError

CONF = Path(__file__).parent.parent / "conf" / "backbone"
DATA = Path(os.environ.get("MTLCAR_DATA") or Path(__file__).parent.parent.parent / "shared" / "data")
LITE0 = DATA.parent / "weights" / "tf_efficientnet_lite0.safetensors"

# name: (image size in px, parameters at that size, map sides)
TABLE = {
    "resnet18": (64, 11_176_512, (16, 8, 4, 2)),
    "resnet34": (64, 21_284_672, (16, 8, 4, 2)),
    "resnet50": (64, 23_508_032, (16, 8, 4, 2)),
    "resnet101": (64, 42_500_160, (16, 8, 4, 2)),
    "densenet121": (64, 6_953_856, (16, 8, 4, 2)),
    "convnext_tiny": (64, 27_820_128, (16, 8, 4, 2)),
    "convnext_small": (64, 49_454_688, (16, 8, 4, 2)),
    "convnext_base": (64, 87_566_464, (16, 8, 4, 2)),
    "efficientnet_b0": (64, 4_007_548, (16, 8, 4, 2)),
    "efficientnet_lite0": (64, 3_371_008, (16, 8, 4, 2)),
    "swin_t": (64, 27_519_354, (16, 8, 4, 2)),
    "swin_s": (64, 48_837_258, (16, 8, 4, 2)),
    "maxvit_t": (224, 30_407_624, (56, 28, 14, 7)),
    "vit_b_16": (224, 85_798_656, (14, 14, 14, 14)),
    "tiny": (64, 83_344, (32, 16, 8, 4)),
    "vit_tiny": (64, 88_368, (8, 8, 8, 8)),
}


def config(name: str) -> dict:
    return OmegaConf.load(CONF / f"{name}.yaml")


def build(name: str, image_size: int, /, **changes: object) -> CutBackbone:
    return instantiate(OmegaConf.merge(config(name), changes), _partial_=True)(image_size=image_size)


def shake(network: nn.Module) -> nn.Module:
    """Parameters and statistics away from their initial zeros and ones, which hide mistakes."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.03 * torch.randn(p.shape, generator=generator))
        for name, b in network.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                b.add_(0.3 * torch.rand(b.shape, generator=generator))
    return network.eval()


def test_every_yaml_has_a_row_and_says_what_it_is() -> None:
    assert sorted(p.stem for p in CONF.glob("*.yaml")) == sorted(TABLE)
    for path in CONF.glob("*.yaml"):
        assert path.read_text().startswith("# ")
        assert config(path.stem).name == path.stem


@pytest.mark.parametrize("name", TABLE)
def test_every_yaml_builds_stages_with_the_channels_it_says(name: str) -> None:
    size, parameters, sides = TABLE[name]
    with torch.device("meta"):
        backbone = build(name, size).eval()
        maps = backbone(torch.zeros(2, 3, size, size))
        vector = backbone.pool(maps[-1])
    assert sum(p.numel() for p in backbone.parameters()) == parameters
    assert [m.shape[1] for m in maps] == list(backbone.channels)
    assert tuple(m.shape[3] for m in maps) == sides
    assert vector.shape == (2, backbone.features)
    grouped = [p for group in backbone.param_groups() for p in group]
    assert len(backbone.param_groups()) == len(backbone.stages)
    assert {id(p) for p in grouped} == {id(p) for p in backbone.parameters()}
    assert len(grouped) == len({id(p) for p in grouped})


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet18", 64),
        ("resnet50", 64),
        ("densenet121", 64),
        ("convnext_tiny", 64),
        ("efficientnet_b0", 64),
        ("efficientnet_v2_s", 64),
        ("swin_t", 72),  # maps that do not divide into windows
        ("maxvit_t", 224),
    ],
)
def test_pooled_features_and_the_librarys_last_layer_give_the_librarys_logits(name: str, size: int) -> None:
    torch.manual_seed(0)
    network = shake(library.get_model(name, weights=None))
    image = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = network(image)
        last = [m for m in network.modules() if isinstance(m, nn.Linear)][-1]
        backbone = from_network(network, name=name)
        backbone.eval()
        torch.testing.assert_close(last(backbone.pool(backbone(image)[-1])), expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 1e-3


def test_vit_stages_give_the_librarys_class_token() -> None:
    network = library.VisionTransformer(48, 8, num_layers=6, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5)
    shake(network)
    image = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        expected = network(image)
        backbone = CutBackbone(cut(network), mean=IMAGENET_MEAN, std=IMAGENET_MEAN).eval()
        maps = backbone(image)
        torch.testing.assert_close(network.heads(backbone.pool(maps[-1])), expected)
    assert [len(s) for s in backbone.stages] == [2, 1, 1, 4]  # embedding + (1), 1, 1, 3 blocks + norm
    assert maps[-1].shape == (2, 16, 1 + 6, 6)


@pytest.mark.parametrize("model", ["tf_efficientnet_lite0", "mobilenetv2_035", "resnet10t", "convnext_atto"])
def test_pooled_features_are_timms(model: str) -> None:
    torch.manual_seed(0)
    network = shake(timm.create_model(model))
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = network.forward_head(network.forward_features(image), pre_logits=True)
        backbone = CutBackbone(cut(network), mean=IMAGENET_MEAN, std=IMAGENET_MEAN).eval()
        maps = backbone(image)
        torch.testing.assert_close(backbone.pool(maps[-1]), expected)
    assert [m.shape[1] for m in maps] == list(backbone.channels)
    assert [m.shape[3] for m in maps] == [16, 8, 4, 2]


@pytest.mark.skipif(not LITE0.is_file(), reason="the shared EfficientNet-Lite0 weights are not on this machine")
def test_local_lite0_weights_load_and_give_timms_features_and_normalisation() -> None:
    backbone = build("efficientnet_lite0", 128, weights=str(LITE0)).eval()
    network = timm.create_model("tf_efficientnet_lite0")
    network.load_state_dict(load_file(LITE0), strict=True)
    network.eval()
    image = torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        expected = network.forward_head(network.forward_features(image), pre_logits=True)
        torch.testing.assert_close(backbone.pool(backbone(image)[-1]), expected)
    assert backbone.mean == backbone.std == (0.5, 0.5, 0.5)


# --- stages -----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_tokens_survive_the_way_to_a_map_and_back(b: int, c: int, h: int, w: int) -> None:
    tokens = torch.randn(b, 1 + h * w, c)
    as_map = tokens_to_map(tokens, w)
    assert as_map.shape == (b, c, 1 + h, w)
    torch.testing.assert_close(as_map[:, :, 1:].flatten(2).transpose(1, 2), tokens[:, 1:])
    torch.testing.assert_close(map_to_tokens(as_map), tokens)


@pytest.mark.parametrize(
    ("name", "size"), [("tiny", 32), ("vit_tiny", 32), ("resnet18", 32), ("efficientnet_lite0", 32)]
)
def test_a_stage_is_its_head_and_its_last_block(name: str, size: int) -> None:
    backbone = build(name, size).eval()
    x = torch.randn(1, 3, size, size)
    with torch.no_grad():
        for stage in backbone.stages:
            before = stage[:-1](x)
            last = type(stage)(stage[-1])  # a token stage's block needs the way from map to tokens
            torch.testing.assert_close(last(before), stage(x))
            x = stage(x)


# --- options ----------------------------------------------------------------------------------------------------------


def test_normalisation_is_the_weights_own_unless_given() -> None:
    assert build("resnet18", 64).mean == (0.485, 0.456, 0.406)
    half = build("resnet18", 64, mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5])
    assert (half.mean, half.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    with pytest.raises(UserError, match="three numbers"):
        build("tiny", 32, mean=[0.5])
    with pytest.raises(UserError, match="positive"):
        build("tiny", 32, std=[0.5, 0.0, 0.5])


@pytest.mark.parametrize("frozen", [0, 1, 3, 4])
def test_frozen_stages_do_not_move_and_the_others_do(frozen: int) -> None:
    backbone = build("tiny", 32, frozen_stages=frozen).train()
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    trainable = [p for p in backbone.parameters() if p.requires_grad]
    loss = backbone.pool(backbone(torch.randn(4, 3, 32, 32))[-1]).square().sum()
    if trainable:
        loss.backward()
        torch.optim.SGD(trainable, 0.1).step()
    for key, value in backbone.state_dict().items():
        stage = int(key.split(".")[1])
        assert torch.equal(value, before[key]) == (stage < frozen), key


def test_freezing_everything_includes_the_poolings_layers() -> None:
    with torch.device("meta"):
        backbone = build("convnext_tiny", 64, frozen_stages=4)
    assert not any(p.requires_grad for p in backbone.parameters())
    with pytest.raises(UserError, match="0 to 4"):
        build("tiny", 32, frozen_stages=5)


@pytest.mark.parametrize(("make", "compiled"), [(tiny, False), (vit_tiny, False), (tiny, True)])
def test_checkpointing_changes_neither_gradients_nor_batchnorm_statistics(make: type, compiled: bool) -> None:
    def run(checkpointing: bool) -> tuple[list[Tensor], dict[str, Tensor]]:
        torch.manual_seed(0)
        backbone = make(32, checkpointing=checkpointing).train()
        image = torch.randn(4, 3, 32, 32)
        torch._dynamo.reset()
        trunk = torch.compile(backbone, backend="aot_eager", fullgraph=True) if compiled and checkpointing else backbone
        feature = backbone.pool(trunk(image)[-1])
        # Two tasks' backward passes through the same trunk: each recomputes.
        losses = [feature.square().sum(), feature.sin().sum()]
        grads = [
            g for loss in losses for g in torch.autograd.grad(loss, list(backbone.parameters()), retain_graph=True)
        ]
        return grads, backbone.state_dict()

    (plain, plain_state), (saved, saved_state) = run(False), run(True)
    torch.testing.assert_close(saved, plain)
    for key, value in plain_state.items():
        assert torch.equal(saved_state[key], value), key


def test_checkpointing_keeps_fewer_activations() -> None:
    def kept(checkpointing: bool) -> int:
        count = 0

        def pack(x: Tensor) -> Tensor:
            nonlocal count
            count += x.numel()
            return x

        backbone = tiny(32, checkpointing=checkpointing).train()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            backbone(torch.randn(4, 3, 32, 32))
        return count

    assert kept(True) < kept(False) / 3


@pytest.mark.parametrize("name", ["convnext_tiny", "swin_t", "efficientnet_b0", "efficientnet_lite0"])
def test_drop_path_reaches_the_blocks(name: str) -> None:
    def rates(backbone: CutBackbone) -> list[float]:
        found = [
            getattr(m, "p", getattr(m, "drop_prob", None))
            for m in backbone.modules()
            if "Drop" in repr(type(m)) or "Stochastic" in repr(type(m))
        ]
        return [r for r in found if r is not None]

    with torch.device("meta"):
        assert max(rates(build(name, 64, drop_path=0.35))) == pytest.approx(0.35, rel=0.1)
        assert max(rates(build(name, 64, drop_path=0.0)), default=0.0) == 0.0


def test_drop_path_is_refused_where_there_is_none() -> None:
    with pytest.raises(UserError, match="no stochastic depth"):
        torchvision_backbone(64, name="resnet18", drop_path=0.1)
    with pytest.raises(UserError, match="below 1"):
        build("efficientnet_b0", 64, drop_path=1.5)
    with pytest.raises(UserError, match="below 1"):
        build("efficientnet_lite0", 64, drop_path=-0.1)


@pytest.mark.parametrize(
    ("name", "size", "hint"),
    [
        ("vit_b_16", 100, "use 96 or 112"),
        ("vit_tiny", 30, "use 24 or 32"),
        ("vit_tiny", 4, "use 8"),
        ("maxvit_t", 128, "use 224"),
        ("maxvit_t", 230, "use 224 or 448"),
        ("resnet18", 16, "at least 32"),
        ("efficientnet_lite0", 16, "at least 32"),
        ("tiny", 8, "at least 16"),
    ],
)
def test_an_impossible_image_size_names_those_that_work(name: str, size: int, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        build(name, size)


@pytest.mark.parametrize(
    ("name", "key", "value", "hint"),
    [
        ("resnet18", "name", "resnet19", "resnet18"),
        ("efficientnet_lite0", "model", "tf_efficientnet_lite9", "tf_efficientnet_lite"),
        ("resnet18", "name", "squeezenet1_1", "No way to cut a SqueezeNet"),
        ("vit_b_16", "name", "resnet18", "ViT"),
    ],
)
def test_an_unknown_network_is_named(name: str, key: str, value: str, hint: str) -> None:
    with torch.device("meta"), pytest.raises(UserError, match=hint):
        build(name, 64, **{key: value})


# --- weights ----------------------------------------------------------------------------------------------------------


def features(backbone: CutBackbone, image: Tensor) -> Tensor:
    with torch.no_grad():
        return backbone.eval().pool(backbone(image)[-1])


@pytest.mark.parametrize("kind", ["safetensors", "pt", "wrapped", "half"])
def test_local_weights_load_in_every_form(tmp_path: Path, kind: str) -> None:
    network = shake(library.resnet18(num_classes=7))  # a classifier of another size is no concern
    state = network.state_dict()
    path = tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "half":
        torch.save({k: v.half() if v.is_floating_point() else v for k, v in state.items()}, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if kind == "wrapped" else state, path)
    image = torch.randn(2, 3, 64, 64)
    expected = features(from_network(network, name="resnet18"), image)
    loaded = build("resnet18", 64, weights=str(path), pretrained=True)  # and no download
    tolerance = 1e-2 if kind == "half" else 1e-5
    torch.testing.assert_close(features(loaded, image), expected, rtol=tolerance, atol=tolerance)


def test_densenets_published_names_load(tmp_path: Path) -> None:
    network = shake(library.densenet121())
    state = network.state_dict()
    # As published: dots inside denselayer names, no counters.
    published = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", k): v
        for k, v in state.items()
        if not k.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in published
    torch.save(published, tmp_path / "w.pth")
    image = torch.randn(1, 3, 32, 32)
    loaded = build("densenet121", 32, weights=str(tmp_path / "w.pth"))
    torch.testing.assert_close(features(loaded, image), features(from_network(network, name="densenet121"), image))


def test_vit_positions_are_interpolated_to_the_grid(tmp_path: Path) -> None:
    small = library.VisionTransformer(32, 8, num_layers=4, num_heads=4, hidden_dim=48, mlp_dim=96)
    shake(small)
    torch.save(small.state_dict(), tmp_path / "w.pth")
    same = vit_tiny(32, weights=tmp_path / "w.pth")
    large = vit_tiny(64, weights=tmp_path / "w.pth")
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(same.eval().pool(same(image)[-1]), small.encoder(small_tokens(small, image))[:, 0])
    positions = [b.stages[0][0].position for b in (same, large)]
    assert [p.shape[1] for p in positions] == [17, 65]
    torch.testing.assert_close(positions[1][:, 0], positions[0][:, 0])
    corners = positions[1][0, 1:].reshape(8, 8, 48)[[0, 0, -1, -1], [0, -1, 0, -1]]
    torch.testing.assert_close(corners, positions[0][0, 1:].reshape(4, 4, 48)[[0, 0, -1, -1], [0, -1, 0, -1]])


def small_tokens(network: library.VisionTransformer, image: Tensor) -> Tensor:
    return torch.cat([network.class_token.expand(len(image), -1, -1), network._process_input(image)], 1)


@pytest.mark.parametrize(
    ("damage", "hint"),
    [
        (lambda s: s.pop("layer1.0.conv1.weight"), "missing: layer1.0.conv1.weight"),
        (lambda s: s.update({"layer9.weight": torch.zeros(1)}), "unexpected: layer9.weight"),
        (lambda s: s.update({"conv1.weight": torch.zeros(2, 3, 7, 7)}), r"shape: conv1.weight is \[2, 3, 7, 7\]"),
        (lambda s: [s.pop(k) for k in list(s) if k.startswith("layer3")], "and [0-9]+ more"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_key(tmp_path: Path, damage: object, hint: str) -> None:
    state = library.resnet18().state_dict()
    damage(state)
    torch.save(dict(state), tmp_path / "w.pth")
    with pytest.raises(UserError, match=hint) as error:
        build("resnet18", 64, weights=str(tmp_path / "w.pth"))
    assert "w.pth" in str(error.value)
    assert len(str(error.value).splitlines()) <= 8


class Malicious:
    def __reduce__(self) -> tuple:
        return (print, ("loaded code ran",))


def test_damaged_missing_and_malicious_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.pth").write_text("not weights")
    (tmp_path / "text.safetensors").write_text("not weights")
    (tmp_path / "empty.pth").write_bytes(b"")
    with (tmp_path / "bad.pth").open("wb") as file:
        pickle.dump({"conv1.weight": Malicious()}, file, protocol=2)
    torch.save({"conv1.weight": Malicious()}, tmp_path / "bad_zip.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"lr": 0.1}, tmp_path / "number.pth")
    torch.save(library.resnet18().state_dict(), tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    names = ["text.pth", "text.safetensors", "empty.pth", "bad.pth", "bad_zip.pth", "list.pth", "number.pth", "cut.pth"]
    for name in [*names, "absent.pth", ""]:
        with pytest.raises(UserError, match=r"backbone\.weights="):
            build("resnet18", 64, weights=str(tmp_path / name))
    assert "loaded code ran" not in capsys.readouterr().out


def no_network(*_: object, **__: object) -> None:
    raise urllib.error.URLError("no route to host")


def test_nothing_is_downloaded_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
    build("resnet18", 64)
    with pytest.raises(UserError, match=r"backbone\.weights=<path") as error:
        build("resnet18", 64, pretrained=True)
    assert "no route to host" in str(error.value)
    with pytest.raises(UserError, match="no ImageNet weights"):
        build("tiny", 64, pretrained=True)


def test_timms_failed_download_points_to_local_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda m, pretrained=False, **k: no_network() if pretrained else create(m, **k)
    )
    build("efficientnet_lite0", 64)
    with pytest.raises(UserError, match=r"backbone\.weights=<path"):
        build("efficientnet_lite0", 64, pretrained=True)


def test_downloaded_weights_reach_the_trunk(monkeypatch: pytest.MonkeyPatch) -> None:
    network = shake(library.resnet18())
    asked: dict[str, object] = {}

    def fake(url: str, **settings: object) -> dict[str, Tensor]:
        asked.update(settings, url=url)
        return network.state_dict()

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fake)
    image = torch.randn(1, 3, 64, 64)
    loaded = features(build("resnet18", 64, pretrained=True), image)
    torch.testing.assert_close(loaded, features(from_network(network, name="resnet18"), image))
    assert asked["check_hash"] is True
    assert asked["weights_only"] is True
