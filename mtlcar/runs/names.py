"""What a run is called."""

import hashlib
from pathlib import Path

from omegaconf import DictConfig


def run_name(cfg: DictConfig) -> str:
    """What W&B and the tables call it: the answers that make the run."""
    if cfg.get("method"):
        words = (cfg.data.name, cfg.data.split, cfg.backbone.name, cfg.method, cfg.weighting.name, cfg.optimizer.name)
        return "_".join([*(str(word).replace(" ", "-") for word in words), f"s{cfg.seed}"])
    parts = [str(cfg[g].name) for g in ("data", "backbone", "architecture", "head", "weighting")]
    if cfg.label_transform.name != "identity":
        parts.append(str(cfg.label_transform.name))
    if cfg.weighting.get("weights"):
        parts.append("-".join(f"{v:g}" for v in cfg.weighting.weights.values()))
    if cfg.head.get("dropout"):
        parts.append(f"p{cfg.head.dropout:g}")
    return "_".join([*parts, f"s{cfg.seed}"])


def wandb_id(cfg: DictConfig, run_dir: Path) -> str:
    """One id for life: a hash of sweep name and fingerprint (the directory's name)."""
    return hashlib.sha256(f"{cfg.sweep}/{run_dir.name}".encode()).hexdigest()[:16]
