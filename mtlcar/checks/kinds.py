"""Values of another kind than the yaml's own: a word for a number, a list for a switch."""

import difflib
import math
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mtlcar.config import conf_dir, groups

OWN_RULE = frozenset(
    {
        "trainer.precision",
        "trainer.devices",
        "trainer.accelerator",
        "trainer.strategy",
        "trainer.deterministic",
        "trainer.compile",
        "label_transform.scale",  # a word or a number
        "label_transform.order",  # a word or names
        "architecture.task_experts",  # a number, or one a task
        "weighting.leak",  # the same
    }
)
"""Keys of several kinds; `values` or their part says which."""
PLAIN = re.compile(r"\w[\w.-]*")
"""Names of choices; a data set's is a folder of the cache."""
NULLABLE = frozenset({"data.box_margin", "head.dropout", "architecture.width"})
"""Keys that may be null though their default is something; all of data.augment may."""
THEIR_OWN = frozenset({"weighting", "logger", "architecture", "label_transform"})
"""Groups whose parts say themselves which keys may be null."""


def problems(cfg: DictConfig) -> Iterator[str]:
    """One sentence for each value that is not of its default's kind."""
    for group, names in groups().items():
        if group == "experiment":
            continue
        node = cfg.get(group)
        if not OmegaConf.is_dict(node):
            yield f"{group} should be the name of a choice. Found {node!r}. Choices: {', '.join(names)}."
        elif group == "data" and not PLAIN.fullmatch(str(node.get("name"))):
            yield f"data.name should be a plain word: a folder is named after it. Found {node.get('name')!r}."
        elif (name := node.get("name")) in names:
            yield from _walk(group, _declared(group, name), OmegaConf.to_container(node, resolve=True))
    for key in ("paths", "checkpoint"):
        if not OmegaConf.is_dict(cfg.get(key)):
            yield f"{key} should have the keys that `mtlcar train --cfg` shows. Found {cfg.get(key)!r}."


@cache
def _declared(group: str, name: str) -> Any:
    return OmegaConf.to_container(OmegaConf.load(conf_dir() / group / f"{name}.yaml"), resolve=False)


def _walk(where: str, declared: Any, given: Any) -> Iterator[str]:
    for key, default in declared.items():
        name = f"{where}.{key}"
        if key.startswith("_") or name in OWN_RULE or default in (None, "???") or key not in given:
            continue
        value = given[key]
        if isinstance(default, dict) and default:
            if isinstance(value, dict):
                yield from _walk(name, default, value)
            else:
                keys = ", ".join(k for k in default if not k.startswith("_"))
                yield f"{name} has keys of its own ({keys}). Found {'null' if value is None else repr(value)}."
        elif value is None:
            if name not in NULLABLE and where.split(".")[0] not in THEIR_OWN and not where.startswith("data.augment"):
                yield f"{name} should be {_expected(default)}. Found null."
        elif where == "data.augment" and isinstance(value, bool):
            continue  # false: off
        elif not _same_kind(default, value):
            yield f"{name} should be {_expected(default)}. Found {value!r}.{_hint(default, value)}"


def _same_kind(default: Any, value: Any) -> bool:
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, int | float):
        return _is_number(value)
    if isinstance(default, str):  # a name may be a number: logger.project=2024
        return isinstance(value, str | int | float) and not isinstance(value, bool)
    if isinstance(default, list):
        if not isinstance(value, list):
            return False
        numbers = bool(default) and all(_is_number(item) for item in default)
        return all(_is_number(item) if numbers else not isinstance(item, dict | list) for item in value)
    return isinstance(value, type(default))


def _is_number(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond float64
        return False


def _expected(default: Any) -> str:
    if isinstance(default, bool):
        return "true or false"
    if isinstance(default, int | float):
        return f"a finite number, such as {default:g}"
    if isinstance(default, str):
        return f"a word, such as {default}"
    if isinstance(default, list):
        numbers = bool(default) and all(_is_number(item) for item in default)
        listed = ",".join(map(str, default)) or "a,b"
        return f"a list{' of finite numbers' if numbers else ' of words'}, such as [{listed}]"
    return "a dictionary, such as {a:1}"


def _hint(default: Any, value: Any) -> str:
    if isinstance(default, bool) and isinstance(value, str):
        close = difflib.get_close_matches(value.lower(), ["true", "false", "yes", "no", "on", "off"], n=1)
        if close:
            return f" Write {'true' if close[0] in ('true', 'yes', 'on') else 'false'}."
    return ""
