"""Memory that does not suffice: what asked for it, and which keys ask for less."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from omegaconf import DictConfig

from mtlcar.runs.secrets import without_password

WORDS = ("out of memory", "can't allocate memory", "not enough memory", "cublas_status_alloc_failed")
"""In the messages of torch's errors that are plain RuntimeErrors, in lower case."""


class NoMemoryError(RuntimeError):
    """Of the GPU or the machine; the message names the keys that need less."""


@contextmanager
def explained(cfg: DictConfig, *, training: bool = True) -> Iterator[None]:
    """Raises NoMemoryError where memory runs out inside. A job then ends with exit status 1; what it saved stays.

    Args:
        cfg: the run's configuration.
        training: the batches are of training; else of a test.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        gpu = isinstance(error, torch.OutOfMemoryError) or "cuda" in str(error).lower()
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not any(
            word in str(error).lower() for word in WORDS
        ):
            raise
        first = without_password((str(error).strip().splitlines() or [type(error).__name__])[0])[:300]
        where = "The GPU's memory" if gpu else "This machine's memory"
        lines = advice(cfg, gpu=gpu, training=training)
        raise NoMemoryError(
            f"{where} does not suffice: {first}\n" + "\n".join(f"  {line}" for line in lines)
        ) from error


def advice(cfg: DictConfig, *, gpu: bool, training: bool) -> list[str]:
    """What may help, the likeliest first. Images are in pixels, batches in images."""
    data, trainer = cfg.data, cfg.trainer
    found = []
    if training:
        batch, times = int(data.batch_size), int(trainer.accumulate_grad_batches)
        if batch > 1:
            less = smaller(batch)
            more = math.ceil(batch * times / less)
            exact = "the same" if less * more == batch * times else f"{less * more} instead of {batch * times}"
            found.append(
                f"data.batch_size={less} trainer.accumulate_grad_batches={more} (now {batch} and {times}): {exact} "
                "images an optimizer step"
            )
        else:
            found.append(
                f"the batch is one image already; data.image_size (now {data.image_size}) or a smaller backbone"
            )
    else:
        size = data.get("eval_batch_size") or data.batch_size
        found.append(f"data.eval_batch_size={smaller(int(size))} (now {size}); results stay the same")
    if data.get("placement", "auto") not in ("mmap",):
        found.append(f"data.placement=mmap (now {data.get('placement')}): decoded images stay on the disk")
    if gpu:
        if trainer.precision != "bf16-mixed":
            found.append(f"trainer.precision=bf16-mixed (now {trainer.precision}): activations of half the size")
        if (cfg.get("jobs_per_gpu") or 1) > 1:
            found.append(f"jobs_per_gpu=1 (now {cfg.jobs_per_gpu}): no other run on the same GPU")
    else:
        found.append("fewer runs at a time (hydra.launcher.n_jobs), or fewer other programs")
    if training:
        found.append(
            "Batch size, precision and backbone make another run; the other keys go on with this one: mtlcar resume"
        )
    return found


def smaller(n: int) -> int:
    """The largest power of two below n; 1 for 1."""
    return 1 << max(0, (n - 1).bit_length() - 1)
