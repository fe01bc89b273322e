"""Hydra's composition, remembered: it takes a quarter of a second, and the suite asks for it two thousand times.

The choices of groups are composed by Hydra once; `key=value` overrides are applied to a copy by the function with which
Hydra applies them. Whatever fails, or is none of the two, is Hydra's from the beginning, and so are its words.
"""

import copy
import functools
from collections.abc import Sequence

from hydra import compose as by_hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from mtlcar import config

OURS = config.conf_dir()


def compose(name: str, overrides: Sequence[str], return_hydra_config: bool = False) -> DictConfig:
    """What `hydra.compose` returns."""
    if not return_hydra_config and config.conf_dir() == OURS:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        values = [o for o in parsed if is_value(o)]
        choices = [o for o in parsed if not is_value(o)]
        if all(is_choice(o) for o in choices):
            try:
                found = copy.deepcopy(_composed(name, tuple(o.input_line or "" for o in choices)))
                ConfigLoaderImpl._apply_overrides_to_config(values, found)
            except Exception:
                pass
            else:
                return found
    return by_hydra(name, list(overrides), return_hydra_config)


def is_value(override: Override) -> bool:
    key = override.key_or_group
    plain = not override.is_add() and not override.is_delete() and override.package is None and "/" not in key
    return plain and not override.is_sweep_override() and not key.startswith("hydra") and not is_group(key)


def is_choice(override: Override) -> bool:
    plain = not override.is_add() and not override.is_delete() and override.package is None
    return plain and not override.is_sweep_override() and is_group(override.key_or_group)


def is_group(key: str) -> bool:
    return (OURS / key).is_dir()


@functools.cache
def _composed(name: str, choices: tuple[str, ...]) -> DictConfig:
    return by_hydra(name, list(choices))
