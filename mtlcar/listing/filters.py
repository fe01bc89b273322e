"""`key=value` words that pick runs."""

import fnmatch
from collections.abc import Sequence
from typing import Any

import yaml

from mtlcar.errors import UserError, did_you_mean
from mtlcar.listing.flat import flat, look_up
from mtlcar.listing.stored import LOADER, StoredRun
from mtlcar.runs.fingerprint import canonical


def refuse_unknown(runs: Sequence[StoredRun], filters: Sequence[str]) -> None:
    """Raises UserError for a `key=value` whose key none of the runs has: nothing would be left, silently."""
    for word in filters if runs else ():
        key = word.partition("=")[0]
        if not any(look_up(run.config, key).there for run in runs):
            known = dict.fromkeys(k for run in runs for k in (*run.config, *flat(run.config)))
            raise UserError(f"None of the {len(runs)} runs has a key {key!r}.{did_you_mean(key, known)}")


def matches(run: StoredRun, word: str) -> bool:
    """Whether `key=value` holds of a run: a dotted key, a group (its choice), or `sweep`. `key=a,b` is either, and `*`
    in words stands for anything."""
    key, _, text = word.partition("=")
    found = look_up(run.config, key)
    return found.there and any(_same(canonical(found.value), part) for part in (text, *text.split(",")))


def _same(value: Any, text: str) -> bool:
    if isinstance(value, str):
        return fnmatch.fnmatchcase(value, text)
    if value is None:
        return text in ("null", "none", "None", "")
    try:
        wanted = canonical(float(text))  # YAML takes 1e-3 for a word
    except ValueError:
        try:
            wanted = canonical(yaml.load(text, LOADER))
        except yaml.YAMLError:
            return False
    return bool(wanted == value) and isinstance(wanted, bool) == isinstance(value, bool)
