"""The one shape every trunk has: an image goes in, one feature map per stage comes out."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class StagedBackbone(nn.Module, ABC):
    """A trunk cut into consecutive stages.

    Attributes:
        stages: K modules; stage k maps the map of stage k - 1 (the image for k = 0) to its own.
        channels: channels of each stage's map.
        mean, std: the input normalisation its weights expect, per RGB channel on the 0..1 scale.
        grid: whether the last map is a grid of more than one position at usual image sizes (tokens count).

    Shapes: image float [B, 3, H, W], normalised -> list of K maps [B, channels[k], H_k, W_k].
    """

    stages: nn.ModuleList
    channels: tuple[int, ...]
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    grid: bool = True

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

    @abstractmethod
    def pool(self, feature_map: Tensor) -> Tensor:
        """Last stage's map [B, C, H, W] -> representation [B, D], as the library's own network pools it."""

    def param_groups(self) -> list[list[nn.Parameter]]:
        """The parameters by depth, input side first, one list a stage; for layer-wise learning rates."""
        return [list(stage.parameters()) for stage in self.stages]


class GlobalAveragePool(nn.Module):
    """[B, C, H, W] -> [B, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1)
