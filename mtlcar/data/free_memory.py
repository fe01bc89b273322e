"""How much memory is left, on a device and on the host as the system and its control groups see it."""

from collections.abc import Iterator
from pathlib import Path

import torch

ROOT = Path("/")


def free_on(device: torch.device) -> int:
    """Bytes that a process can still take there; 0 where nobody knows."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_on_host()


def free_on_host() -> int:
    """Bytes that a process here can still take; 0 where nobody knows (elsewhere than on Linux)."""
    try:
        lines = dict(line.split(":", 1) for line in (ROOT / "proc/meminfo").read_text().splitlines())
        free = 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return 0
    for group, limit, used, cached in groups():
        try:
            left = int((group / limit).read_text()) - int((group / used).read_text())
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            # pages of files that were read count as used and are given back when somebody needs them
            free = min(free, left + int(stat.get(cached, 0)))
        except (OSError, ValueError):  # no such group, or no limit
            continue
    return max(1, free)


def groups() -> Iterator[tuple[Path, str, str, str]]:
    """This process's control groups of memory, of either version, with those above them, whose limits hold too: folder,
    and the names of what it says of its limit, of what is used, and of how much of that is inactive pages of files."""
    try:
        lines = (ROOT / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            mount, names = ROOT / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            mount = ROOT / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        own = mount / path.lstrip("/")
        for folder in (own, *own.parents):
            yield (folder, *names)
            if folder == mount:
                break
