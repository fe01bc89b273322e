"""Which settings differ between runs, and which were the same."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from mtlcar.config import FOUND
from mtlcar.runs.fingerprint import OFF, WITHOUT, canonical

Settings = dict[str, Any]
"""Dotted key -> value (plain scalar, or text for a list or a mapping by task)."""

BY_CONTENT = {"data.root": "annotations", "backbone.weights": "weights"}
"""Paths whose content matters and whose place does not -> the digest of that content in metrics.json."""

CONSTANTS = "label_transform.constants"
METHOD = "method"
"""The setting that names a whole combination of parts; null: the parts speak for themselves."""

NULL = ("trainer.ema",)
"""Keys that are younger than some runs, and whose null is what those were made with; so are those of
`mtlcar.runs.fingerprint.OFF`, with the value that switches them off."""

NOT_ANNOTATIONS = ("batch_size", "num_workers", "image_size", "split", "split_seed", "fractions", "label_fraction")
"""Settings of `data` that do not change what the digest of the annotations is of."""

IGNORED = (
    *(key for key in WITHOUT if key not in (*BY_CONTENT, METHOD)),
    "threads",
    "trainer.accelerator",
    "experiment",
)
"""What cannot change a result, beyond the last digits that threads and devices round differently."""


def settings(config: Mapping[str, Any], task_names: Iterable[str]) -> Settings:
    """A composed configuration, flat. A mapping whose keys are all tasks (`weighting.weights`) stays one setting; a
    method that is null is none, and so is what older configurations do not have."""
    names = set(task_names)
    flat: Settings = {}

    def walk(node: Mapping[str, Any], prefix: str) -> None:
        for key, value in node.items():
            dotted = f"{prefix}{key}"
            if str(key).startswith("_") or any(dotted == i or dotted.startswith(f"{i}.") for i in IGNORED):
                continue
            if dotted == CONSTANTS:
                flat[dotted] = _constants(value)
            elif isinstance(value, Mapping) and value and not set(value) <= names:
                walk(value, f"{dotted}.")
            else:
                flat[dotted] = _leaf(value, dotted)

    walk(config, "")
    for key in (METHOD, *NULL):
        if flat.get(key) is None:
            flat.pop(key, None)
    for key, (off, more) in OFF.items():
        if flat.get(key, off) == off:
            for name in (key, *more):
                flat.pop(name, None)
    return flat


def _constants(value: Any) -> str | None:
    """None for constants that the run has found itself, else something short to tell given ones apart."""
    if not value or value.get(FOUND):
        return None
    return "given " + hashlib.sha256(json.dumps(canonical(value)).encode()).hexdigest()[:6]


def _leaf(value: Any, key: str) -> Any:
    if key in BY_CONTENT and isinstance(value, str):
        return PurePath(value).name
    value = canonical(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {show(v)}" for k, v in value.items()) or "{}"
    return json.dumps(value) if isinstance(value, list) else value


def by_content(runs: Sequence[Settings], digests: Sequence[Mapping[str, str]]) -> list[Settings]:
    """The settings with the paths of `BY_CONTENT` told apart by the digests of the runs that have them.

    One content under several names gets the first of them; one name with several contents gets their first digits.
    """
    out = [dict(run) for run in runs]
    for key, name in BY_CONTENT.items():
        having = [(run, found.get(name)) for run, found in zip(out, digests, strict=True) if key in run]
        labels: dict[str, Any] = {}
        contents: dict[tuple[Any, str], set[str]] = {}
        for run, digest in having:
            if digest is not None:
                run[key] = labels.setdefault(digest, run[key])
                # Another level or synthetic seed is other annotations too, and a setting of its own.
                contents.setdefault((run[key], _data_settings(run) if key == "data.root" else ""), set()).add(digest)
        ambiguous = {label for (label, _), found in contents.items() if len(found) > 1}
        for run, digest in having:
            if digest is not None and run[key] in ambiguous:
                run[key] = f"{show(run[key])} {digest[:6]}"
    return out


def _data_settings(run: Settings) -> str:
    parts = ((key.partition("."), value) for key, value in run.items() if key != "data.root")
    return json.dumps(
        {k: v for (group, _, k), v in parts if group == "data" and k not in NOT_ANNOTATIONS}, sort_keys=True
    )


def is_seed(key: str) -> bool:
    """Whether a setting only repeats an experiment with other random numbers."""
    return key.rsplit(".", 1)[-1] == "seed" or key.endswith("_seed")


_ABSENT = object()
NONE = "-"
"""Shown where a run has no such setting or number."""


def varied(runs: Sequence[Settings]) -> list[str]:
    """The settings to tell the runs apart by, in configuration order, seeds left out.

    Where runs have different methods, the method comes first, and what is the same in all runs of a method is folded
    into it. Runs without a method are told apart by their parts, as if no run had one.
    """
    methods = dict.fromkeys(run.get(METHOD) for run in runs)
    if len(methods) < 2:
        return _parts(runs)
    listed: set[str] = set()
    for method in methods:
        listed |= set(_parts(runs if method is None else [run for run in runs if run.get(METHOD) == method]))
    return [METHOD, *(key for key in _keys(runs) if key in listed and key != METHOD)]


def _keys(runs: Sequence[Settings]) -> list[str]:
    return list(dict.fromkeys(key for run in runs for key in run))


def _parts(runs: Sequence[Settings]) -> list[str]:
    """The settings that differ.

    A group (its node has a `name`) is one setting, called as the group: what comes with the name is folded into it, so
    a further key of the group is listed only where runs with the same name differ in it.
    """
    keys = _keys(runs)
    groups = {key.removesuffix(".name") for key in keys if key.endswith(".name") and key.count(".") == 1}
    listed = []
    for key in keys:
        group = key.split(".", 1)[0]
        if is_seed(key):
            continue
        if group not in groups or key == f"{group}.name":
            if _differ(runs, key):
                listed.append(key)
        else:
            names = {str(run.get(f"{group}.name")) for run in runs}
            same = ([run for run in runs if str(run.get(f"{group}.name")) == name] for name in names)
            if any(_differ(some, key) for some in same):
                listed.append(key)
    return listed


def _differ(runs: Sequence[Settings], key: str) -> bool:
    first = runs[0].get(key, _ABSENT)
    return any(run.get(key, _ABSENT) != first for run in runs)


def constant(runs: Sequence[Settings]) -> Settings:
    """The settings that all runs have, with one value."""
    return {key: value for key, value in runs[0].items() if not _differ(runs, key)}


def title(key: str) -> str:
    """A setting as a column is headed: `architecture.name` is `architecture`, `weighting.weights` stays."""
    return key.removesuffix(".name")


def column_titles(keys: Sequence[str]) -> list[str]:
    """The last word of each key, or as much of it as tells the keys apart."""
    short = [title(key).rsplit(".", 1)[-1] for key in keys]
    count = Counter(short)
    return [(s if count[s] == 1 else title(k)).replace("_", " ") for s, k in zip(short, keys, strict=True)]


def show(value: Any) -> str:
    """A value as it is written in a table."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
