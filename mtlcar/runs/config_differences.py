"""In what the configuration of a checkpoint differs from the one it is to be used with."""

from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

NETWORK = ("backbone", "architecture", "head", "loss", "label_transform")
"""Groups that say what a checkpoint's tensors mean."""
FREE = ("backbone.weights", "backbone.pretrained", "label_transform.constants")
"""Keys among them that the parameters make superfluous, or that a run finds itself."""
SHOWN = 8
NOTHING = "(not there)"


def flat(node: Any, at: str = "") -> dict[str, Any]:
    """{dotted key: value} of nested mappings; lists are values."""
    if not isinstance(node, Mapping):
        return {at: node}
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= flat(value, f"{at}.{key}" if at else str(key))
    return found


def network_config(cfg: Any) -> dict[str, Any]:
    """{dotted key: value} of the groups `NETWORK` of a configuration."""
    plain = OmegaConf.to_container(cfg, resolve=True) if OmegaConf.is_config(cfg) else cfg
    kept = {group: plain[group] for group in NETWORK if isinstance(plain, Mapping) and group in plain}
    return {key: value for key, value in flat(kept).items() if not key.startswith(FREE)}


def config_in(checkpoint: Any) -> dict[str, Any]:
    """`network_config` of the run that wrote a checkpoint; empty where it does not say (older versions)."""
    try:
        found = checkpoint["callbacks"]["Checkpoints"]["config"]
    except (KeyError, TypeError, IndexError):
        return {}
    return {str(key): value for key, value in found.items()} if isinstance(found, Mapping) else {}


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """A line for each key whose values differ, the names of groups first; nothing where `theirs` is empty."""
    if not theirs:
        return []
    keys = [k for k in {**ours, **theirs} if theirs.get(k, NOTHING) != ours.get(k, NOTHING)]
    keys.sort(key=lambda key: (not key.endswith(".name"), key))
    lines = [f"{key}: {theirs.get(key, NOTHING)} in the checkpoint, {ours.get(key, NOTHING)} here" for key in keys]
    lines = [line if len(line) < 200 else f"{line[:197]}..." for line in lines]
    return [*lines[:SHOWN], *([f"and {len(lines) - SHOWN} more keys"] if len(lines) > SHOWN else [])]
