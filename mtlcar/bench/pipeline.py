"""`mtlcar bench pipeline`: whether the input pipeline keeps up with the model, and whether a plain one would."""

import gc
import json
import math
import random
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torchvision
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import Progress

from mtlcar.architectures.cost import cost
from mtlcar.bench.dataset_rig import DatasetRig
from mtlcar.bench.feeds import Batch, Feed, feeds, read_files, read_through, stretch
from mtlcar.bench.overrides import completed
from mtlcar.bench.rig import settings
from mtlcar.bench.roofline import notes, step_flops
from mtlcar.bench.step import free
from mtlcar.bench.table import machine, stderr, table, times
from mtlcar.bench.timing import Paired, no_collections
from mtlcar.bench.weightings import SETTING
from mtlcar.config import compose_config, cores, finish, parse
from mtlcar.runs.training import precision

CROP = {"flip": 0.5, "crop_scale": [0.5, 1.0]}
JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
AUGMENTATIONS: dict[str, Mapping[str, Any]] = {"flip + crop": CROP, "flip + crop + colour jitter": {**CROP, **JITTER}}
"""Measured where the command line says nothing of data.augment; everything else is off."""
MAX_WORKERS = 8
SECONDS = 2.0
"""That a stretch of the model alone takes, about."""
FEWEST, MOST = 8, 1000
"""Batches of a stretch."""
FILE_SECONDS, READ_SECONDS = 60.0, 2.0
"""For which files are read, and then each loader runs, at most, before anything is timed."""
WARM_UP_EPOCHS = 3
"""Of one step each."""


def command(overrides: Sequence[str], *, rounds: int, workers: int | None = None, as_json: bool = False) -> int:
    """Prints the rows: JSON, or a Markdown table.

    Args:
        workers: processes of the plain loader; None: one a core, eight at most.
    """
    say = stderr()
    workers = min(cores(), MAX_WORKERS) if workers is None else workers
    cfg, augmentations = configuration(overrides)
    rows: list[dict[str, Any]] = []
    with (
        settings(cfg.threads),
        Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress,
    ):
        for name, augment in augmentations.items():
            cfg.data.augment = augment
            bar = progress.add_task(f"{name}: preparing", total=3 * rounds)
            rig = DatasetRig(cfg)
            device = rig.device
            progress.update(bar, description=name)
            rows += measure(name, rig, rounds, workers, lambda bar=bar: progress.advance(bar))  # type: ignore[misc]
            del rig
            free()
        where = [
            f"{cfg.data.name}: {machine(cfg)}",
            f"{' or '.join(dict.fromkeys(str(row['batches']) for row in rows))} batches a measurement, {rounds} "
            f"rounds; plain: {workers} worker processes, torchvision {torchvision.__version__}. Shares are medians of "
            "the rounds' own, with the middle half of them; one above 1, or a wide range, is other work here.",
            *notes(rows, device, precision(cfg)),
        ]
    print(json.dumps(rows, indent=1) if as_json else "\n\n".join([markdown(rows), *where]))
    if as_json:
        say("\n".join(where))
    return 0


def configuration(overrides: Sequence[str]) -> tuple[DictConfig, dict[str, Any]]:
    """The configuration, and the augmentations to measure it with: the user's, if any is given."""
    cfg = finish(compose_config(completed(overrides, SETTING)))
    given = {o.key_or_group for o in parse(overrides)}
    if not any(key == "data.augment" or key.startswith("data.augment.") for key in given):
        return cfg, dict(AUGMENTATIONS)
    own: Any = OmegaConf.to_container(cfg.data.augment, resolve=True)
    return cfg, {described(own): own}


def described(augment: Mapping[str, Any]) -> str:
    """What is on."""
    parts = {"crop_ratio": "crop_scale", "erasing_scale": "erasing"}
    on = {key for key, value in augment.items() if value and parts.get(key, key) == key}
    words = [f"{key}={value}" for key, value in augment.items() if parts.get(key, key) in on]
    return " ".join(words).replace(", ", ",") or "none"


def measure(name: str, rig: DatasetRig, rounds: int, workers: int, tick: Callable[[], None]) -> list[dict[str, Any]]:
    """The rows of one augmentation."""
    three = feeds(rig.parts, rig, workers)
    model = three[0]
    first = next(model.batches())
    images = len(first["index"])
    for _ in range(WARM_UP_EPOCHS):
        rig.begin(first)
    data = rig.parts.data
    read_files((data.annotations.file(int(row)) for row in data.indices["train"]), FILE_SECONDS)
    for feed in three[1:]:
        read_through(feed, len(data.indices["train"]), images, READ_SECONDS)
    once = stretch(model, rig.step, WARM_UP_EPOCHS, rig.synchronize)
    n = min(MOST, max(FEWEST, math.ceil(1e3 * SECONDS / once.ms)))
    measured = interleave(three, rig.step, n, rounds, seed=rig.cfg.seed, synchronize=rig.synchronize, tick=tick)
    rig.check_finite()
    rows = []
    for feed, found in zip(three, measured, strict=True):
        low, middle, high = found.quartiles
        rows.append(
            {
                "name": feed.name,
                "augment": name,
                "images_per_second": round(1e3 * images / found.median_ms, 2),
                "ratio_to_model_only": round(middle, 4),
                "ratio_low": round(low, 4),
                "ratio_high": round(high, 4),
                "step_ms": round(found.median_ms, 4),
                "wait_ms": round(statistics.median(found.wait_ms), 4),
                "batches": n,
                "bytes_per_second": round(1e3 * images * feed.image_bytes / found.median_ms),
            }
        )
    flops = step_flops(cost(rig.architecture, rig.parts.image_size)["forward_gmacs"], images)
    rows[0]["flops_per_second"] = round(1e3 * flops / measured[0].median_ms)
    return rows


@dataclass
class Measured(Paired):
    """Ratios are speeds here: how much of the model's own it reaches."""

    wait_ms: list[float] = field(default_factory=list)


def interleave(
    three: Sequence[Feed],
    step: Callable[[Batch], None],
    n: int,
    rounds: int,
    *,
    seed: int,
    synchronize: Callable[[], None],
    tick: Callable[[], None],
) -> list[Measured]:
    """A stretch of n batches from every feed a round, in an order drawn anew; ratios are to the first feed's there."""
    order = random.Random(seed)
    found = [Measured() for _ in three]
    with no_collections():
        for _ in range(rounds):
            for i in order.sample(range(len(three)), len(three)):
                one = stretch(three[i], step, n, synchronize)
                found[i].ms.append(one.ms)
                found[i].wait_ms.append(one.wait_ms)
                tick()
            for each in found:
                each.ratios.append(found[0].ms[-1] / each.ms[-1])
            gc.collect()
    return found


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A line a feed and augmentation."""
    heads = ["input", "augmentation", "images/s", "share of the model alone", "ms a batch", "of it waiting"]
    lines = [
        [
            r["name"],
            r["augment"],
            f"{r['images_per_second']:,.0f}",
            times(r, "model_only"),
            f"{r['step_ms']:.1f}",
            f"{r['wait_ms']:.2f}",
        ]
        for r in rows
    ]
    return table(heads, lines, words=2)
