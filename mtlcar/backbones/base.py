"""The one shape every trunk has: an image goes in, one feature map per stage comes out."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn


class StagedBackbone(nn.Module, ABC):
    """A trunk cut into consecutive stages.

    Attributes:
        stages: K modules; stage k maps the map of stage k - 1 (the image for k = 0) to its own.
        channels: channels of each stage's map, those of dropped stages included.
        first_stage: the number of the first stage it still has: 0, unless `drop_first` took some away.
        mean, std: the input normalisation its weights expect, per RGB channel on the 0..1 scale.
        grid: whether the last map is a grid of more than one position at usual image sizes (tokens count).
        class_row: whether row 0 of every map [B, C, 1 + H, W] holds copies of a class token (a ViT).

    Shapes: image float [B, 3, H, W], normalised -> list of K maps [B, channels[k], H_k, W_k].
    """

    stages: nn.ModuleList
    channels: tuple[int, ...]
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    grid: bool = True
    class_row: bool = False
    first_stage: int = 0

    @property
    def depth(self) -> int:
        """K, dropped stages included."""
        return self.first_stage + len(self.stages)

    @property
    def features(self) -> int:
        """Width D of the pooled representation."""
        return self.channels[-1]

    def forward(self, image: Tensor) -> list[Tensor]:
        maps: list[Tensor] = []
        x = image
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def stage(self, k: int) -> nn.Module:
        """Stage k of 0..K-1, counted as in the whole trunk."""
        return self.stages[k - self.first_stage]

    def through(self, x: Tensor, start: int, stop: int | None = None) -> Tensor:
        """The image, or the map of stage `start` - 1, -> the map of stage `stop` - 1 (None: the last)."""
        for k in range(start, self.depth if stop is None else stop):
            x = self.stage(k)(x)
        return x

    def drop_first(self, n: int) -> None:
        """Give up the first n stages, for a copy that takes another trunk's map n - 1 in."""
        self.stages = self.stages[n:]
        self.first_stage += n

    @abstractmethod
    def pool(self, feature_map: Tensor) -> Tensor:
        """Last stage's map [B, C, H, W] -> representation [B, D], as the library's own network pools it."""

    def tokens(self, feature_map: Tensor) -> Tensor:
        """One stage's map [B, C, H, W] -> its positions [B, N, C], row by row; a class token comes first, and once."""
        tokens = feature_map.flatten(2).transpose(1, 2)
        if not self.class_row:
            return tokens
        width = feature_map.shape[-1]
        return torch.cat([tokens[:, :width].mean(1, keepdim=True), tokens[:, width:]], 1)

    def grid_map(self, tokens: Tensor, width: int) -> Tensor:
        """Tokens [B, N, C] of maps of that width -> the map [B, C, H, W] of those on the grid; a class token goes."""
        return tokens[:, int(self.class_row) :].transpose(1, 2).unflatten(2, (-1, width))

    def param_groups(self) -> list[list[nn.Parameter]]:
        """The parameters by depth, input side first, one list a stage; for layer-wise learning rates."""
        return [[] for _ in range(self.first_stage)] + [list(stage.parameters()) for stage in self.stages]


class BackboneFactory:
    """Makes trunks of one kind: each call builds one of its own, with the same pretrained weights if there are any and
    with other random ones if not.

    Attributes:
        image_size: pixels S of the images [B, 3, S, S].
    """

    def __init__(self, make: Callable[[], StagedBackbone], image_size: int) -> None:
        self.make = make
        self.image_size = image_size

    def __call__(self) -> StagedBackbone:
        return self.make()


class GlobalAveragePool(nn.Module):
    """[B, C, H, W] -> [B, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1)
