"""What an architecture costs: parameters, shared ones, multiply-adds and milliseconds, also of one task alone."""

import logging
from typing import TypedDict

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mtlcar.architectures.base import Architecture
from mtlcar.architectures.latency import ALL, as_evaluated, latency_ms, task_graphs

log = logging.getLogger("mtlcar")


class Cost(TypedDict):
    """Of the network as it is trained `parameters` and `shared_parameters`, as it is evaluated `pruned_parameters`, as
    counts, and `forward_gmacs` in 1e9 multiply-adds an image."""

    parameters: int
    shared_parameters: int
    pruned_parameters: int
    forward_gmacs: float


class TaskCosts(TypedDict):
    """By task, what predicting it alone takes; None where the network cannot be taken apart.

    `task_gmacs` in 1e9 multiply-adds an image; `latency_ms` in milliseconds for a batch of one image, with the
    network's own dtype, neither compiled nor under autocast; its key `all` is every task at once.
    """

    task_gmacs: dict[str, float] | None
    latency_ms: dict[str, float] | None


def cost(architecture: Architecture, image_size: int) -> Cost:
    """Counts on one image [1, 3, S, S] in evaluation mode; the architecture is left as it was.

    Multiply-adds are those of convolutions, matrix products and attention, without norms and activations, as
    torchvision's tables have them. `shared_parameters` leaves frozen ones out, `parameters` does not.
    """
    with as_evaluated(architecture), FlopCounterMode(display=False) as counter:
        architecture(noise(architecture, image_size))
    return {
        "parameters": sum(p.numel() for p in architecture.parameters()),
        "shared_parameters": sum(p.numel() for p in architecture.shared_parameters()),
        "pruned_parameters": sum(p.numel() for p in architecture.pruned().parameters()),
        "forward_gmacs": counter.get_total_flops() / 2e9,
    }


def task_costs(
    architecture: Architecture, image_size: int, *, device: torch.device | None = None, channels_last: bool = False
) -> TaskCosts:
    """What one task alone takes of the network as it is evaluated now: a branch that is not its own costs nothing.

    Never raises: what goes wrong is a warning in the log. The architecture is left as it was.

    Args:
        device: where it is measured; None: where the network is.
        channels_last: the layout of the image, as the network was trained.
    """
    home = next(architecture.parameters()).device
    try:
        with as_evaluated(architecture):
            image = noise(architecture.to(device or home), image_size)
            if channels_last:
                image = image.contiguous(memory_format=torch.channels_last)
            runs = task_graphs(architecture, image)
            expected = architecture(image).outputs
            gmacs = {}
            for name, run in runs.items():
                with FlopCounterMode(display=False) as counter:
                    found = run(image)
                gmacs[name] = counter.get_total_flops() / 2e9
                for a, b in zip(found, expected.values() if name == ALL else [expected[name]], strict=True):
                    _check_same(name, a, b)
            milliseconds = latency_ms(runs, image)
    except Exception as error:  # a network's own code can be anything, and its run is worth more than these numbers
        log.warning(
            "metrics.json goes without the cost of each task alone, because the network cannot be taken apart: %s: %s",
            type(error).__name__,
            str(error).partition("\n")[0],
        )
        return {"task_gmacs": None, "latency_ms": None}
    finally:
        architecture.to(home)
    del gmacs[ALL]
    return {"task_gmacs": gmacs, "latency_ms": {name: round(ms, 4) for name, ms in milliseconds.items()}}


def noise(architecture: Architecture, image_size: int) -> Tensor:
    """One image [1, 3, S, S] of the network's dtype and device, the same every time; no random state is touched."""
    reference = next(architecture.parameters())
    image = torch.randn(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0), device="cpu")
    return image.to(reference)


def _check_same(name: str, found: Tensor, expected: Tensor) -> None:
    """That the part says what the network says, up to what another choice of kernels makes of it."""
    tolerance = 1e-2 * float(expected.abs().max())
    if not torch.allclose(found, expected, rtol=0, atol=tolerance, equal_nan=True):
        raise RuntimeError(f"{name} alone differs from the network's output")
