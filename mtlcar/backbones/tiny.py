"""A small convolutional trunk for tests and demonstrations: it trains in seconds on a CPU."""

from typing import Any

from torch import nn

from mtlcar.backbones.assemble import IMAGENET_MEAN, IMAGENET_STD, assemble, at_least
from mtlcar.backbones.base import GlobalAveragePool
from mtlcar.backbones.cut import CutBackbone, Pieces, Stage, cut

CHANNELS = (16, 24, 32, 64)


def _block(inputs: int, outputs: int, stride: int) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class TinyNetwork(nn.Module):
    """Four stages of two 3 x 3 convolutions, each stage halving the map: 64 px -> 4 x 4."""

    def __init__(self) -> None:
        super().__init__()
        pairs = zip((3, *CHANNELS), CHANNELS, strict=False)
        self.stages = nn.ModuleList(Stage(_block(i, o, stride=2), _block(o, o, stride=1)) for i, o in pairs)


@cut.register
def _(network: TinyNetwork) -> Pieces:
    return Pieces([s for s in network.stages if isinstance(s, Stage)], CHANNELS, GlobalAveragePool())


def tiny(image_size: int, *, name: str = "tiny", **options: Any) -> CutBackbone:
    """A convolutional trunk of 83 thousand parameters with BatchNorm. Options: see `assemble`."""
    at_least(image_size, 16, name)
    return assemble(TinyNetwork(), name=name, own_mean=IMAGENET_MEAN, own_std=IMAGENET_STD, **options)
