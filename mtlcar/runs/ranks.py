"""The processes of one job."""

import os


def is_main_process() -> bool:
    """Whether this is the first of a job's processes: Lightning starts the others with a rank in the environment."""
    return all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "NODE_RANK"))
