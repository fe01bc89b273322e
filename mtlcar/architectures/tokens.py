"""What architectures on tokens have in common: their trunk, each task's own tokens of a map, and what a head reads."""

from collections.abc import Sequence

from torch import Tensor, nn

from mtlcar.architectures.common import freeze_unused_pooling
from mtlcar.backbones.base import BackboneFactory, StagedBackbone
from mtlcar.errors import UserError
from mtlcar.heads.base import Head
from mtlcar.options import whole


def token_trunk(name: str, backbone: BackboneFactory) -> StagedBackbone:
    """A trunk whose maps are read as tokens, as its stages give them.

    The layers of its pooling stay out, frozen: the norm that ConvNeXt and MaxViT have there belongs to the one pooled
    vector and not to single positions. Swin's, ViT's and DenseNet's last norm is part of the last stage.

    Raises:
        UserError: a trunk whose last map is no grid.
    """
    trunk = backbone()
    if not trunk.grid:
        raise UserError(
            f"architecture={name} exchanges tokens, and this backbone's last map is one position only. "
            "Use a backbone with a grid, or architecture=parallel."
        )
    freeze_unused_pooling(trunk, [])
    return trunk


def projections(tasks: int, channels: int, width: int, *, bias: bool) -> nn.ModuleList:
    """A linear map channels -> width a task."""
    return nn.ModuleList(nn.Linear(channels, width, bias=bias) for _ in range(tasks))


def read_tokens(trunk: StagedBackbone, heads: Sequence[Head], tokens: Sequence[Tensor], width: int) -> list[Tensor]:
    """A task's tokens [B, N, d] each -> what its head takes: their mean [B, d], or the map [B, d, H, W] of those on
    the grid. `width` is that of the map the tokens come from."""
    return [
        trunk.grid_map(x, width) if head.takes == "map" else x.mean(1) for head, x in zip(heads, tokens, strict=True)
    ]


def token_width(width: int | None, channels: int) -> int:
    """`architecture.width`, None: the channels of the trunk's last map."""
    return channels if width is None else whole("architecture.width", width, least=1)
