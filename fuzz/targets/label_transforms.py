"""Labels of any numbers through every label transform: refused with words, or every class comes back exactly and every
value stays finite."""

import struct
from collections.abc import Iterable

import numpy as np
import torch

from mtlcar.build import make
from mtlcar.config import compose_config
from mtlcar.errors import UserError
from mtlcar.tasks import Task, TaskSet

NAMES = ("identity", "class_mean", "class_residual", "fastcar", "interval_softmax")
OPTIONS = {
    "fastcar": (["layout=minimal"], ["layout=stacked"], ["scale=1"], ["pad=5.0"], ["gap=3"], ["order=[c,b,a]"]),
    "interval_softmax": (["bins=2"], ["bins=7"], ["pad=2.0"]),
    "class_mean": (["statistic=mean"], ["statistic=median"]),
}
TASKS = TaskSet((Task("kind", "classification", classes=("a", "b", "c")), Task("value", "regression", unit="HV")))
CONFIGS = {
    (name, number): compose_config(
        [f"label_transform={name}", *(f"label_transform.{o}" for o in options)]
    ).label_transform
    for name in NAMES
    for number, options in enumerate(OPTIONS.get(name, ([],)))
}


def seeds() -> Iterable[bytes]:
    rows = [(0, 100.0), (0, 120.0), (1, 110.0), (1, 300.0), (2, 500.0), (2, 500.5)]
    for transform in range(len(CONFIGS)):
        yield bytes((transform,)) + b"".join(struct.pack("<Bf", *row) for row in rows)
        for odd in (float("nan"), 1e38, -1e38, 1e-38, 0.0):
            yield bytes((transform,)) + b"".join(struct.pack("<Bf", *row) for row in [*rows, (1, odd)])


def try_one(data: bytes) -> None:
    if len(data) < 6:
        return
    cfg = list(CONFIGS.values())[data[0] % len(CONFIGS)]
    rows = [struct.unpack_from("<Bf", data, i) for i in range(1, min(len(data) - 4, 400), 5)]
    kind = torch.tensor([(row[0] % 4) - 1 for row in rows])  # -1: missing
    value = torch.tensor([row[1] for row in rows], dtype=torch.float32)
    if torch.isinf(value).any():
        return  # refused by Annotations.check
    targets = {"kind": kind, "value": value}
    try:
        transform = make(cfg, tasks=TASKS)
        transform.fit(targets)
    except UserError:
        return
    encoded = transform.encode(targets)
    trained = transform.encoded_tasks(TASKS)
    assert set(encoded) == set(trained.names)
    for y in encoded.values():
        if y.is_floating_point():
            assert not torch.isinf(y).any(), (cfg, encoded)
    if cfg.name == "fastcar":
        decoded = transform.decode({n: y.clone() for n, y in encoded.items()})
        known = (kind >= 0) & ~torch.isnan(value)
        assert torch.equal(decoded["kind"][known], kind[known]), (cfg, kind[known], decoded["kind"][known])
        scale = np.abs(value[known].numpy()).max(initial=1.0)
        assert torch.allclose(decoded["value"][known], value[known], atol=1e-3 * float(scale)), cfg
