"""Freed memory stays with the process of a CPU run."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
from mtlcar.runs.memory import keep_freed_memory
import numpy as np, resource
assert keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(8 << 20)  # 64 MiB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to")
def test_memory_that_was_freed_is_there_again_without_being_mapped_anew() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100  # 16,384 pages of 4 KiB otherwise
