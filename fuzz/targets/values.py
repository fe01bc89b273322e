"""Values of any kind under the keys of a configuration that is composed already: hundreds of attempts a second.

The bytes choose keys and values; what passes `check` goes on to the constructors of the parts.
"""

import copy
import math
from collections.abc import Iterable
from functools import cache
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fuzz.targets.overrides import bounded
from mtlcar.checks.names import known_keys
from mtlcar.checks.parts import check_parts
from mtlcar.checks.values import check
from mtlcar.config import compose_config, finish
from mtlcar.errors import UserError
from mtlcar.tasks import Task, TaskSet

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, 2, -1, 3, 7, 10**30, 0.0, 0.5, -0.5, 1.5, 1e300, 1e-300, math.nan, math.inf, "", " ", "a",
    "auto", "null", "1", "é\u0301", "../x", "a/b", "x" * 300, [], [0], [1, 2], [0.5, 0.9], ["a"], [[1]], [None], {},
    {"a": 1}, {"make": 0.5, "model": 0.5}, {"model": "mlp"}, {1: 2}, {"_target_": "os.system"}, "${seed}", "\x00",
)  # fmt: skip
CHOICES = (
    (),
    ("architecture=cascade", "weighting=uncertainty", "scheduler=cosine"),
    ("architecture=mmoe", "weighting=pcgrad", "head=mlp", "optimizer=sgd"),
    ("architecture=kem", "weighting=fixed", "head=per_task", "scheduler=plateau"),
    ("architecture=mtan", "weighting=dwa", "logger=wandb", "callbacks=early_stopping"),
    ("architecture=ltb", "weighting=graddrop", "trainer=cpu", "head=conv"),
)
TASKS = TaskSet(
    (
        Task("make", "classification", classes=("a", "b")),
        Task("model", "classification", classes=("a1", "a2", "b1"), parent="make"),
    ),
    {"model": (0, 0, 1)},
)
HEAVY = ("threads", "data.root", "paths.runs", "paths.cache", "backbone.weights", "backbone.pretrained")
"""Keys that lead to the disk or the network, or would ask for as much memory as a number says."""


@cache
def prepared(number: int) -> tuple[DictConfig, list[str]]:
    words = ["data.image_size=32", "logger=none", *CHOICES[number]]
    keys = [k for k in known_keys(words)[1] if k not in HEAVY and not k.startswith("hydra")]
    return finish(compose_config(words)), keys


def seeds() -> Iterable[bytes]:
    for number in range(len(CHOICES)):
        for key in range(0, 200, 9):
            yield bytes((number, key, (7 * key + number) % len(VALUES)))


def try_one(data: bytes) -> None:
    if len(data) < 3:
        return
    base, keys = prepared(data[0] % len(CHOICES))
    cfg = copy.deepcopy(base)
    for i in range(1, min(len(data) - 1, 7), 2):
        key, value = keys[data[i] % len(keys)], VALUES[data[i + 1] % len(VALUES)]
        try:
            OmegaConf.update(cfg, key, value)
        except OmegaConfBaseException:
            return  # Hydra would have refused it
    try:
        OmegaConf.resolve(cfg)
    except OmegaConfBaseException:
        return
    try:
        check(cfg)
        if all(cfg.architecture.get(k, 0) in range(-5, 9) for k in ("experts", "width", "slots")):
            check_parts(cfg, TASKS)
    except UserError as error:
        bounded(error)
