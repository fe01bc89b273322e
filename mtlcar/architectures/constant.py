"""One answer for all images: the baseline that any network has to beat."""

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from mtlcar.architectures.base import Architecture, Shared
from mtlcar.architectures.common import as_output, trainable
from mtlcar.backbones.base import BackboneFactory, StagedBackbone
from mtlcar.heads.base import HeadFactory
from mtlcar.tasks import TaskSet


class Constant(Architecture):
    """A trainable bias for each output of each task; the image is not looked at.

    At the start, zero, every class is equally likely, and a value is the mean of the training labels (with
    loss.standardize); training finds the frequencies of the classes. Nothing is shared.

    Args:
        backbone, head: not called, so that no weights are read for nothing.
    """

    def __init__(self, *, tasks: TaskSet, backbone: BackboneFactory, head: HeadFactory, name: str = "constant") -> None:
        super().__init__()
        self.name = name
        self.tasks = tasks
        self.backbone = NoTrunk()
        self.heads = nn.ModuleList(Bias(task.outputs) for task in tasks)

    def forward(self, image: Tensor, targets: dict[str, Tensor] | None = None) -> Shared:
        biases = cast(list[Bias], self.heads)
        return Shared({t.name: as_output(t, bias(len(image))) for t, bias in zip(self.tasks, biases, strict=True)})

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        return iter(())

    def above_bottleneck(self) -> Iterator[nn.Parameter]:
        return trainable([self.heads])

    def compiled_parts(self) -> Iterator[nn.Module]:
        return iter(())


class Bias(nn.Module):
    """The same numbers for each image, 0 at the start."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, images: int) -> Tensor:
        """[images, outputs]"""
        return self.bias.expand(images, -1).clone()  # torch's counter of operations cannot take a parameter's view


class NoTrunk(StagedBackbone):
    """A trunk without stages."""

    channels = ()
    mean = (0.5, 0.5, 0.5)
    std = (0.5, 0.5, 0.5)

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList()

    def pool(self, feature_map: Tensor) -> Tensor:
        raise NotImplementedError("Without stages there is no map.")
