"""The processes of one job."""

import os

RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
"""Where Lightning, torchrun and srun say which of a job's processes this is."""


def is_main_process() -> bool:
    """Whether this is the first of a job's processes, over all machines."""
    return all(os.environ.get(name, "0") == "0" for name in RANKS)
