"""Names for the parts of a network: a trunk's stages, its pooling, heads, and what an architecture adds."""

import re
from collections.abc import Iterable

from torch import nn

from mtlcar.architectures.base import Architecture
from mtlcar.backbones.base import StagedBackbone


def trunks(architecture: Architecture) -> dict[str, StagedBackbone]:
    """Prefix of its parameters' names -> trunk, in the architecture's order."""
    return {n: m for n, m in architecture.named_modules() if isinstance(m, StagedBackbone)}


def stage_name(trunk: int, stage: int, of: int) -> str:
    """`stage 1` of one trunk, `trunk 2 stage 1` of one of several; given both from 0."""
    return f"stage {stage + 1}" if of == 1 else f"trunk {trunk + 1} stage {stage + 1}"


def shared_parameters(architecture: Architecture) -> dict[str, nn.Parameter]:
    """Name -> parameter of those that several losses reach."""
    shared = {id(p) for p in architecture.shared_parameters()}
    return {n: p for n, p in architecture.named_parameters() if id(p) in shared and p.requires_grad}


def layers_of(architecture: Architecture, parameters: Iterable[str]) -> dict[str, list[str]]:
    """Part -> the names of its parameters among these; stages by depth, then what is no stage."""
    found = trunks(architecture)
    by_key: dict[tuple[int, int, int], tuple[str, list[str]]] = {}
    others: dict[str, int] = {}
    for name in parameters:
        key, part = _stage(found, name)
        if part is None:
            part = _other(architecture, name)
            key = (2, others.setdefault(part, len(others)), 0)
        by_key.setdefault(key, (part, []))[1].append(name)
    return {part: names for _, (part, names) in sorted(by_key.items())}


def _stage(found: dict[str, StagedBackbone], name: str) -> tuple[tuple[int, int, int], str | None]:
    """How to sort a trunk's parameter, and its part."""
    for i, (prefix, trunk) in enumerate(found.items()):
        if not name.startswith(f"{prefix}."):
            continue
        match = re.match(r"stages\.(\d+)\.", name.removeprefix(f"{prefix}."))
        if match is None:
            return (1, i, 0), "pooling" if len(found) == 1 else f"trunk {i + 1} pooling"
        k = int(match[1]) + trunk.first_stage
        # the stages below a cut exist once, in the first trunk, and belong to all
        alone = k < max(t.first_stage for t in found.values())
        return (0, k, i), f"stage {k + 1} (common)" if alone and len(found) > 1 else stage_name(i, k, len(found))
    return (2, 0, 0), None


def _other(architecture: Architecture, name: str) -> str:
    """`head make`, `join model`; else the module's name, with its number from 1."""
    first, _, rest = name.partition(".")
    number = rest.partition(".")[0]
    if first in ("heads", "joins") and number.isdigit():
        return f"{first[:-1]} {architecture.tasks.names[int(number)]}"
    return f"{first} {int(number) + 1}" if number.isdigit() else first
