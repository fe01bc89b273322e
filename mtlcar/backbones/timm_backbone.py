"""Backbones from timm: its EfficientNet (with lite, v2, MobileNetV2), ResNet and ConvNeXt families."""

from collections.abc import Mapping
from typing import Any

import timm
from timm.models import ConvNeXt, EfficientNet, ResNet
from torch import Tensor, nn

from mtlcar.backbones.assemble import assemble, at_least
from mtlcar.backbones.cut import CutBackbone, Pieces, Stage, cut, group_by_stride
from mtlcar.errors import UserError, did_you_mean


def timm_backbone(
    image_size: int, *, name: str, model: str, drop_path: float | None = None, **options: Any
) -> CutBackbone:
    """A network of timm that takes any image of at least 32 px.

    Args:
        image_size: side of the square input images in px.
        name: what it is called here.
        model: timm's name of it.
        drop_path: stochastic depth of the last block, earlier ones in proportion; None: timm's own (0).
        options: see `assemble`.
    """
    at_least(image_size, 32, name)
    if not timm.is_model(model):
        raise UserError(f"backbone.model={model}: timm has no such network.{did_you_mean(model, timm.list_models())}")
    if drop_path is not None and not 0 <= drop_path < 1:
        raise UserError(f"backbone.drop_path should be at least 0 and below 1. Found {drop_path}.")
    settings: dict[str, Any] = {} if drop_path is None else {"drop_path_rate": drop_path}
    network: Any = timm.create_model(model, **settings)

    def download() -> Mapping[str, Tensor]:
        return timm.create_model(model, pretrained=True).state_dict()

    own = network.pretrained_cfg
    return assemble(network, name=name, own_mean=own["mean"], own_std=own["std"], download=download, **options)


@cut.register(EfficientNet)
def _(network: Any) -> Pieces:
    groups = group_by_stride([b for unit in network.blocks for b in unit])
    # A block ends with the norm of its last convolution.
    channels = [[m.num_features for m in g[-1].modules() if isinstance(m, nn.BatchNorm2d)][-1] for g in groups[:-1]]
    groups[0][:0] = [network.conv_stem, network.bn1]
    groups[-1] += [network.conv_head, network.bn2]
    return Pieces([Stage(*g) for g in groups], [*channels, network.num_features], network.global_pool)


@cut.register(ResNet)
def _(network: Any) -> Pieces:
    layers = [network.layer1, network.layer2, network.layer3, network.layer4]
    stem = [network.conv1, network.bn1, network.act1, network.maxpool]
    stages = [Stage(*stem, *layers[0]), *(Stage(*layer) for layer in layers[1:])]
    channels = [info["num_chs"] for info in network.feature_info[-4:]]
    return Pieces(stages, channels, network.global_pool)


@cut.register(ConvNeXt)
def _(network: Any) -> Pieces:
    first, *others = network.stages
    units = [[network.stem, first.downsample, *first.blocks], *([s.downsample, *s.blocks] for s in others)]
    units[-1].append(network.norm_pre)
    head = network.head
    channels = [info["num_chs"] for info in network.feature_info]
    pooling = nn.Sequential(head.global_pool, head.norm, head.flatten, head.pre_logits)
    return Pieces([Stage(*u) for u in units], channels, pooling)
