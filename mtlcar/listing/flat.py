"""A composed configuration as dotted keys."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mtlcar.report.varied import IGNORED, Settings, settings
from mtlcar.runs.fingerprint import WITHOUT, canonical


@dataclass(frozen=True)
class Found:
    """A key's value, if it is there."""

    value: Any = None
    there: bool = False


def look_up(config: Mapping[str, Any], key: str) -> Found:
    """The value of a dotted key; of a group, its choice."""
    found = look_up_node(config, key)
    if isinstance(found.value, Mapping) and "name" in found.value:
        return Found(found.value["name"], True)
    return found


def flat(config: Mapping[str, Any], task_names: Iterable[str] = ()) -> Settings:
    """All settings: those that a report tells runs apart by, then those that cannot change a result (paths, logger)."""
    found = settings(config, task_names)
    for key in IGNORED:
        value = look_up_node(config, key)
        if value.there:
            found |= _leaves(value.value, key)
    return found


def look_up_node(config: Mapping[str, Any], key: str) -> Found:
    node: Any = config
    for name in key.split("."):
        if not isinstance(node, Mapping) or name not in node:
            return Found()
        node = node[name]
    return Found(node, True)


def _leaves(node: Any, prefix: str) -> Settings:
    if not isinstance(node, Mapping):
        return {prefix: canonical(node) if not isinstance(node, list) else str(node)}
    found: Settings = {}
    for key, value in node.items():
        if not str(key).startswith("_"):
            found |= _leaves(value, f"{prefix}.{key}")
    return found


def outside_fingerprint(key: str) -> bool:
    """Whether a key cannot change a run's result, and so does not enter its fingerprint."""
    return any(key == other or key.startswith(f"{other}.") for other in WITHOUT)
