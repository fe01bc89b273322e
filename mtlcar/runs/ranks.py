"""The processes of one job."""

import os

RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
"""Where Lightning, torchrun and srun say which of a job's processes this is."""


def started_by_lightning() -> bool:
    """Whether the first process of this job started this one, and not torchrun or srun."""
    others = ("TORCHELASTIC_RUN_ID", "SLURM_PROCID")
    return os.environ.get("LOCAL_RANK", "0") != "0" and not any(name in os.environ for name in others)


def is_main_process() -> bool:
    """Whether this is the first of a job's processes, over all machines."""
    return all(os.environ.get(name, "0") == "0" for name in RANKS)
