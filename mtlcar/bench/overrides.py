"""Which choices of a group are measured, and which overrides are about them and which about everything else."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mtlcar.config import compose_config, conf_dir, groups, parse
from mtlcar.errors import UserError, did_you_mean


def has_key(cfg: Any, key: str) -> bool:
    return key in cfg


def split_overrides(group: str, overrides: Sequence[str], setting: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Those of everything else, with `setting` where they say nothing, and those of the group's own keys."""
    parsed = parse(overrides)
    for o in parsed:
        if o.is_sweep_override():
            raise UserError(f"{o.input_line!r} lists several values; mtlcar bench measures one setting.")
        if o.key_or_group == group:
            raise UserError(f"{o.input_line!r}: choose {group}s with --only {o.value()}.")
    given = {o.key_or_group for o in parsed}
    own = [o for o in parsed if o.key_or_group.startswith(f"{group}.")]
    rest = [f"{k}={v}" for k, v in setting.items() if k not in given]
    return rest + [str(o.input_line) for o in parsed if o not in own], [str(o.input_line) for o in own]


def chosen(group: str, only: Sequence[str] | None, *, first: str) -> list[str]:
    """Names of the group's choices, `first` first."""
    known = groups()[group]
    if only is not None and not only:
        raise UserError(f"--only needs names of {group}s: {', '.join(known)}.")
    for name in only or ():
        if name not in known:
            raise UserError(f"There is no {group} {name!r}.{did_you_mean(name, known)} There are: {', '.join(known)}.")
    return sorted(set(known if only is None else only), key=lambda n: (n != first, n))


def own_configs(
    group: str,
    names: Sequence[str],
    rest: Sequence[str],
    own: Sequence[str],
    reads: Callable[[Any, str], bool] = has_key,
) -> dict[str, DictConfig]:
    """The group's node of each name. An override such as `weighting.c=0.3` reaches those that read the key.

    Args:
        reads: (node, key) -> whether what it builds reads the key.

    Raises:
        UserError: none does.
    """
    # A group's yaml stands alone, and composing all of them would take seconds.
    plain = {name: OmegaConf.load(conf_dir() / group / f"{name}.yaml") for name in names}
    keys = {o: parse([o])[0].key_or_group.split(".")[1] for o in own}
    for override, key in keys.items():
        if any(reads(cfg, key) for cfg in plain.values()):
            continue
        among = ", ".join(names)
        if any(key in cfg for cfg in plain.values()):
            raise UserError(f"{override}: none of {among} reads {key}.")
        every = {str(k) for cfg in plain.values() for k in cfg}
        raise UserError(f"{override}: none of {among} has this key.{did_you_mean(key, every)}")
    found: dict[str, Any] = {}
    for name, cfg in plain.items():
        mine = [o for o, key in keys.items() if reads(cfg, key)]
        found[name] = compose_config([*rest, f"{group}={name}", *mine])[group] if mine else cfg
    return found


def completed(overrides: Sequence[str], setting: Mapping[str, str], *, ours: Sequence[str] = ()) -> list[str]:
    """The overrides, and `setting` where they say nothing.

    Args:
        ours: keys that the measurement sets itself.
    """
    parsed = parse(overrides)
    for o in parsed:
        if o.is_sweep_override():
            raise UserError(f"{o.input_line!r} lists several values; mtlcar bench measures one setting.")
        if o.key_or_group in ours:
            raise UserError(f"{o.input_line!r}: the measurement sets {o.key_or_group} itself. Leave it out.")
    given = {o.key_or_group for o in parsed}
    return [*(f"{key}={value}" for key, value in setting.items() if key not in given), *overrides]
