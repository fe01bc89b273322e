"""`mtlcar bench step`: what every architecture costs, its training step next to one of hard parameter sharing."""

import copy
import gc
import json
import sys
from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import Progress

from mtlcar.architectures.cost import cost, task_costs
from mtlcar.architectures.latency import ALL
from mtlcar.bench.overrides import chosen, own_configs, split_overrides
from mtlcar.bench.rig import Driven, Rig, settings
from mtlcar.bench.table import machine, stderr, table, times
from mtlcar.bench.timing import Paired, interleave
from mtlcar.bench.weightings import SETTING
from mtlcar.config import compose_config, conf_dir, finish
from mtlcar.errors import UserError

BASELINE = "parallel"
WARM_UP_EPOCHS = 6
"""Of one step each: more than the weightings with a warm-up of their own take."""


def command(
    overrides: Sequence[str],
    *,
    tasks: Sequence[int],
    rounds: int,
    only: Sequence[str] | None = None,
    as_json: bool = False,
) -> int:
    """Prints the rows: JSON, or a Markdown table."""
    say = stderr()
    if not tasks or min(tasks) < 2:
        raise UserError(f"--tasks should be numbers of at least 2: the made-up tasks are that many. Found {tasks}.")
    rest, own = split_overrides("architecture", overrides, SETTING)
    cfg = finish(compose_config(rest))
    configs = own_configs("architecture", chosen("architecture", only, first=BASELINE), rest, own)
    rows, reasons = [], []
    wanted = [(n, name) for n in dict.fromkeys(tasks) for name in configs]
    with (
        settings(cfg.threads),
        Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress,
    ):
        bar = progress.add_task("", total=len(wanted))
        for n, name in wanted:
            progress.update(bar, description=f"{name}, {n} tasks")
            baseline = Rig(with_architecture(cfg, OmegaConf.load(conf_dir() / "architecture" / f"{BASELINE}.yaml")), n)
            try:
                rows.append(measure(name, Rig(with_architecture(cfg, configs[name]), n), baseline, rounds))
            except (UserError, torch.OutOfMemoryError) as error:
                reasons.append(f"left out: {name}: {str(error).splitlines()[0]}")
                say(reasons[-1])
            del baseline
            free()
            progress.advance(bar)
        where = machine(cfg)
    if not rows:
        raise UserError("There is nothing to measure: every architecture was left out.")
    print(json.dumps(rows, indent=1) if as_json else f"{markdown(rows)}\n\n{where}")
    if as_json:
        say(where)
    return 0


def with_architecture(cfg: DictConfig, node: Any) -> DictConfig:
    other = copy.deepcopy(cfg)
    other.architecture = node
    return other


def free() -> None:
    """Give back what a pair of networks has taken: there are never more than two."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def measure(name: str, rig: Rig, baseline: Rig, rounds: int) -> dict[str, Any]:
    """One row: the steps of both, interleaved, and what the architecture costs."""
    paired = steps(rig, baseline, rounds)
    low, middle, high = paired.quartiles
    size = rig.cfg.data.image_size
    return {
        "name": name,
        "tasks": len(rig.tasks),
        **cost(rig.architecture, size),
        "step_ms": round(paired.median_ms, 4),
        f"ratio_to_{BASELINE}": round(middle, 4),
        "ratio_low": round(low, 4),
        "ratio_high": round(high, 4),
        **task_costs(rig.architecture, size, channels_last=rig.cfg.trainer.channels_last),
    }


def steps(rig: Rig, baseline: Rig, rounds: int) -> Paired:
    """Training steps as in the middle of a run, where an architecture follows a schedule."""
    driven = []
    for r in (rig, baseline):
        r.finish([r.module.weighting])
        r.architecture.begin_epoch(r.cfg.trainer.max_epochs // 2, r.cfg.trainer.max_epochs)
        driven.append(Driven(r, r.module.weighting))
        for _ in range(WARM_UP_EPOCHS):
            driven[-1].epoch()
    (found,) = interleave(driven[:1], driven[1], rounds=rounds, synchronize=rig.synchronize)
    for r in (rig, baseline):
        r.check_finite()
    return found


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A line an architecture: parameters, multiply-adds of an image, the step, and one image's latency by task."""
    latencies = [r["latency_ms"] or {} for r in rows]
    names = [n for n in dict.fromkeys(n for found in latencies for n in found) if n != ALL]
    names += [ALL] if any(latencies) else []
    heads = ["architecture", "tasks", "parameters, M", "shared, M", "GMACs", "step ms", f"times {BASELINE}"]
    lines = [
        [
            r["name"],
            str(r["tasks"]),
            f"{r['parameters'] / 1e6:.3f}",
            f"{r['shared_parameters'] / 1e6:.3f}",
            f"{r['forward_gmacs']:.4f}",
            f"{r['step_ms']:.1f}",
            times(r, BASELINE),
            *(f"{found[n]:.2f}" if n in found else "" for n in names),
        ]
        for r, found in zip(rows, latencies, strict=True)
    ]
    return table([*heads, *(f"latency of {n}, ms" for n in names)], lines, words=1)
