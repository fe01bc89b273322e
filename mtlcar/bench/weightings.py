"""`mtlcar bench weightings`: what a training step costs under every weighting, next to one under `equal`."""

import datetime
import json
import platform
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import Progress

from mtlcar.bench.rig import Driven, Rig, settings
from mtlcar.bench.timing import each_ms, interleave
from mtlcar.build import make
from mtlcar.config import compose_config, conf_dir, finish, groups, parse
from mtlcar.errors import UserError, did_you_mean
from mtlcar.module import refuse_impossible
from mtlcar.runs.training import precision
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
    console = Console(stderr=True)

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    if rounds < 1:
        raise UserError(f"--rounds should be at least 1. Found {rounds}.")
    if not tasks or min(tasks) < 2:
        raise UserError(f"--tasks should be numbers of at least 2: one task has nothing to balance. Found {tasks}.")
    rest, own = split_overrides(overrides, WITH_PEERS if peers else SETTING)
    cfg = finish(compose_config(rest))
    names = chosen(only)
    own, level = split_level(own)
    configs = weighting_configs(names, rest, own)
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


def split_overrides(overrides: Sequence[str], setting: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Those of everything else, with `setting` where they say nothing, and those of the weightings' own keys."""
    parsed = parse(overrides)
    for o in parsed:
        if o.is_sweep_override():
            raise UserError(f"{o.input_line!r} lists several values; mtlcar bench measures one setting.")
        if o.key_or_group == "weighting":
            raise UserError(f"{o.input_line!r}: choose weightings with --only {o.value()}.")
    given = {o.key_or_group for o in parsed}
    rest = [f"{k}={v}" for k, v in setting.items() if k not in given]
    rest += [str(o.input_line) for o in parsed if not o.key_or_group.startswith("weighting.")]
    return rest, [str(o.input_line) for o in parsed if o.key_or_group.startswith("weighting.")]


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


def chosen(only: Sequence[str] | None) -> list[str]:
    """Names of weightings, `equal` first."""
    known = groups()["weighting"]
    if only is not None and not only:
        raise UserError(f"--only needs names of weightings: {', '.join(known)}.")
    for name in only or ():
        if name not in known:
            raise UserError(
                f"There is no weighting {name!r}.{did_you_mean(name, known)} There are: {', '.join(known)}."
            )
    return sorted(set(known if only is None else only), key=lambda n: (n != "equal", n))


def weighting_configs(names: Sequence[str], rest: Sequence[str], own: Sequence[str]) -> dict[str, DictConfig]:
    """The weighting group of each name. An override such as `weighting.c=0.3` reaches those that have the key, and
    `weighting.weights`, which every yaml has, those that read it.

    Raises:
        UserError: none has it.
    """
    # A group's yaml stands alone, and composing all of them would take seconds.
    plain = {name: OmegaConf.load(conf_dir() / "weighting" / f"{name}.yaml") for name in names}
    keys = {o: parse([o])[0].key_or_group.split(".")[1] for o in own}

    def reads(cfg: Any, key: str) -> bool:
        cls: Any = get_class(cfg._target_)
        return key in cfg and (key != "weights" or cls.reads_weights)

    for override, key in keys.items():
        if not any(reads(cfg, key) for cfg in plain.values()):
            if key == "weights":
                raise UserError(f"{override}: none of {', '.join(names)} reads weights; `fixed` does.")
            every = {str(k) for cfg in plain.values() for k in cfg}
            raise UserError(f"{override}: none of {', '.join(names)} has this key.{did_you_mean(key, every)}")
    found: dict[str, Any] = {}
    for name, cfg in plain.items():
        mine = [o for o, key in keys.items() if reads(cfg, key)]
        found[name] = compose_config([*rest, f"weighting={name}", *mine]).weighting if mine else cfg
    return found


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


def machine(cfg: DictConfig) -> str:
    """What the figures are of."""
    gpu = torch.cuda.is_available() and cfg.trainer.accelerator in ("auto", "gpu", "cuda")
    device = torch.cuda.get_device_name() if gpu else cpu_name()
    return (
        f"{cfg.backbone.name}, {cfg.data.image_size} px, batch {cfg.data.batch_size}, precision "
        f"{precision(cfg)}; {device}, {cfg.threads} threads, torch {torch.__version__}, "
        f"{datetime.datetime.now(tz=datetime.UTC).date()}"
    )


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A line a weighting and level; for each number of tasks its milliseconds, its ratio to equal with the middle half
    of the rounds, and the solver's milliseconds."""
    counts = list(dict.fromkeys(r["tasks"] for r in rows))
    found = {(r["name"], r["level"], r["tasks"]): r for r in rows}
    heads = ["weighting", "level"] + [f"{h}, {n} tasks" for n in counts for h in ("ms", "times equal", "solve ms")]
    lines = [heads, ["---", "---"] + ["---:"] * (3 * len(counts))]
    for name, level in dict.fromkeys((r["name"], r["level"]) for r in rows):
        cells = [name, level]
        for n in counts:
            r = found.get((name, level, n))
            if r is None:
                cells += ["", "", ""]
                continue
            spread = f"{r['ratio_to_equal']:.2f} ({r['ratio_low']:.2f} to {r['ratio_high']:.2f})"
            solve = "" if r["solve_ms"] is None else f"{r['solve_ms']:.3f}"
            cells += [f"{r['step_ms']:.1f}", spread, solve]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
