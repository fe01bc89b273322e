"""What an architecture costs: parameters, shared ones, multiply-adds."""

from typing import TypedDict

import torch
from torch.utils.flop_counter import FlopCounterMode

from mtlcar.architectures.base import Architecture


class Cost(TypedDict):
    """`parameters` and `shared_parameters` as counts, `forward_gmacs` in 1e9 multiply-adds an image."""

    parameters: int
    shared_parameters: int
    forward_gmacs: float


def cost(architecture: Architecture, image_size: int) -> Cost:
    """Counts on one black image [1, 3, S, S] in evaluation mode; the architecture is left as it was.

    Multiply-adds are those of convolutions, matrix products and attention, without norms and activations, as
    torchvision's tables have them. `shared_parameters` leaves frozen ones out, `parameters` does not.
    """
    modes = {module: module.training for module in architecture.modules()}
    reference = next(architecture.parameters())
    image = torch.zeros(1, 3, image_size, image_size, device=reference.device, dtype=reference.dtype)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    # nn.MultiheadAttention's fused kernel for inference is unknown to the counter.
    torch.backends.mha.set_fastpath_enabled(False)
    architecture.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            architecture(image)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module, training in modes.items():
            module.training = training
    return {
        "parameters": sum(p.numel() for p in architecture.parameters()),
        "shared_parameters": sum(p.numel() for p in architecture.shared_parameters()),
        "forward_gmacs": counter.get_total_flops() / 2e9,
    }
