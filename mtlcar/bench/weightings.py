"""`mtlcar bench weightings`: what a training step costs under every weighting, next to one under `equal`."""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hydra.utils import get_class
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import Progress

from mtlcar.bench.overrides import chosen, own_configs, split_overrides
from mtlcar.bench.rig import Driven, Rig, settings
from mtlcar.bench.table import machine, stderr, table, times
from mtlcar.bench.timing import each_ms, interleave
from mtlcar.build import make
from mtlcar.config import compose_config, finish, parse
from mtlcar.errors import UserError, did_you_mean
from mtlcar.module import refuse_impossible
from mtlcar.weightings.base import LEVELS, GramianWeighting, Weighting

SETTING = {"backbone": "resnet18", "data.image_size": "64", "data.batch_size": "16", "optimizer.lr": "1e-7"}
"""Where the command line says nothing else. The rate is next to nothing: the figures should not depend on how far some
invented labels have been learnt."""
WITH_PEERS = {**SETTING, "trainer.channels_last": "false"}
"""LibMTL cannot flatten gradients in the other layout."""
WARM_UP_EPOCHS = 6
"""Of one step each: more than the methods with a warm-up of their own take (stch: 5)."""

Say = Callable[[str], None]


@dataclass
class Candidate:
    """One row: `run` is a training step, `warm_up` what comes before it is timed."""

    name: str
    level: str
    run: Callable[[], object]
    warm_up: Callable[[], object]
    module: torch.nn.Module
    weighting: Weighting | None = None


def command(
    overrides: Sequence[str],
    *,
    tasks: Sequence[int],
    rounds: int,
    only: Sequence[str] | None = None,
    peers: bool = False,
    as_json: bool = False,
) -> int:
    """Prints the rows: JSON, or a Markdown table."""
    say = stderr()
    if not tasks or min(tasks) < 2:
        raise UserError(f"--tasks should be numbers of at least 2: one task has nothing to balance. Found {tasks}.")
    rest, own = split_overrides("weighting", overrides, WITH_PEERS if peers else SETTING)
    cfg = finish(compose_config(rest))
    names = chosen("weighting", only, first="equal")
    own, level = split_level(own)
    configs = own_configs("weighting", names, rest, own, reads=reads)
    rows: list[dict[str, Any]] = []
    with settings(cfg.threads):
        for n in dict.fromkeys(tasks):
            rows += measure(
                cfg, n, configs, level=level, rounds=rounds, explicit=only is not None, peers=peers, say=say
            )
        where = machine(cfg)
    print(json.dumps(rows, indent=1) if as_json else f"{markdown(rows)}\n\n{where}")
    if as_json:
        say(where)
    return 0


def split_level(own: Sequence[str]) -> tuple[list[str], str | None]:
    """Without `weighting.level`, and the level it asks for: which rows there are, and no method's own key."""
    asked = [o for o in own if parse([o])[0].key_or_group == "weighting.level"]
    if not asked:
        return list(own), None
    level = str(parse([asked[-1]])[0].value())
    if level not in LEVELS:
        raise UserError(
            f"weighting.level should be one of {', '.join(LEVELS)}. Found {level!r}.{did_you_mean(level, LEVELS)}"
        )
    return [o for o in own if o not in asked], level


def reads(cfg: Any, key: str) -> bool:
    """Whether a weighting has the key; `weights`, which every yaml has, only where it is read."""
    cls: Any = get_class(cfg._target_)
    return key in cfg and (key != "weights" or cls.reads_weights)


def measure(
    cfg: DictConfig,
    tasks: int,
    configs: dict[str, DictConfig],
    *,
    level: str | None,
    rounds: int,
    explicit: bool,
    peers: bool,
    say: Say,
) -> list[dict[str, Any]]:
    """The rows for one number of tasks.

    Args:
        level: the only one to measure, next to the functions of the losses.
        explicit: whether the names were asked for: then one that cannot run is an error, and not left out.
    """
    rig = Rig(cfg, tasks)
    candidates = [
        c
        for name, node in configs.items()
        for c in variants(rig, name, node, only_level=level, explicit=explicit, say=say)
    ]
    if peers:
        from mtlcar.bench.peers import peer_candidates

        candidates += [c for c in peer_candidates(rig, say) if level in (None, c.level) or c.level == "loss"]
    if not candidates:
        raise UserError(f"There is nothing to measure on {tasks} tasks.")
    base = Driven(rig, make(compose_config(["weighting=equal"]).weighting, tasks=rig.tasks).to(rig.device))
    rig.finish([base.weighting, *(c.module for c in candidates)])
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(f"{tasks} tasks: warming up", total=len(candidates) * (rounds + 1))
        base.epoch()
        ready = []
        for c in candidates:
            try:
                for _ in range(WARM_UP_EPOCHS):
                    c.warm_up()
                ready.append(c)
            except Exception as error:
                if c.weighting is not None:
                    raise
                say(f"left out: {c.name} at {c.level}: {type(error).__name__}: {str(error).splitlines()[0]}")
                rig.clear()
            progress.advance(task)
        progress.update(task, description=f"{tasks} tasks", total=len(ready) * rounds, completed=0)
        timings = interleave(
            [c.run for c in ready],
            base,
            rounds=rounds,
            seed=cfg.seed,
            synchronize=rig.synchronize,
            tick=lambda: progress.advance(task),
        )
    rig.check_finite()
    rows = []
    for c, paired in zip(ready, timings, strict=True):
        low, middle, high = paired.quartiles
        solve = solve_ms(rig, c.weighting)
        rows.append(
            {
                "name": c.name,
                "level": c.level,
                "tasks": tasks,
                "step_ms": round(paired.median_ms, 4),
                "ratio_to_equal": round(middle, 4),
                "ratio_low": round(low, 4),
                "ratio_high": round(high, 4),
                "solve_ms": None if solve is None else round(solve, 5),
            }
        )
    return rows


def variants(
    rig: Rig, name: str, node: DictConfig, *, only_level: str | None, explicit: bool, say: Say
) -> Iterable[Candidate]:
    """A weighting at every level that it works at, or at the only one asked for."""
    try:
        first: Weighting = make(node, tasks=rig.tasks)
        levels: Sequence[str] = first.levels if first.takes_gradients_apart else ("loss",)
        if only_level is not None and levels != ("loss",):
            if only_level not in levels:
                say(f"left out: {name}: works at weighting.level={' or '.join(levels)} only")
                return
            levels = (only_level,)
        found = []
        for level in levels:
            weighting = first if level in ("loss", first.level) else make(at_level(node, level), tasks=rig.tasks)
            refuse_impossible(rig.architecture, weighting)
            found.append((level, weighting.to(rig.device)))
    except UserError as error:
        if explicit:
            raise
        say(f"left out: {name}: {str(error).splitlines()[0]}")
        return
    for level, weighting in found:
        driven = Driven(rig, weighting)
        yield Candidate(name, level, driven, driven.epoch, weighting, weighting)


def at_level(node: DictConfig, level: str) -> DictConfig:
    other = node.copy()
    other.level = level
    return other


def solve_ms(rig: Rig, weighting: Weighting | None) -> float | None:
    """Milliseconds of `weights()` alone, on a Gramian in which tasks conflict."""
    if not isinstance(weighting, GramianWeighting):
        return None
    n = len(rig.tasks)
    jacobian = torch.randn(n, 2 * n, generator=torch.Generator().manual_seed(0))
    gramian = (jacobian @ jacobian.T).to(rig.device)
    losses = torch.linspace(0.5, 2.0, n).to(rig.device)
    with torch.no_grad():
        return each_ms(lambda: weighting.weights(gramian, losses), synchronize=rig.synchronize)


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A line a weighting and level; for each number of tasks its milliseconds, its ratio to equal with the middle half
    of the rounds, and the solver's milliseconds."""
    counts = list(dict.fromkeys(r["tasks"] for r in rows))
    found = {(r["name"], r["level"], r["tasks"]): r for r in rows}
    heads = ["weighting", "level"] + [f"{h}, {n} tasks" for n in counts for h in ("ms", "times equal", "solve ms")]
    lines = []
    for name, level in dict.fromkeys((r["name"], r["level"]) for r in rows):
        cells = [name, level]
        for n in counts:
            r = found.get((name, level, n))
            if r is None:
                cells += ["", "", ""]
                continue
            solve = "" if r["solve_ms"] is None else f"{r['solve_ms']:.3f}"
            cells += [f"{r['step_ms']:.1f}", times(r, "equal"), solve]
        lines.append(cells)
    return table(heads, lines, words=2)
