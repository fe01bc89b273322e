"""Which runs are the same run: a hash of everything in a configuration that can change its result."""

import copy
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mtlcar.config import FOUND
from mtlcar.data.decode import DECODE_VERSION
from mtlcar.errors import UserError
from mtlcar.runs.files import read_json

SCHEMA = 1
"""Raised whenever code changes what a configuration computes."""

WITHOUT = (
    "paths",
    "logger",
    "sweep",
    "method",
    "checkpoint",
    "jobs_per_gpu",
    "hydra",
    "data.root",
    "data.cache",
    "data.placement",
    "data.eval_batch_size",
    "backbone.weights",
    "trainer.log_every_n_steps",
)
"""Keys that cannot change a result, or whose content enters as a digest instead of a path."""

OFF = {"data.label_fraction": (None, ()), "loss.matching": (0, ("loss.matching_kind",))}
"""Keys that are younger than some runs -> the value that switches them off, under which a run is the same as before
they existed, and what then says nothing either."""


def canonical(value: Any) -> Any:
    """Equal values written differently (`1`, `1.0`, `1e0`) become one; dictionaries lose their order."""
    if isinstance(value, Mapping):
        return {str(k): canonical(v) for k, v in sorted(value.items(), key=lambda kv: str(kv[0]))}
    if isinstance(value, list | tuple):
        return [canonical(v) for v in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value


def as_given(cfg: DictConfig) -> DictConfig:
    """A run's configuration without the constants that its label transform has found since it began."""
    constants = cfg.label_transform.get("constants")
    if not OmegaConf.is_dict(constants) or FOUND not in constants:
        return cfg
    given = copy.deepcopy(cfg)
    given.label_transform.constants = None
    return given


def digest_of_file(path: Path) -> str:
    """16 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def refuse_other_content(run_dir: Path, cfg: DictConfig, annotations: str) -> None:
    """Raises UserError where labels or weights are not those that a run's fingerprint stands for.

    Args:
        annotations: digest of the labels that were read.
    """
    now = {"annotations": annotations}
    if cfg.backbone.get("weights"):
        now["weights"] = digest_of_file(Path(cfg.backbone.weights))
    known = read_json(run_dir / "digests.json")
    for name, key, place in (
        ("annotations", "data.root", cfg.data.root),
        ("weights", "backbone.weights", cfg.backbone.get("weights")),
    ):
        if now.get(name) != known.get(name):
            raise UserError(
                f"{key}={place} is not what this run began with: other {name} (digest {now.get(name)}, "
                f"was {known.get(name)}). Give the files back, or begin another run with `mtlcar train`."
            )


def _drop(plain: dict[Any, Any], key: str) -> None:
    *parents, last = key.split(".")
    node: Any = plain
    for name in parents:
        node = node.get(name, {})
    node.pop(last, None)


def fingerprint(cfg: DictConfig, digests: Mapping[str, str]) -> str:
    """12 hex digits. `digests`: what stands in for paths (annotations, weight file)."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    for key in WITHOUT:
        _drop(plain, key)
    for key, (off, more) in OFF.items():
        if OmegaConf.select(cfg, key) == off:
            for name in (key, *more):
                _drop(plain, name)
    for name, value in plain.get("trainer", {}).items():
        if name.startswith("limit_") and isinstance(value, int):
            plain["trainer"][name] = f"{value} batches"  # 1 is one batch and 1.0 all of them
    what = {"schema": SCHEMA, "decode": DECODE_VERSION, "config": canonical(plain)}
    text = json.dumps({**what, "digests": dict(sorted(digests.items()))})
    return hashlib.sha256(text.encode()).hexdigest()[:12]
