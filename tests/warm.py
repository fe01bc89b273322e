"""What a command or a job would import and compose first, once for all that are forked from a process with this.

It must leave no trace that a new process lacks: Hydra's own `compose` with logging, for one, would disable loggers.
"""

import gc
import tempfile

import hydra._internal.callbacks
import hydra._internal.core_plugins.basic_launcher  # noqa: F401 - found by name when a launcher is made

import mtlcar.cli
import mtlcar.logs.loggers
import mtlcar.logs.wandb_media
import mtlcar.runs.evaluate
import mtlcar.runs.results
import mtlcar.runs.run
import mtlcar.runs.search
import mtlcar.runs.training
import mtlcar.sweeps.launcher
import mtlcar.sweeps.resume  # noqa: F401
from mtlcar.sweeps.checked import checked_cells
from mtlcar.sweeps.launch import hydra_config

with tempfile.TemporaryDirectory() as folder:
    cars = ("data.makes=2", "data.models_per_make=2", "data.images=160")
    words = ["backbone=tiny", "trainer=cpu", *cars, f"paths.runs={folder}", f"paths.cache={folder}"]
    hydra_config(words)
    checked_cells([words], 1, here=True)
gc.collect()
gc.freeze()
