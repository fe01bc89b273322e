"""Backbones from torchvision: ResNet, DenseNet, ConvNeXt, EfficientNet, Swin, MaxViT (ViT: vit.py)."""

import re
from collections.abc import Mapping
from typing import Any

import torchvision.models as library
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from mtlcar.backbones.assemble import assemble, at_least, multiple_of
from mtlcar.backbones.base import GlobalAveragePool
from mtlcar.backbones.cut import BlocksOnLastChannels, CutBackbone, Pieces, Stage, cut, group_by_stride
from mtlcar.backbones.weights import adapt_state
from mtlcar.errors import UserError, did_you_mean


def torchvision_backbone(image_size: int, *, name: str, drop_path: float | None = None, **options: Any) -> CutBackbone:
    """A network of torchvision that takes any image of at least 32 px.

    Args:
        image_size: side of the square input images in px.
        name: torchvision's name of it.
        drop_path: stochastic depth of the last block, earlier ones in proportion; None: the library's own.
        options: see `assemble`.
    """
    at_least(image_size, 32, name)
    return from_network(create(name), name=name, drop_path=drop_path, **options)


def maxvit(image_size: int, *, name: str, drop_path: float | None = None, **options: Any) -> CutBackbone:
    """A MaxViT: every map must divide into windows of 7 x 7, so the image into 224 px. Arguments as above."""
    multiple_of(image_size, 224, name)
    return from_network(create(name, input_size=(image_size, image_size)), name=name, drop_path=drop_path, **options)


def create(name: str, **sizes: Any) -> nn.Module:
    """torchvision's network of that name with random weights."""
    known = library.list_models(module=library)
    if name not in known:
        raise UserError(f"backbone.name={name}: torchvision has no such network.{did_you_mean(name, known)}")
    return library.get_model(name, weights=None, **sizes)


def from_network(network: nn.Module, *, name: str, drop_path: float | None = None, **options: Any) -> CutBackbone:
    """torchvision's network -> trunk, with torchvision's weights and normalisation."""
    if drop_path is not None:
        set_drop_path(network, drop_path, name)
    published = library.get_model_weights(name).DEFAULT
    preset = published.transforms()

    def download() -> Mapping[str, Tensor]:
        return published.get_state_dict(progress=True, check_hash=True, weights_only=True)

    return assemble(network, name=name, own_mean=preset.mean, own_std=preset.std, download=download, **options)


def set_drop_path(network: nn.Module, rate: float, name: str) -> None:
    """Stochastic depth: the deepest block's probability becomes `rate`, the others keep their ratio to it."""
    layers = [m for m in network.modules() if isinstance(m, StochasticDepth)]
    highest = max((m.p for m in layers), default=0.0)
    if not 0 <= rate < 1 or highest == 0:
        raise UserError(
            f"backbone.drop_path should be at least 0 and below 1. Found {rate}."
            if highest
            else f"backbone={name} has no stochastic depth. Leave backbone.drop_path=null."
        )
    for layer in layers:
        layer.p *= rate / highest


@cut.register
def _(network: library.ResNet) -> Pieces:
    layers = [network.layer1, network.layer2, network.layer3, network.layer4]
    stem = [network.conv1, network.bn1, network.relu, network.maxpool]
    stages = [Stage(*stem, *layers[0]), *(Stage(*layer) for layer in layers[1:])]
    # A block ends with its last convolution: conv2 in ResNet-18/34, conv3 in the others.
    channels = [[m.out_channels for n, m in layer[-1].named_children() if n.startswith("conv")][-1] for layer in layers]
    return Pieces(stages, channels, GlobalAveragePool())


@cut.register
def _(network: library.DenseNet) -> Pieces:
    f = network.features
    norms = [f.transition1.norm, f.transition2.norm, f.transition3.norm, f.norm5]
    stages = [
        Stage(f.conv0, f.norm0, f.relu0, f.pool0, f.denseblock1),
        Stage(f.transition1, f.denseblock2),
        Stage(f.transition2, f.denseblock3),
        Stage(f.transition3, f.denseblock4, f.norm5, nn.ReLU()),
    ]
    return Pieces(stages, [n.num_features for n in norms], GlobalAveragePool())


@adapt_state.register
def _(network: library.DenseNet, state: dict[str, Tensor]) -> dict[str, Tensor]:
    # The published files are older than torch's ban on dots in module names.
    return {re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)", r"\1\2", k): v for k, v in state.items()}


@cut.register
def _(network: library.ConvNeXt) -> Pieces:
    units = list(network.features)  # stem, blocks, (downsampling, blocks) x 3
    stages = [Stage(units[i], *units[i + 1]) for i in range(0, len(units), 2)]
    channels = [units[i][-1].block[0].out_channels for i in range(1, len(units), 2)]
    norm, flatten, _ = network.classifier
    return Pieces(stages, channels, nn.Sequential(network.avgpool, norm, flatten))


@cut.register
def _(network: library.EfficientNet) -> Pieces:
    groups = group_by_stride([b for unit in network.features[1:-1] for b in unit])
    groups[0].insert(0, network.features[0])
    channels = [group[-1].out_channels for group in groups[:-1]] + [network.features[-1].out_channels]
    groups[-1].append(network.features[-1])
    return Pieces([Stage(*group) for group in groups], channels, GlobalAveragePool())


@cut.register
def _(network: library.SwinTransformer) -> Pieces:
    embed, *units = network.features  # patch embedding, blocks, (merging, blocks) x 3; all on [B, H, W, C]
    blocks = [[BlocksOnLastChannels(b) for b in unit] for unit in units[::2]]
    channels = [unit[-1].norm2.normalized_shape[0] for unit in units[::2]]
    first = nn.Sequential(*embed, network.permute)  # the embedding itself takes [B, 3, H, W]
    stages = [[first, *blocks[0]]]
    stages += [[BlocksOnLastChannels(m), *b] for m, b in zip(units[1::2], blocks[1:], strict=True)]
    stages[-1].append(BlocksOnLastChannels(network.norm))
    return Pieces([Stage(*s) for s in stages], channels, GlobalAveragePool())


@cut.register
def _(network: library.MaxVit) -> Pieces:
    blocks = [list(block.layers) for block in network.blocks]
    channels = [block[-1].layers.grid_attention.attn_layer[0].normalized_shape[0] for block in blocks]
    stages = [Stage(*network.stem, *blocks[0]), *(Stage(*block) for block in blocks[1:])]
    # Norm, linear layer and tanh before the last linear layer belong to the trunk, as PROTOCOLS' counts have it.
    return Pieces(stages, channels, network.classifier[:-1])
