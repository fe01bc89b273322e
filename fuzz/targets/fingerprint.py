"""A run's identity: any configuration has one; it does not depend on how equal values are written or ordered, nor on
what cannot change a result, and another value elsewhere is another run."""

import copy
import json
import math
from collections.abc import Iterable
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mtlcar.config import compose_config, finish
from mtlcar.runs.fingerprint import WITHOUT, canonical, fingerprint

KEYS = (
    "seed",
    "method",
    "sweep",
    "paths.runs",
    "logger",
    "monitor",
    "data.image_size",
    "data.fractions",
    "data.augment.flip",
    "weighting.weights",
    "head.dropout",
    "optimizer.lr",
    "trainer.max_epochs",
    "label_transform.name",
    "data.root",
    "callbacks",
    "checkpoint.every_steps",
    "jobs_per_gpu",
    "data.cache",
    "trainer.log_every_n_steps",
)


@cache
def base() -> DictConfig:
    return finish(compose_config(["logger=none", "threads=1"]))


def seeds() -> Iterable[bytes]:
    for value in (1, 1.0, 1e300, -0.0, True, None, "a", "é\u0301", [1, 2.0], {"b": 1, "a": [2]}, {"1": 2}):
        for key in (0, 3, 6, 9):
            yield bytes((key,)) + json.dumps(value).encode()


def try_one(data: bytes) -> None:
    if not data:
        return
    key = KEYS[data[0] % len(KEYS)]
    try:
        value: Any = json.loads(data[1:])  # NaN and Infinity too
    except (ValueError, RecursionError):
        value = data[1:].decode("utf-8", "surrogateescape")
    cfg = copy.deepcopy(base())
    OmegaConf.set_struct(cfg, False)
    try:
        OmegaConf.update(cfg, key, value, merge=False)
        plain = (
            OmegaConf.to_container(OmegaConf.select(cfg, key), resolve=True)
            if isinstance(value, dict | list)
            else value
        )
    except (OmegaConfBaseException, RecursionError):
        return
    digests = {"annotations": "0" * 16}
    mark = fingerprint(cfg, digests)
    assert mark == fingerprint(copy.deepcopy(cfg), digests)
    assert len(mark) >= 12
    if key.split(".")[0] in WITHOUT or key in WITHOUT:
        assert mark == fingerprint(base(), digests), key
    elif canonical(plain) != canonical(_plain(key)) and not _nan(plain):
        assert mark != fingerprint(base(), digests), (key, plain)
    again = canonical(plain)
    assert canonical(again) == again or _nan(again)


def _plain(key: str) -> Any:
    value = OmegaConf.select(base(), key)
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _nan(value: Any) -> bool:
    """Whether there is a NaN in it, which is not equal to itself."""
    if isinstance(value, dict):
        return any(map(_nan, value.values()))
    if isinstance(value, list):
        return any(map(_nan, value))
    return isinstance(value, float) and math.isnan(value)
