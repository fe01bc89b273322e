"""`mtlcar evaluate RUN [overrides]`: test again from the best checkpoint."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from mtlcar.config import finish, groups, with_defaults
from mtlcar.errors import UserError
from mtlcar.listing.finding import find_run
from mtlcar.runs.check import check


def stored_config(run_dir: Path, overrides: Sequence[str]) -> DictConfig:
    """The run's configuration with overrides of existing keys. Top-level keys that are younger than the run have their
    default, which is what the run was made with."""
    stored = OmegaConf.to_container(OmegaConf.load(run_dir / "config.yaml"), resolve=False)
    assert isinstance(stored, dict)
    cfg = OmegaConf.create(with_defaults({str(k): v for k, v in stored.items()}))
    OmegaConf.set_struct(cfg, True)
    names = groups()
    for text in overrides:
        key, found, _ = text.partition("=")
        if not found:
            raise UserError(f"Overrides look like key=value. Found {text!r}.")
        if key.split(".", 1)[0] == "label_transform":
            raise UserError(f"{text!r}: the label transform and its constants are fixed by the checkpoint.")
        if key in names:
            raise UserError(f"{text!r}: groups are fixed by the checkpoint; train another run for another {key}.")
        try:
            merged = OmegaConf.merge(cfg, OmegaConf.from_dotlist([text]))
            assert isinstance(merged, DictConfig)
            cfg = merged
        except Exception as error:
            raise UserError(
                f"{text!r} does not fit the run's configuration ({str(error).splitlines()[0]}). Keys that can be "
                f"changed are those in {run_dir / 'config.yaml'}."
            ) from error
    check(finish(cfg))
    return cfg


def evaluate(run: str, overrides: Sequence[str], *, as_json: bool = False) -> int:
    """Prints the test metrics; changes nothing in the run directory."""
    import lightning
    import torch
    from rich.console import Console
    from rich.table import Table

    from mtlcar.build import build, without_weights
    from mtlcar.runs.results import score, strip
    from mtlcar.runs.training import quiet_lightning

    run_dir = find_run(run).directory
    cfg = stored_config(run_dir, overrides)
    cfg = without_weights(cfg)  # the checkpoint has them
    cfg.trainer.update({"devices": 1, "strategy": "auto"})
    if "placement" in cfg.data:  # each test image is read once, and another run may be training there
        cfg.data.placement = "mmap"
    checkpoint = run_dir / "checkpoints" / "best.ckpt"
    if not checkpoint.is_file():
        raise UserError(f"{checkpoint}: no such checkpoint. The run has not finished its first epoch.")
    logging.basicConfig(level=logging.WARNING)
    quiet_lightning()
    torch.set_num_threads(cfg.threads)
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    values, _, _ = score(cfg, build(cfg), checkpoint)
    metrics = strip(values, "test/")
    if as_json:
        print(json.dumps(metrics, indent=1))
        return 0
    table = Table(title=f"test metrics of {run_dir}")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in metrics.items():
        table.add_row(name, "-" if value is None else f"{value:.6g}")
    Console().print(table)
    return 0
