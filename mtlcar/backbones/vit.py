"""Vision transformers (arXiv 2010.11929) as stages: groups of blocks, tokens on a grid."""

import re
from collections import OrderedDict
from typing import Any

import torch
import torchvision.models as library
from torch import Tensor, nn
from torchvision.models.vision_transformer import interpolate_embeddings

from mtlcar.backbones.assemble import IMAGENET_MEAN, IMAGENET_STD, assemble, multiple_of
from mtlcar.backbones.cut import CutBackbone, Pieces, Stage, cut
from mtlcar.backbones.torchvision_backbone import create, from_network
from mtlcar.backbones.weights import adapt_state
from mtlcar.errors import UserError

STAGES = 4


def vit(image_size: int, *, name: str, **options: Any) -> CutBackbone:
    """torchvision's ViT of that name for images of `image_size` px, a multiple of its patch size.

    Positional embeddings of loaded weights are interpolated to the grid. Options: see `assemble`.
    """
    patch = re.fullmatch(r"vit_[a-z]_(\d+)", name)
    if patch is None:
        raise UserError(f"backbone.name={name}: should be one of torchvision's ViTs, vit_b_16 say.")
    multiple_of(image_size, int(patch[1]), name)
    return from_network(create(name, image_size=image_size), name=name, **options)


def vit_tiny(image_size: int, *, name: str = "vit_tiny", **options: Any) -> CutBackbone:
    """4 blocks of width 48, patches of 8 px, for tests: 88 thousand parameters at 64 px. Options: see `assemble`."""
    multiple_of(image_size, 8, name)
    network = library.VisionTransformer(image_size, 8, num_layers=4, num_heads=4, hidden_dim=48, mlp_dim=96)
    return assemble(network, name=name, own_mean=IMAGENET_MEAN, own_std=IMAGENET_STD, **options)


def tokens_to_map(tokens: Tensor, width: int) -> Tensor:
    """Class token and grid tokens [B, 1 + HW, C] -> map [B, C, 1 + H, W]. Row 0 holds W copies of the class token, so
    that whatever mixes, masks or attends to maps carries it along; the grid is `map[:, :, 1:]`."""
    row = tokens[:, :1].expand(-1, width, -1)
    return torch.cat([row, tokens[:, 1:]], 1).transpose(1, 2).unflatten(2, (-1, width))


def map_to_tokens(x: Tensor) -> Tensor:
    """The inverse; the class token is the mean of row 0 (its copies differ once a mask or mixture came over them)."""
    return torch.cat([class_token(x)[:, None], x[:, :, 1:].flatten(2).transpose(1, 2)], 1)


def class_token(x: Tensor) -> Tensor:
    """Map [B, C, 1 + H, W] -> class token [B, C]."""
    return x[:, :, 0].mean(-1)


class PatchEmbedding(nn.Module):
    """Image [B, 3, S, S] -> map of patch embeddings with class token and positions [B, C, 1 + S/P, S/P]."""

    def __init__(self, network: library.VisionTransformer) -> None:
        super().__init__()
        self.projection = network.conv_proj
        self.class_token = network.class_token
        self.position = network.encoder.pos_embedding
        self.dropout = network.encoder.dropout

    def forward(self, image: Tensor) -> Tensor:
        grid = self.projection(image)
        tokens = torch.cat([self.class_token.expand(len(image), -1, -1), grid.flatten(2).transpose(1, 2)], 1)
        return tokens_to_map(self.dropout(tokens + self.position), grid.shape[-1])


class TokenStage(Stage):
    """Blocks on token sequences [B, 1 + HW, C], from map to map [B, C, 1 + H, W]."""

    def run(self, x: Tensor) -> Tensor:
        return tokens_to_map(super().run(map_to_tokens(x)), x.shape[-1])

    def run_split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        u, y = super().run_split(map_to_tokens(x))
        return tokens_to_map(u, x.shape[-1]), tokens_to_map(y, x.shape[-1])


class ClassTokenPool(nn.Module):
    """[B, C, 1 + H, W] -> class token [B, C], which is what the library's network classifies from."""

    def forward(self, x: Tensor) -> Tensor:
        return class_token(x)


@cut.register
def _(network: library.VisionTransformer) -> Pieces:
    blocks = list(network.encoder.layers)
    step = len(blocks) // STAGES
    groups = [blocks[i * step : (i + 1) * step if i + 1 < STAGES else None] for i in range(STAGES)]
    groups[-1].append(network.encoder.ln)
    first = Stage(PatchEmbedding(network), TokenStage(*groups[0]))
    stages = [first, *(TokenStage(*g) for g in groups[1:])]
    return Pieces(stages, [network.hidden_dim] * STAGES, ClassTokenPool(), class_row=True)


@adapt_state.register
def _(network: library.VisionTransformer, state: dict[str, Tensor]) -> dict[str, Tensor]:
    if state.get("encoder.pos_embedding") is None or state["encoder.pos_embedding"].ndim != 3:
        return state
    try:
        return interpolate_embeddings(network.image_size, network.patch_size, OrderedDict(state))
    except ValueError as error:
        raise UserError(f"The positional embedding of the weights cannot be interpolated: {error}.") from error
