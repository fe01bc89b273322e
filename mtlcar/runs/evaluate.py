"""`mtlcar evaluate RUN [overrides]`: test again from the best checkpoint."""

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mtlcar.checks.values import check
from mtlcar.config import finish, groups, with_defaults
from mtlcar.errors import UserError, did_you_mean
from mtlcar.listing.finding import find_run
from mtlcar.listing.stored import StoredRun
from mtlcar.runs.trust import EVALUATED, load_config, refuse_foreign

TESTED = (
    "data.root",
    "data.image_size",
    "data.resize",
    "data.box_margin",
    "data.max_missing",
    "data.on_bad_image",
    "data.batch_size",
    "data.eval_batch_size",
    "data.cache",
    "paths.cache",
    "test_time_augmentation",
    "threads",
    "trainer.accelerator",
    "trainer.precision",
    "trainer.deterministic",
    "trainer.channels_last",
    "trainer.limit_test_batches",
)
"""Keys that a test reads. Not the splits: other test images would be among those that the run was trained on."""


def stored_config(run_dir: Path, overrides: Sequence[str]) -> DictConfig:
    """The run's configuration with overrides of keys that a test reads. Top-level keys that are younger than the run
    have their default, which is what the run was made with.

    Raises:
        UserError: an override of anything else, which the checkpoint fixes or which would do nothing; or as
            `load_config`.
    """
    stored = OmegaConf.to_container(load_config(run_dir), resolve=False)
    assert isinstance(stored, dict)
    cfg = OmegaConf.create(with_defaults({str(k): v for k, v in stored.items()}))
    OmegaConf.set_struct(cfg, True)
    for text in overrides:
        refuse_override(text, cfg)
        try:
            merged = OmegaConf.merge(cfg, OmegaConf.from_dotlist([text]))
            assert isinstance(merged, DictConfig)
            cfg = merged
        except Exception as error:
            raise UserError(
                f"{text!r} does not fit the run's configuration ({str(error).splitlines()[0]}). Its values are in "
                f"{run_dir / 'config.yaml'}."
            ) from error
    check(finish(cfg))
    return cfg


def refuse_override(text: str, cfg: DictConfig) -> None:
    """UserError for an override that no test reads."""
    key, found, _ = text.partition("=")
    known = [name for name in TESTED if OmegaConf.select(cfg, name, default=OmegaConf) is not OmegaConf]
    listed = f"\nA test reads {', '.join(known)}."
    if not found:
        raise UserError(f"Overrides look like key=value. Found {text!r}.{listed}")
    if key in known:
        return
    if key.split(".", 1)[0] == "label_transform":
        raise UserError(f"{text!r}: the label transform and its constants are fixed by the checkpoint.")
    if key in groups():
        raise UserError(
            f"{text!r}: groups are fixed by the checkpoint; train another run for another {key}. Single keys can be "
            f"given where a test reads them, such as trainer.accelerator=cpu.{listed}"
        )
    if key in ("data.split", "data.split_seed", "data.fractions"):
        raise UserError(
            f"{text!r}: the split says which images the run was trained on, and by another split some of them would be "
            f"tested.{listed}"
        )
    if key.startswith("trainer.") and key.removeprefix("trainer.") in ("devices", "strategy", "num_nodes"):
        raise UserError(
            f"{text!r}: a test runs on one device. CUDA_VISIBLE_DEVICES=N before the command chooses the GPU, and "
            f"trainer.accelerator=cpu takes none.{listed}"
        )
    if OmegaConf.select(cfg, key, default=OmegaConf) is OmegaConf:
        raise UserError(f"{text!r}: this run has no key {key!r}.{did_you_mean(key, known)}{listed}")
    raise UserError(
        f"{text!r} would change nothing: what was trained, and how, is fixed by the checkpoint, and no test reads "
        f"{key}.{listed}"
    )


def evaluate(run: str, overrides: Sequence[str], *, as_json: bool = False) -> int:
    """Prints the test metrics; changes nothing in the run directory.

    Where levels of a hierarchy can be decoded in several ways, prints the metrics of each too, in JSON under
    `decodings`.
    """
    import lightning
    import torch

    from mtlcar.build import build, without_weights
    from mtlcar.runs.results import decodings, score, strip
    from mtlcar.runs.training import quiet_lightning

    stored = find_run(run)
    run_dir = stored.directory
    cfg = stored_config(run_dir, overrides)
    refuse_foreign(cfg, run_dir, EVALUATED)
    cfg = without_weights(cfg)  # the checkpoint has them
    cfg.trainer.update({"devices": 1, "strategy": "auto"})
    if "placement" in cfg.data:  # each test image is read once, and another run may be training there
        cfg.data.placement = "mmap"
    checkpoint = run_dir / "checkpoints" / "best.ckpt"
    if not checkpoint.is_file():
        raise UserError(f"{checkpoint}: no such checkpoint. The run has not finished its first epoch.")
    if stored.state != "finished":
        print(unfinished(stored), file=sys.stderr)
    logging.basicConfig(level=logging.WARNING)
    quiet_lightning()
    torch.set_num_threads(cfg.threads)
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    parts = build(cfg)
    values, collector, _ = score(cfg, parts, checkpoint)
    metrics = strip(values, "test/")
    by_decoding = decodings(parts, collector.rows())
    if as_json:
        print(json.dumps({**metrics, "decodings": by_decoding} if by_decoding else metrics, indent=1))
    else:
        print_tables(run_dir, metrics, by_decoding)
    return 0


def unfinished(run: StoredRun) -> str:
    """One line that says so."""
    done, asked = run.epochs_done, run.epochs
    epochs = f" {done} of {asked} epochs are trained." if done is not None and asked else ""
    return (
        f"mtlcar: {run.name} is not finished (state: {run.state}).{epochs} These are the numbers of its best "
        "checkpoint so far."
    )


def print_tables(run_dir: Path, metrics: Mapping[str, float | None], by_decoding: Mapping[str, Any]) -> None:
    """The metrics, and below them those that depend on how the levels are decoded, side by side."""
    from rich.console import Console
    from rich.table import Table

    def shown(value: float | None, digits: int = 6) -> str:
        return "-" if value is None else f"{value:.{digits}g}"

    console = Console()
    console.print(f"Test metrics of {run_dir}", soft_wrap=True, markup=False, highlight=False)
    table = Table("metric")
    table.add_column("value", justify="right")
    for name, value in metrics.items():
        table.add_row(name, shown(value))
    console.print(table)
    if not by_decoding:
        return
    console.print("The same images, by how the levels are decoded:", soft_wrap=True)
    table = Table("metric")
    for how in by_decoding:
        table.add_column(how, justify="right")
    for name in dict.fromkeys(name for row in by_decoding.values() for name in row):
        table.add_row(name, *(shown(row.get(name), 4) for row in by_decoding.values()))
    console.print(table)
