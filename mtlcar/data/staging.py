"""Batches made ahead on the device, beside the step that computes."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

Batch = dict[str, Any]


class Staging:
    """A thread that makes batches, on a GPU on a stream of its own: the copies and gathers of the next batch do not
    wait for the step, and the step waits for them on the device alone.

    A context: the thread ends with it.

    Args:
        device: where batches are made; None: wherever `make` makes them.
    """

    def __init__(self, device: torch.device | None) -> None:
        self._stream = None
        begin: dict[str, Any] = {}
        if device is not None and device.type == "cuda":
            self._stream = torch.cuda.Stream(device)
            self._stream.wait_stream(torch.cuda.current_stream(device))  # for what batches are made of
            # a new thread's device is the first one, where leaving our stream would otherwise make a context
            begin = {"initializer": torch.cuda.set_device, "initargs": (self._stream.device,)}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches", **begin)

    def __enter__(self) -> "Staging":
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._stream is not None:  # what batches were made of may be freed now
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)

    def submit(self, make: Callable[..., Batch], *args: Any) -> "Future[tuple[Batch, torch.cuda.Event | None]]":
        """`make(*args)`, some time soon."""
        return self._pool.submit(self._staged, make, *args)

    def _staged(self, make: Callable[..., Batch], *args: Any) -> "tuple[Batch, torch.cuda.Event | None]":
        if self._stream is None:
            return make(*args), None
        with torch.cuda.stream(self._stream):
            batch = make(*args)
            return batch, self._stream.record_event()

    def take(self, future: "Future[tuple[Batch, torch.cuda.Event | None]]") -> Batch:
        """The batch, for what is queued from now on."""
        batch, made = future.result()
        if made is not None:
            assert self._stream is not None
            current = torch.cuda.current_stream(self._stream.device)
            current.wait_event(made)
            for tensor in tensors(batch):  # its memory was given out on the other stream, which must not reuse it early
                tensor.record_stream(current)
        return batch


def tensors(batch: Batch) -> list[Tensor]:
    found: list[Tensor] = []
    for value in batch.values():
        found += tensors(value) if isinstance(value, dict) else [value]
    return found


def to_device(x: Tensor, device: torch.device | None) -> Tensor:
    """A small tensor of the host on the device, without waiting."""
    if device is None or device.type == "cpu":
        return x
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)
