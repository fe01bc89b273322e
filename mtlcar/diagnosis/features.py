"""What a network makes of images on the way: each stage's map averaged over positions, and what heads take."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mtlcar.architectures.base import Architecture
from mtlcar.diagnosis.layers import stage_name, trunks
from mtlcar.inference.cam import grid_of


@torch.no_grad()
def pooled_features(architecture: Architecture, images: Iterable[Tensor]) -> dict[str, np.ndarray]:
    """Name -> features float64 [n, D], input side first: each trunk's stages, then what the heads take (the bottleneck,
    or each task's own), where that differs from the last stage.

    Maps are averaged over the positions of their grid, without a class token's row.

    Args:
        images: normalised batches [B, 3, S, S], n images together.
    """
    found: dict[str, list[Tensor]] = {}
    order = _stages(architecture)

    def keep(name: str, x: Tensor) -> None:
        found.setdefault(name, []).append((grid_of(x) if x.ndim == 4 else x).float())

    def hook(name: str) -> Any:
        def after(module: nn.Module, inputs: Any, output: Any) -> None:
            keep(name, output[-1] if isinstance(output, tuple) else output)

        return after

    handles = [stage.register_forward_hook(hook(name)) for name, stage in order.items()]
    training = architecture.training
    architecture.training = False  # nobody hands on true labels here
    try:
        for image in images:
            shared = architecture(image)
            if shared.bottleneck is not None:
                keep("features", shared.bottleneck)
            for task, x in zip(architecture.tasks.names, shared.representations, strict=False):
                keep(f"features of {task}", x)
            for parts in found.values():  # maps are large
                parts[-1] = parts[-1].mean((2, 3)) if parts[-1].ndim == 4 else parts[-1]
    finally:
        architecture.training = training
        for handle in handles:
            handle.remove()
    names = [n for n in order if n in found] + [n for n in found if n not in order]
    features = {n: torch.cat(found[n]).double().cpu().numpy() for n in names}
    stages = [x for n, x in features.items() if n in order]
    return {n: x for n, x in features.items() if n in order or not any(_same(x, s) for s in stages)}


def _stages(architecture: Architecture) -> dict[str, nn.Module]:
    found = trunks(architecture)
    return {
        stage_name(i, k + trunk.first_stage, len(found)): stage
        for i, trunk in enumerate(found.values())
        for k, stage in enumerate(trunk.stages)
        if not isinstance(stage, nn.Identity)  # a stage that was left out
    }


def _same(x: np.ndarray, y: np.ndarray) -> bool:
    return x.shape == y.shape and bool(np.allclose(x, y, rtol=1e-4, atol=1e-5))
