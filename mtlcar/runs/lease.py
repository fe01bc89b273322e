"""A GPU for each job of this user on this machine, taken before CUDA starts.

Every job has a file in one folder, which it keeps locked while it lives: what it waits for, then what it has. All
decide under one lock, oldest first, so no two take the same place, none waits for ever behind younger ones, and jobs of
several GPUs, which take all at once, cannot wait for each other. A job with `jobs_per_gpu=k` allows k jobs on its GPU,
itself among them; where jobs of different k meet, the smallest counts. A killed job's file is no longer locked.
"""

import json
import logging
import os
import random
import secrets
import socket
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mtlcar.errors import UserError
from mtlcar.runs import flock
from mtlcar.runs.gpus import VISIBLE, visible

log = logging.getLogger("mtlcar")

POLL = 1.0
"""Seconds between two looks at the other jobs."""
ASLEEP = 15.0
"""Seconds without a look after which a waiting job (stopped by Ctrl-Z, say) is overtaken."""


@dataclass(frozen=True)
class Claim:
    """What a job's file says.

    Attributes:
        number: order of arrival.
        jobs_per_gpu: how many jobs it allows on a GPU of its own; 1 for a job of several GPUs.
        seen: seconds of this machine's monotonic clock at its last look.
        among: GPUs that it may take.
        has: GPUs that it has; empty: it waits.
    """

    pid: int
    number: int
    jobs_per_gpu: int
    seen: float
    among: list[str]
    has: list[str]

    def encoded(self) -> bytes:
        """Of one length, waiting or not: the disk may be full when its turn comes."""
        longest = len(json.dumps(asdict(replace(self, has=self.among, seen=0.0)))) + 32
        return json.dumps(asdict(self)).ljust(longest).encode()


@contextmanager
def lease(gpus: int, jobs_per_gpu: int | None, folder: Path | None = None) -> Iterator[list[str]]:
    """UUIDs of the GPUs that are this process's while the block runs, and CUDA_VISIBLE_DEVICES set to them. It waits
    for them, oldest job first. Empty, and nothing is set: there is nothing to lease.

    Args:
        gpus: how many; -1: all that CUDA_VISIBLE_DEVICES allows; 0: none.
        jobs_per_gpu: how many jobs may share a GPU; null: others hand out the GPUs. A job of several GPUs shares none.
        folder: of the jobs' files. Default: `MTLCAR_LEASES`, else one of this user for this machine in the folder for
            temporary files.

    Raises:
        UserError: more GPUs than there are, or the folder cannot be used.
    """
    devices = visible() if gpus and jobs_per_gpu is not None and not is_one_of_several() else []
    if not devices or jobs_per_gpu is None:
        yield []
        return
    count = len(devices) if gpus == -1 else gpus
    if jobs_per_gpu < 1:
        raise UserError(f"jobs_per_gpu={jobs_per_gpu} should be 1 or more, or null for no lease.")
    if count > len(devices):
        chosen = os.environ.get(VISIBLE)
        raise UserError(
            f"trainer.devices asks for {count} GPUs; {len(devices)} can be used here"
            + (f" ({VISIBLE}={chosen})." if chosen is not None else ".")
        )
    with ExitStack() as held:
        try:
            found = held.enter_context(taken(count, jobs_per_gpu if count == 1 else 1, devices, place(folder)))
        except OSError as error:
            raise UserError(
                f"The files that share out the GPUs cannot be written: {error.strerror}, {error.filename or folder}. "
                "MTLCAR_LEASES=DIR puts them elsewhere; jobs_per_gpu=null does without."
            ) from error
        before = os.environ.get(VISIBLE)
        os.environ[VISIBLE] = ",".join(found)
        try:
            yield found
        finally:
            if before is None:
                del os.environ[VISIBLE]
            else:
                os.environ[VISIBLE] = before


def gpus_wanted(accelerator: str, devices: Any) -> int:
    """How many GPUs a job with these keys of `trainer` should lease: -1: all; 0: none, or the user has named them.

    Raises:
        UserError: `devices` is no number of devices.
    """
    if str(accelerator) not in ("auto", "gpu", "cuda"):
        return 0
    if devices in (None, "auto"):
        return -1
    if isinstance(devices, Sequence) and (not isinstance(devices, str) or "," in devices):
        return 0
    with suppress(TypeError, ValueError):
        if (count := int(devices)) >= -1:
            return count
    raise UserError(
        f"trainer.devices={devices} should be a number of devices, -1 or auto for all, or a list of indices."
    )


def is_one_of_several() -> bool:
    """Whether the job has more processes than this, which must agree on their GPUs: one that Lightning started beside
    the first (it inherits that one's lease), or all of torchrun or srun, which hand out GPUs themselves."""
    several = os.environ.get("SLURM_STEP_NUM_TASKS", "1") != "1" or "TORCHELASTIC_RUN_ID" in os.environ
    return several or os.environ.get("LOCAL_RANK", "0") != "0"


def place(folder: Path | None) -> Path:
    """The folder, made. Raises UserError where somebody else has put something in the default one's place."""
    named = folder or os.environ.get("MTLCAR_LEASES")
    if named:
        Path(named).mkdir(parents=True, exist_ok=True)
        return Path(named)
    own = Path(tempfile.gettempdir()) / f"mtlcar-leases-{os.getuid()}-{socket.gethostname()}"
    with suppress(FileExistsError):
        own.mkdir(mode=0o700)
    found = own.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise UserError(f"{own} should be a folder of your own. Remove it, or set MTLCAR_LEASES to another.")
    return own


@contextmanager
def taken(count: int, jobs_per_gpu: int, devices: list[str], folder: Path) -> Iterator[list[str]]:
    """The lease itself, in `folder`."""
    path = folder / f"{os.getpid()}-{secrets.token_hex(4)}.job"
    mine = Claim(os.getpid(), 0, jobs_per_gpu, 0.0, devices, [])
    fd, said = None, False
    with ExitStack() as held:
        with suppress(BlockingIOError):  # keeps systemd from clearing the folder away; its look takes an instant
            held.callback(flock.give, flock.share(folder))
        while True:
            with deciding(folder):
                others = live(folder, path)
                if fd is None or not path.exists():  # the latter: /tmp was cleared
                    fd = flock.take(path)
                    assert fd is not None, "a random name"
                    held.callback(flock.give, fd)
                    held.callback(remove, path)
                    mine = replace(mine, number=1 + max((o.number for o in others), default=0))
                has = choose(count, mine, others)
                mine = replace(mine, has=has, seen=time.monotonic())
                os.pwrite(fd, mine.encoded(), 0)
            if has:
                break
            if not said:
                say_why(count, mine, others)
                said = True
            time.sleep(POLL)
        if said:
            log.info("Goes on with %s.", ", ".join(has))
        yield has


def choose(count: int, mine: Claim, others: list[Claim]) -> list[str]:
    """GPUs for this job, those with the fewest jobs first; empty: it has to wait."""
    if ahead(mine, others):
        return []
    there = {device: [o for o in others if device in o.has] for device in mine.among}
    free = [d for d, jobs in there.items() if len(jobs) < min(c.jobs_per_gpu for c in (mine, *jobs))]
    return sorted(free, key=lambda d: len(there[d]))[:count] if len(free) >= count else []


def ahead(mine: Claim, others: list[Claim]) -> list[Claim]:
    """Jobs that came before and wait for one of the same GPUs."""
    now = time.monotonic()
    waiting = [o for o in others if not o.has and o.number < mine.number and set(o.among) & set(mine.among)]
    return [o for o in waiting if now - o.seen < ASLEEP]


def say_why(count: int, mine: Claim, others: list[Claim]) -> None:
    using = ", ".join(str(o.pid) for o in others if set(o.has) & set(mine.among))
    queue = ", ".join(str(o.pid) for o in ahead(mine, others))
    what = "a GPU" if count == 1 else f"{count} GPUs"
    behind = f", behind processes that came first: {queue}" if queue else ""
    log.info("Waiting for %s of %d; processes that use them: %s%s.", what, len(mine.among), using or "none", behind)


def live(folder: Path, own: Path) -> list[Claim]:
    """What the other jobs' files say. Those of dead jobs are removed."""
    found = []
    for path in sorted(folder.glob("*.job")):
        if path == own:
            continue
        if flock.taken(path) is False:
            path.unlink(missing_ok=True)
            continue
        try:
            found.append(Claim(**json.loads(path.read_bytes())))
        except (FileNotFoundError, ValueError, TypeError):  # just ended, or could not write it and is ending
            continue
    return found


def remove(path: Path) -> None:
    if path.name.startswith(f"{os.getpid()}-"):  # else this is a forked child that leaves the block
        path.unlink(missing_ok=True)


@contextmanager
def deciding(folder: Path) -> Iterator[None]:
    """One job at a time, for the instant that a decision takes."""
    path, since, said = folder / "deciding.lock", time.monotonic(), False
    while (fd := flock.take(path)) is None:
        if not said and time.monotonic() - since > ASLEEP:
            log.warning("Waiting for a process that stopped while it held %s (`fuser` names it).", path)
            said = True
        time.sleep(random.uniform(0.005, 0.05))
    try:
        yield
    finally:
        flock.give(fd)
