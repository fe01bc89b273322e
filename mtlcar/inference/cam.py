"""Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391) of one task of a network, whatever its architecture.

pytorch-grad-cam wants one module whose output is the map. Here a task may read several maps (mixtures of experts), one
module may make the maps of several tasks (MTAN's pooling), and a head may be called in steps. So the network is run
twice: once to note the maps, and once more with those that the task reads put in the place of the same ones, as parts
of one tensor that has passed through a module of ours.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mtlcar.architectures.base import Architecture
from mtlcar.architectures.common import typed
from mtlcar.backbones.base import StagedBackbone
from mtlcar.errors import UserError


@dataclass(frozen=True)
class Point:
    """A place in a network where maps pass: what goes into a module, or what comes out of it."""

    module: nn.Module
    output: bool


def places(architecture: Architecture) -> list[list[Point]]:
    """Where to look for the map that a task's head reads, the best first:

    - what goes into a trunk's pooling, and into heads that take maps;
    - what the last stage of each trunk gives (heads on tokens have no pooling);
    - what the attention of the last block reads, its first LayerNorm's output: of a ViT that classifies from its class
      token nothing later on the grid reaches a head.
    """
    trunks = [m for m in architecture.modules() if isinstance(m, StagedBackbone) and len(m.stages)]
    poolings = [c for trunk in trunks for c in trunk.children() if c is not trunk.stages]
    dropouts = [head.input_dropout for head in typed(architecture.heads) if hasattr(head, "input_dropout")]
    norms = []
    for trunk in trunks:
        stage = trunk.stages[-1]
        block = stage[getattr(stage, "last", -1)] if isinstance(stage, nn.Sequential) else stage
        norms += [m for m in block.modules() if isinstance(m, nn.LayerNorm)][:1]
    return [
        [Point(m, False) for m in dict.fromkeys([*poolings, *dropouts])],
        [Point(trunk.stages[-1], True) for trunk in trunks],
        [Point(m, True) for m in norms],
    ]


def grid_of(x: Tensor) -> Tensor:
    """Map [B, C, W, W], map with a class token's row on top [B, C, 1 + W, W] or tokens [B, 1 + W W, C] of a square
    image -> its grid [B, C, W, W]."""
    if x.ndim == 4:
        return x[:, :, x.shape[2] - x.shape[3] :]
    side = math.isqrt(x.shape[1])
    return x[:, x.shape[1] - side**2 :].transpose(1, 2).unflatten(2, (side, side))


def with_grid(x: Tensor, grid: Tensor) -> Tensor:
    """`x` with this grid in place of its own: the inverse of `grid_of`."""
    if x.ndim == 4:
        return torch.cat([x[:, :, : x.shape[2] - x.shape[3]], grid], 2)
    positions = grid.flatten(2).transpose(1, 2)
    return torch.cat([x[:, : x.shape[1] - positions.shape[1]], positions], 1)


@contextmanager
def passing(points: Sequence[Point], instead: Mapping[int, Tensor]) -> Iterator[list[Tensor]]:
    """Inside, the maps that pass `points` are put into the list, in the order of the calls; the grid of call i becomes
    `instead[i]`."""
    seen: list[Tensor] = []

    def meet(x: Tensor) -> Tensor:
        i = len(seen)
        seen.append(x)
        return with_grid(x, instead[i]) if i in instead else x

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        x, *others = inputs
        return (meet(x), *others) if x.ndim == 4 else None  # a vector has nothing to look at

    def after(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):  # a stage asked for the map before its last block too
            return (*output[:-1], meet(output[-1]))
        return meet(output)

    handles = [
        p.module.register_forward_hook(after) if p.output else p.module.register_forward_pre_hook(before)
        for p in points
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


class TaskView(nn.Module):
    """Image [B, 3, S, S] -> one task's output; `tap` gives the maps that the task's head reads, [B, C, H, W].

    Several maps are laid together by channels: of heads that take a weighted sum of pooled maps that is the sum of the
    maps' own class activations before the ReLU, which is the Grad-CAM of the mixture.

    Args:
        calls: which of the maps that pass `points` belong to it.
    """

    def __init__(self, architecture: Architecture, task: str, points: Sequence[Point], calls: Sequence[int]) -> None:
        super().__init__()
        self.architecture, self.task, self.points, self.calls = architecture, task, points, tuple(calls)
        self.tap = nn.Identity()
        self.widths: list[int] = []  # channels of each map

    def forward(self, image: Tensor) -> Tensor:
        with torch.no_grad(), passing(self.points, {}) as seen:
            self.architecture(image)
        grids = [grid_of(seen[i]) for i in self.calls]
        whole = self.tap(torch.cat(grids, 1).requires_grad_())
        self.widths = [g.shape[1] for g in grids]
        parts = whole.split(self.widths, 1)
        with passing(self.points, dict(zip(self.calls, parts, strict=True))):
            outputs: dict[str, Tensor] = self.architecture(image).outputs
        return outputs[self.task]


def view_of(architecture: Architecture, task: str, image: Tensor) -> TaskView:
    """The network as this task sees it: with the last maps on the way to its output of which it reads the grid.

    Args:
        architecture: in evaluation.
        image: normalised, [1, 3, S, S], to try with.

    Raises:
        UserError: there is no such map.
    """
    found: TaskView | None = None
    for points in places(architecture):
        with torch.no_grad(), passing(points, {}) as seen:
            architecture(image)
        if not seen:
            continue
        view = TaskView(architecture, task, points, range(len(seen)))
        reached = [i for i, used in enumerate(_used(view, image)) if used]
        if reached:
            side = seen[reached[-1]].shape[-1]
            return TaskView(architecture, task, points, [i for i in reached if seen[i].shape[-1] == side])
        found = found or TaskView(architecture, task, points, range(len(seen)))
    if found is None:
        raise UserError(f"architecture={architecture.name} has no feature map: there is nothing to look at.")
    return found  # a network whose answer does not depend on the image


def _used(view: TaskView, image: Tensor) -> list[bool]:
    """Of each map of a view whether the task's output depends on its grid."""
    kept: list[Tensor] = []
    handle = view.tap.register_forward_hook(lambda module, inputs, output: kept.append(output))
    try:
        with torch.enable_grad():
            square = view(image).float().square().sum()
    finally:
        handle.remove()
    gradient = torch.autograd.grad(square, kept[0], allow_unused=True)[0] if square.requires_grad else None
    if gradient is None:
        return [False] * len(view.calls)
    return [bool(part.any()) for part in gradient.split(view.widths, 1)]


def task_cam(view: TaskView, image: Tensor, classes: Tensor | None) -> np.ndarray:
    """ReLU(sum_k alpha_k A_k) (eq. 2), alpha_k the mean over positions of the target's gradient by A_k (eq. 1): float32
    [B, H, W], before any scaling.

    Args:
        view: of the task.
        image: normalised, [B, 3, S, S].
        classes: of a classification the classes [B] whose logits are explained; None: the value, so that the map shows
            what raises it.

    Raises:
        UserError: pytorch-grad-cam is not installed.
    """
    grad_cam, targets_of = load_package()
    targets: list[Any]
    targets = [lambda value: value] * len(image) if classes is None else [targets_of(c) for c in classes.tolist()]
    trained = [p for p in view.parameters() if p.requires_grad]
    for p in trained:  # the package's backward leaves gradients in all parameters that it reaches
        p.requires_grad_(False)
    try:
        with torch.enable_grad(), grad_cam(model=view, target_layers=[view.tap]) as cam:
            cam(input_tensor=image, targets=targets)
            maps, gradients = (x[0].float().numpy() for x in _kept(cam))
            found = cam.get_cam_image(image, view.tap, targets, maps, gradients)
    finally:
        for p in trained:
            p.requires_grad_(True)
    return np.maximum(found, 0)


def _kept(cam: Any) -> tuple[list[Tensor], list[Tensor]]:
    return cam.activations_and_grads.activations, cam.activations_and_grads.gradients


def load_package() -> tuple[Any, Any]:
    """pytorch-grad-cam's `GradCAM` and `ClassifierOutputTarget`.

    Raises:
        UserError: it is not installed.
    """
    try:
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    except ImportError as error:
        raise UserError(
            f"`mtlcar explain` needs the package grad-cam ({error}). Install it: pip install 'mtlcar[explain]'"
        ) from error
    return GradCAM, ClassifierOutputTarget
