"""The GPUs of this machine, found without CUDA."""

import logging
import os
import re
import subprocess
from dataclasses import dataclass

log = logging.getLogger("mtlcar")

VISIBLE = "CUDA_VISIBLE_DEVICES"
SECONDS = 60
"""That `nvidia-smi` may take; without its daemon it wakes every GPU first."""


@dataclass(frozen=True)
class Device:
    """A GPU, or an instance that MIG cut from one.

    Attributes:
        ids: what CUDA_VISIBLE_DEVICES may call it, its own UUID first, then its GPU's.
        index: its GPU's place in `nvidia-smi -L`.
        model: its GPU's name.
    """

    ids: tuple[str, ...]
    index: int
    model: str


def visible() -> list[str]:
    """UUIDs of the GPUs that this process may use, in CUDA's order; a GPU with MIG instances is those instances.

    Empty without a working `nvidia-smi`.
    """
    devices = listed()
    chosen = os.environ.get(VISIBLE)
    if chosen is None:
        return [d.ids[0] for d in devices]
    by_index = any(entry.strip().isdecimal() for entry in chosen.split(","))
    if by_index and len({d.model for d in devices}) > 1 and os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        log.warning(
            "%s=%s is read in the order of nvidia-smi; this machine's GPUs differ, and CUDA may count them otherwise "
            "(CUDA_DEVICE_ORDER=PCI_BUS_ID makes both agree).",
            VISIBLE,
            chosen,
        )
    return narrowed(devices, chosen)


def narrowed(devices: list[Device], chosen: str) -> list[str]:
    """As CUDA reads the variable: indices, UUIDs or beginnings of UUIDs; the first that fits nothing ends the list."""
    found: list[str] = []
    for entry in (e.strip() for e in chosen.split(",")):
        if entry.isdecimal():
            fits = [d for d in devices if d.index == int(entry)]
        else:
            fits = [d for d in devices if any(name.startswith(entry) for name in d.ids)] if entry else []
            if len({d.index for d in fits}) > 1:  # an ambiguous beginning
                fits = []
        if not fits:
            break
        found += [d.ids[0] for d in fits]
    return list(dict.fromkeys(found))


def listed() -> list[Device]:
    """What `nvidia-smi -L` prints; nothing where there is none."""
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=SECONDS, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        if not isinstance(error, FileNotFoundError):
            log.warning("nvidia-smi -L does not work here, so no GPU is leased: %s", error)
        return []
    return parsed(done.stdout)


def parsed(text: str) -> list[Device]:
    """
    GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77)
      MIG 1g.5gb      Device  0: (UUID: MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f)
    """
    found: list[Device] = []
    for line in text.splitlines():
        if gpu := re.match(r"GPU (\d+): (.*) \(UUID: ([^)]+)\)", line):
            found.append(Device((gpu[3],), int(gpu[1]), gpu[2]))
        elif (part := re.match(r"\s+MIG .*\(UUID: ([^)]+)\)", line)) and found:
            whole = found[-1]
            if len(whole.ids) == 1:  # the GPU itself, which CUDA does not offer beside its instances
                found.pop()
            found.append(Device((part[1], whole.ids[-1]), whole.index, whole.model))
    return found
