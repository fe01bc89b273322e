"""The environment of a launcher's workers, and of the job that one of them starts."""

import contextlib
import os
import sys
from collections.abc import Iterator

from mtlcar.runs.output import BESIDE

GPUS = "MTLCAR_SWEEP_GPUS"
"""The sweep's own CUDA_VISIBLE_DEVICES, for workers whose launcher hides all GPUs."""


def prepare_launcher(*, several: bool) -> None:
    """Before a launcher starts workers, which inherit this process's environment.

    Args:
        several: runs may share this machine's cores.
    """
    os.environ.pop(BESIDE, None)
    if several:
        os.environ[BESIDE] = "1"
        # OpenMP's threads wait by counting, and take the cores from the other runs: up to ten times slower
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ[GPUS] = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere that nobody asked for
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # lines of two runs are alike without being the same
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # older Ray hides all GPUs from num_gpus=0


def job_environment() -> dict[str, str]:
    """Of a job's process."""
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "MTLCAR_PARENT": str(os.getpid())}
    if env.get("SUBMITIT_EXECUTOR") == "local" and GPUS in env:  # submitit hides all GPUs; the lease hands them out
        env["CUDA_VISIBLE_DEVICES"] = env[GPUS]
        if env[GPUS] == "all":
            del env["CUDA_VISIBLE_DEVICES"]
    if env.get("SLURM_NTASKS") == "1":  # else Lightning takes it for srun's word that a run has one process
        del env["SLURM_NTASKS"]
    return env


@contextlib.contextmanager
def others_folder() -> Iterator[None]:
    """While what is begun was recorded, perhaps by somebody else: jobs do not import what lies in the current folder,
    as `python -m` would, unless this process does."""
    if here_is_imported():
        yield
        return
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        del os.environ["PYTHONSAFEPATH"]
        if before is not None:
            os.environ["PYTHONSAFEPATH"] = before


def here_is_imported() -> bool:
    """Whether this process finds modules in the current folder, as `python -m mtlcar` and PYTHONPATH=. have it."""
    with contextlib.suppress(OSError):  # the folder is gone
        return not {"", os.getcwd()}.isdisjoint(sys.path)  # noqa: PTH109
    return False
