"""What this machine could do: its fastest matrix product, its copies, and how much of that a training step uses."""

import resource
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

MATRIX = {"cuda": 8192, "cpu": 2048}
"""Side of the square matrices: large enough that the product's own memory traffic does not count."""
COPIED = 2**28
"""Bytes of a copy."""
SECONDS = 0.5
"""That a measurement goes on for."""


def step_flops(forward_gmacs: float, batch_size: int) -> float:
    """Floating-point operations of a training step: two a multiply-add, the backward pass as twice the forward.

    An estimate from above where stages are frozen, and from below where a weighting goes back through the trunk once a
    task.
    """
    return 6e9 * forward_gmacs * batch_size


def matmul_dtype(precision: str) -> torch.dtype:
    """What the matrix products of a run of this precision are in."""
    if "bf16" in precision:
        return torch.bfloat16
    named = {"16": torch.float16, "64": torch.float64}
    return named.get(precision[:2], torch.float32)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large matrix product, the best of several."""
    n = MATRIX[device.type if device.type in MATRIX else "cpu"]
    a, b, out = (torch.randn(n, n, device=device).to(dtype) for _ in range(3))
    return 2 * n**3 / fastest(lambda: torch.mm(a, b, out=out), device)


def copy_rates(device: torch.device) -> tuple[float, float]:
    """Bytes a second that a GPU copies within its own memory, and from page-locked memory of the host."""
    a, b = (torch.empty(COPIED, dtype=torch.uint8, device=device) for _ in range(2))
    host = torch.empty(COPIED, dtype=torch.uint8, pin_memory=True)
    inside = fastest(lambda: b.copy_(a), device)
    return COPIED / inside, COPIED / fastest(lambda: b.copy_(host, non_blocking=True), device)


def fastest(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of the best of the runs that `SECONDS` leave time for, one at least; the first is not counted."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    run()
    wait()
    found: list[float] = []
    end = time.perf_counter() + SECONDS
    while not found or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        wait()
        found.append(time.perf_counter() - start)
    return min(found)


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that tensors have taken of a GPU so far, else that this process has taken of the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def notes(rows: Sequence[dict[str, Any]], device: torch.device, precision: str) -> list[str]:
    """Sentences under the table, and `peak_flops_per_second` for the rows that count operations."""
    memory = peak_memory(device)  # before there are matrices in it
    dtype = matmul_dtype(precision)
    peak = peak_flops(device, dtype)
    counted = [row for row in rows if "flops_per_second" in row]
    for row in counted:
        row["peak_flops_per_second"] = round(peak)
    side = MATRIX[device.type if device.type in MATRIX else "cpu"]
    name = str(dtype).removeprefix("torch.")
    if device.type == "cuda" and dtype == torch.float32 and torch.backends.cudnn.allow_tf32:
        name += ", where convolutions may take the faster TF32"
    best = max(row["flops_per_second"] for row in counted)
    found = [
        f"The model alone does {best / 1e9:,.1f} GFLOP/s (6 x multiply-adds x batch / step): {best / peak:.1%} of the "
        f"{peak / 1e9:,.0f} of a product of {side} x {side} matrices in {name}. "
        f"Peak memory {memory / 1e9:.2f} GB ({'tensors on the GPU' if device.type == 'cuda' else 'this process'})."
    ]
    if device.type == "cuda":
        inside, host = copy_rates(device)
        rates = ", ".join(f"{r['name']} {r['bytes_per_second'] / 1e9:.3f}" for r in rows if r["bytes_per_second"])
        found.append(
            f"Copies reach {inside / 1e9:,.0f} GB/s within the GPU and {host / 1e9:,.1f} GB/s from page-locked memory; "
            f"the images above take, GB/s: {rates}."
        )
    return found
