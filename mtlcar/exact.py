"""The type for sums and small algebra that rounding must not spoil."""

import torch


def exact(device: torch.device | None = None) -> torch.dtype:
    """float64; float32 on Apple's GPUs, which have no float64. None: a device that is not known yet."""
    mps = torch.backends.mps.is_available() if device is None else device.type == "mps"
    return torch.float32 if mps else torch.float64
