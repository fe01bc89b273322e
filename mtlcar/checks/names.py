"""Groups, choices and keys that do not exist, with the nearest that do."""

import difflib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from mtlcar.composing import composed_by
from mtlcar.config import by_hydra, conf_dir, groups, missing_plugin, parse_each
from mtlcar.errors import did_you_mean

FREE = ("callbacks.",)
"""Prefixes under which `+key=value` may add, and `~key` take away, what no yaml declares or something reads."""
OURS = {
    "hydra.run.dir": "paths.runs and sweep",
    "hydra.sweep.dir": "paths.runs and sweep",
    "hydra.sweep.subdir": "paths.runs and sweep",
    "hydra.job.chdir": "the folder that the command is given in",
    "hydra.output_subdir": "paths.runs and sweep",
    "hydra.mode": "`mtlcar train` and `mtlcar train -m`",
}
"""Keys of Hydra that mtlcar does not read -> what it reads in their place."""


class Fault(NamedTuple):
    """What is wrong with a command line, and which of its overrides to leave out to see what else is."""

    words: str
    overrides: tuple[str, ...]


def faults_of_form(parsed: Sequence[Override]) -> list[Fault]:
    """Overrides that are no choice of a group, or that add or take away what they may not."""
    found = []
    choices = groups()
    for override in parsed:
        text, key = override.input_line or "", override.key_or_group
        words = None
        free = key.startswith((*FREE, "hydra.", "hydra/"))
        if (override.is_add() or override.is_force_add()) and not free:
            words = (
                f"{text!r}: a leading + adds a key that nothing reads. Leave the + out; if the key is then refused, it "
                "is misspelt. (New keys are possible under callbacks only.)"
            )
        elif override.is_delete() and not free:
            words = f"{text!r}: a leading ~ takes away what every run needs. Choose another value in its place."
        elif key in OURS:
            words = f"{text!r} would change nothing: mtlcar reads {OURS[key]} in its place."
        elif key in choices and not override.is_sweep_override() and not isinstance(override.value(), str | dict):
            words = f"{text!r}: {key} takes the name of one choice. Choices: {', '.join(choices[key])}."
            if isinstance(override.value(), list):
                words += f" Several are listed without brackets, in a sweep: mtlcar train -m {key}=a,b"
        if words:
            found.append(Fault(words, (text, *_below(key, parsed))))
    return found


def _below(key: str, parsed: Sequence[Override]) -> list[str]:
    """Overrides of the keys of a group: what they are keys of is not known without its choice."""
    return [o.input_line or "" for o in parsed if o.key_or_group.startswith(f"{key}.")]


def fault(error: Exception, overrides: Sequence[str]) -> Fault:
    """Hydra's message in our words; with no overrides to leave out where it does not say which it was."""
    text, choices, parsed = str(error), groups(), parse_each(overrides)[0]
    found = re.search(r"Could not find 'hydra/(\w+)/([^']+)'", text)
    if found:
        kind, name = found.groups()
        known = re.findall(r"^\t(\S+)$", text, re.MULTILINE)
        words = missing_plugin(kind, f"hydra_{name}_{kind}") or (
            f"There is no hydra/{kind}={name}.{did_you_mean(name, known)}\nChoices: {', '.join(known)}."
        )
        return Fault(words, ())
    found = re.search(r"Could not find '([^']+)/([^']+)'", text)
    if found and found.group(1).split("/")[0] in choices:
        group, _, choice = "/".join(found.groups()).partition("/")
        words = (
            f"There is no {group}={choice}.{did_you_mean(choice, choices[group])}\n"
            f"Choices for {group}: {', '.join(choices[group])}."
        )
        culprits = [o.input_line or "" for o in parsed if o.key_or_group == group]
        # An experiment chooses the parts: what else is wrong without it says nothing.
        return Fault(words, () if group == "experiment" else (*culprits, *_below(group, parsed)))
    found = re.search(r"Could not override '([^']+)'", text) or re.search(r"Key '([^']+)' is not in struct", text)
    if found:
        key = found.group(1)
        same = [o for o in parsed if o.key_or_group == key]
        lines = tuple(o.input_line or "" for o in same)
        chosen, known = known_keys(overrides)
        dictionaries = [o.value() for o in same if isinstance(o.value(), dict)]
        if key in known and len(dictionaries) == len(same) > 0:
            if _is_free(key, chosen):
                return Fault(
                    f"{lines[-1]!r} adds keys to a dictionary that is there already, from an experiment or an override "
                    f"before it, and Hydra merges dictionaries. Give {key} once, and with the same keys.",
                    lines,
                )
            inside = [f"{key}.{k}" for dictionary in dictionaries for k in dictionary]  # type: ignore[union-attr]
            key = next((k for k in inside if k not in known), key)
        return Fault(unknown_key(key, overrides), lines)
    first = [line for line in text.splitlines() if line.strip()][:3] or [type(error).__name__]
    return Fault(f"The configuration does not compose ({' '.join(overrides)}):\n" + "\n".join(first), ())


def unknown_key(key: str, overrides: Sequence[str]) -> str:
    """Whose key it could be instead, or which key it could be."""
    group, _, rest = key.partition(".")
    chosen, known = known_keys(overrides)
    others = [
        name
        for name in groups().get(group, [])
        if rest and group != "experiment" and OmegaConf.select(_yaml(group, name), rest, default=_yaml) is not _yaml
    ]
    if others and chosen.get(group) not in others:
        return (
            f"There is no configuration key {key!r}: {group}={chosen.get(group)} has none of that name. "
            f"With it: {group}={f' or {group}='.join(others[:6])}."
        )
    parent, _, tail = key.rpartition(".")
    siblings = [k for k in known if k.rpartition(".")[0] == parent]
    close = [f"{parent}.{t}".lstrip(".") for t in _close(tail, [k.rpartition(".")[2] for k in siblings], 0.6)]
    close = close or [k for k in known if k.rpartition(".")[2] == tail][:3] or _close(key, known, 0.7)
    said = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    inside = next((k for k in known if key.startswith(f"{k}.")), None)
    if not close and inside is not None:
        said = f" {inside} is one value; give all of it, as in '{inside}={{a:1}}'."
    return f"There is no configuration key {key!r}.{said}\n`mtlcar train --cfg [overrides]` prints all keys."


def _is_free(key: str, chosen: dict[str, str]) -> bool:
    """Whether the key's yaml declares no keys below it."""
    group, _, rest = key.partition(".")
    return group in chosen and OmegaConf.select(_yaml(group, chosen[group]), rest) in (None, {})


def _close(word: str, choices: Sequence[str], cutoff: float) -> list[str]:
    return difflib.get_close_matches(word, list(dict.fromkeys(choices)), n=3, cutoff=cutoff)


def _yaml(group: str, name: str) -> Any:
    return OmegaConf.load(conf_dir() / group / f"{name}.yaml")


def known_keys(overrides: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """{group: its choice}; and every group, and every key there is with the groups chosen in `overrides`."""
    choices = groups()
    parsed = parse_each(overrides)[0]
    chosen = [o.input_line or "" for o in parsed if _is_choice(o, choices)]
    cfg = composed_by(by_hydra, conf_dir(), chosen, with_hydra=False)
    keys: list[str] = list(choices)

    def walk(node: Any, prefix: str) -> None:
        if isinstance(node, dict):
            for name, child in node.items():
                if not str(name).startswith("_") and name != "name":  # what a choice is made of is not for overriding
                    keys.append(f"{prefix}{name}")
                walk(child, f"{prefix}{name}.")

    walk(OmegaConf.to_container(cfg, resolve=False), "")
    there = [group for group in choices if group in cfg and OmegaConf.is_dict(cfg[group])]
    return {group: str(cfg[group].get("name")) for group in there}, keys


def _is_choice(override: Override, choices: dict[str, list[str]]) -> bool:
    plain = not (override.is_sweep_override() or override.is_delete() or override.is_add() or override.is_force_add())
    return plain and override.value() in choices.get(override.key_or_group, [])
