"""Whose code a stored configuration may call.

What a user types for `mtlcar train` may name any code: it is theirs. What is read from a directory may have been made
by somebody else and passed on, and to look at a run, or to go on with it, must not run its maker's code. So a
config.yaml that was not just written by the command line may name only what mtlcar's own `conf/` names, torch's
optimizers and Lightning's callbacks, and `weighting.function` must be empty; it holds values alone, no interpolation,
which could read this machine's environment. `MTLCAR_TRUST_CONFIG=1` in the environment lifts this for whoever needs
their own code again.
"""

import os
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mtlcar.config import conf_dir
from mtlcar.errors import UserError

TRUST = "MTLCAR_TRUST_CONFIG"
TRUSTED = "--trust"
"""Word of a job whose configuration was typed by the user of the command that starts it."""
LARGEST = 4 * 2**20
"""Bytes of a config.yaml; a composed one has about 4,000."""
DEEPEST = 50
"""Brackets within brackets; the parser's time grows with the square of them."""
LIBRARIES = re.compile(r"(torch\.optim|lightning\.pytorch\.callbacks)\.[A-Z]\w*")
"""Capital letters: both packages export classes alone under such names, and nothing of their imports."""
CALLS = "function"
"""Key of `weighting=callable` whose value is the dotted path of what it calls."""
EVALUATED = (
    "data",
    "backbone",
    "architecture",
    "head",
    "weighting",
    "label_transform",
    "loss",
    "optimizer",
    "scheduler",
)
"""What `mtlcar.build.build` calls: all but callbacks and the logger."""
FOUND_LATER = ("label_transform.constants",)
"""What a run adds to its configuration, and takes from the directory when it goes on: never code, whoever typed the
rest."""
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def is_trusted() -> bool:
    """Whether this user trusts what is in the directories they name."""
    return os.environ.get(TRUST) == "1"


@cache
def own_targets() -> frozenset[str]:
    """Every `_target_` of mtlcar's own groups, Hydra's plugins left out."""
    files = [p for p in conf_dir().rglob("*.yaml") if p.relative_to(conf_dir()).parts[0] != "hydra"]
    return frozenset(t for p in files for t in re.findall(r"_target_:\s*([\w.]+)", p.read_text(encoding="utf-8")))


def load_config(run_dir: Path) -> DictConfig:
    """config.yaml of a run directory: values, nothing that is computed from this machine.

    Raises:
        UserError: there is none, it cannot be read, or it holds an interpolation or a YAML alias (which could unfold to
            more than the memory) and is not trusted.
    """
    path = run_dir / "config.yaml"
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise UserError(f"{path} is larger than {LARGEST >> 20} MB, so it is no configuration that mtlcar wrote.")
        refuse_unfolding(content, path)
        cfg = OmegaConf.create(content.decode("utf-8"))
        plain = OmegaConf.to_container(cfg, resolve=False)
    except FileNotFoundError as error:
        raise UserError(f"{run_dir} is no run directory (no config.yaml in it).") from error
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}). `mtlcar train` writes it again.") from error
    if not isinstance(cfg, DictConfig) or not isinstance(plain, dict) or not plain:
        raise UserError(f"{path} holds no mapping, so it is no run's configuration. `mtlcar train` writes it again.")
    for key, value in leaves(plain):
        if isinstance(value, str) and "${" in value and not is_trusted():
            raise UserError(
                f"{path}: {key} is {value!r}, an interpolation. mtlcar writes values alone, so somebody has changed "
                f"the file, and it may read this machine's environment. Put the value there, or, where you trust it, "
                f"set {TRUST}=1."
            )
    return cfg


def refuse_unfolding(content: bytes, path: Path) -> None:
    """UserError for YAML that takes far more time or memory than its bytes: aliases, and brackets in many brackets.
    Nothing is built of it. Raises yaml.YAMLError for what is no YAML."""
    depth = deepest = 0
    for byte in content:
        depth += (byte in b"[{") - (byte in b"]}")
        deepest = max(deepest, depth)
    if deepest > DEEPEST:
        raise UserError(f"{path} nests more than {DEEPEST} brackets, which no configuration does.")
    if b"*" in content and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(content, LOADER)):
        raise UserError(f"{path} holds a YAML alias (*name), which mtlcar never writes. Write the values out.")


def refuse_foreign(cfg: DictConfig, where: Path, parts: Sequence[str] = ()) -> None:
    """UserError where a stored configuration names code that is not of the kinds above.

    Args:
        where: its run directory, for the message.
        parts: top-level keys, or dotted ones, that are about to be called; none: all.
    """
    if is_trusted():
        return
    nodes = {part: OmegaConf.select(cfg, part) for part in parts} if parts else {"": cfg}
    foreign = [found for part, node in nodes.items() for found in foreign_code(_plain(node), part)]
    if foreign:
        listed = "\n".join(f"  {key}: {value}" for key, value in foreign[:5])
        more = f"\n  and {len(foreign) - 5} more" if len(foreign) > 5 else ""
        raise UserError(
            f"{where / 'config.yaml'} names code that is no part of mtlcar:\n{listed}{more}\n"
            "A run directory may come from somebody else, so this is not called. If it is yours, or you trust whoever "
            f"made it, set {TRUST}=1 (and PYTHONPATH to where the code is): {TRUST}=1 mtlcar ..."
        )


def refuse_code(cfg: DictConfig, where: Path) -> None:
    """UserError where what a run has added to its configuration (`FOUND_LATER`) would call anything at all."""
    for key in FOUND_LATER:
        for place, value in leaves(_plain(OmegaConf.select(cfg, key)), key):
            if place.endswith("._target_"):
                raise UserError(f"{where / 'config.yaml'}: {place} is {value!r}; constants are numbers. Remove {key}.")


def foreign_code(plain: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything at or below a node that names code from outside."""
    for key, value in leaves(plain, at):
        name = key.rsplit(".", 1)[-1]
        if name == "_target_":
            if not may_be_called(value):
                yield key, value
        elif name == CALLS and value is not None:  # wherever it is: any group may name the class that calls it
            yield key, value


def may_be_called(target: Any) -> bool:
    """Whether a `_target_` from a directory is one of mtlcar's own, torch's optimizers or Lightning's callbacks."""
    return isinstance(target, str) and (target in own_targets() or LIBRARIES.fullmatch(target) is not None)


def leaves(node: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of all that is no container, and of every `_target_` whatever it is."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else None
    if items is None:
        yield at, node
        return
    for key, value in items:
        place = f"{at}.{key}" if at else str(key)
        if key == "_target_":
            yield place, value
        else:
            yield from leaves(value, place)


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else node


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0] or type(error).__name__
