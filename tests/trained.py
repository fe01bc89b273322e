"""Run directories with a network in them, trained for a second: what a finished run leaves for `mtlcar predict`."""

import shutil
from pathlib import Path

import torch

from mtlcar.build import build
from mtlcar.runs.evaluate import stored_config
from mtlcar.runs.predictions import write_predictions
from mtlcar.runs.results import score
from tests.jobs import write_run

STEPS = 25
"""Enough for a network to say different things of different pictures."""


def trained_run(folder: Path, *overrides: str, tested: bool = True) -> Path:
    """A run of the small synthetic cars; `tested`: with the predictions that the project's own test writes. `folder`
    may have several; they share drawn pictures, and one that is there is not made again."""
    run = write_run(folder, "weighting=equal", "data.box_margin=null", *overrides)
    if (run / "DONE").is_file():  # the same one was asked for before
        return run
    cfg = stored_config(run, [])
    torch.manual_seed(7)
    parts = build(cfg)
    data, module = parts.data, parts.module
    images, targets = data.augment.normalize(data.gather(data.indices["train"])), data.train_targets
    encoded = module.label_transform.encode(targets)
    optimizer = torch.optim.Adam(module.architecture.train().parameters(), lr=5e-3)
    for _ in range(STEPS):
        optimizer.zero_grad()
        module.losses(module.architecture(images, encoded).outputs, encoded).sum().backward()
        optimizer.step()
    checkpoint = run / "checkpoints" / "best.ckpt"
    checkpoint.parent.mkdir()
    torch.save({"state_dict": module.state_dict()}, checkpoint)
    if tested:
        _, collector, _ = score(cfg, parts, checkpoint)
        notes = data.annotations
        sure = module.label_transform.probabilities
        rows = collector.rows()
        write_predictions(run / "predictions.parquet", data.tasks, rows, notes.paths, notes.groups, confidence=sure)
    (run / "DONE").touch()
    return run


def pictures(run: Path) -> list[Path]:
    """The files of the run's test images, in the order of its predictions."""
    from mtlcar.build import build_data

    data = build_data(stored_config(run, []))
    return [data.annotations.file(i) for i in data.indices["test"]]


def alone(run: Path, to: Path) -> Path:
    """A copy of the run directory whose data are nowhere, and cannot be drawn again."""
    shutil.copytree(run, to)
    text = (to / "config.yaml").read_text()
    (to / "config.yaml").write_text(text.replace("root: null", "root: /dev/null/cars"))
    return to
