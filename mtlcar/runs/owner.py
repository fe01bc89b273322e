"""`.owner` of a run directory: who works there, and a count that tells other machines that it still does."""

import errno
import json
import logging
import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path

from mtlcar.errors import UserError

log = logging.getLogger("mtlcar")

OWNER = ".owner"
ATTEMPTS = 100


@dataclass(frozen=True)
class Holder:
    """Who works in a run directory. `started` is ISO 8601 by its own clock; `pid` and `started` are None while it has
    not written them. `sure` is False for another machine's process, which may have died without a word."""

    pid: int | None
    host: str
    started: str | None
    sure: bool = True

    def __str__(self) -> str:
        who = "a process that has just started" if self.pid is None else f"process {self.pid}"
        since = "" if self.started is None else f" since {self.started}"
        return f"{who} on {self.host}{since}{'' if self.sure else ' (alive unknown)'}"


class Busy(UserError):  # noqa: N818
    """Another process works in the run directory; `holder` is who."""

    def __init__(self, run_dir: Path, holder: Holder | None) -> None:
        self.holder = holder or Holder(None, socket.gethostname(), None)
        stop = f"stop it (kill {self.holder.pid} on {self.holder.host})" if self.holder.pid else "stop it"
        super().__init__(
            f"{run_dir} is in use by {self.holder}. Two processes cannot work in one run directory: wait until it "
            f"ends, or {stop}, then give the same command again."
        )


class Owner:
    """The file as this process writes it."""

    def __init__(self, run_dir: Path, beat: float) -> None:
        self.run_dir, self.path, self.every = run_dir, run_dir / OWNER, beat
        self.started = datetime.now().astimezone().isoformat(timespec="seconds")
        self.pid, self.count, self.fd = os.getpid(), 0, -1
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.beats, name="mtlcar-owner", daemon=True)

    def claim(self, *, flocked: bool, watch: float) -> None:
        """Makes the file, and counts from now on.

        Args:
            flocked: the directory's flock is ours, so that a file of this machine is of a dead process.
            watch: seconds without a count after which another machine's process is dead.

        Raises:
            Busy: that process is alive.
            OSError: it cannot be written.
        """
        for attempt in range(ATTEMPTS):
            if self.create(self.path):
                break
            there = read(self.path)
            if there is None:
                continue
            owner = parsed(there)
            if attempt or owner is None or not owner.sure or not flocked:
                after = watched(self.path, there, watch)
                if after is None:
                    continue  # it ended in order
                if after != there:
                    raise Busy(self.run_dir, parsed(after) or Holder(None, "another machine", None))
                log.info("%s gave no sign of life: taken over.", owner or "The other")
            if self.replace(there, attempt):
                break
        else:
            raise OSError(errno.EEXIST, f"its {OWNER} cannot be replaced")
        self.thread.start()

    def create(self, path: Path) -> bool:
        """False: there is one. Not by renaming: of two machines' processes only one may succeed."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        try:
            os.write(fd, self.text())
            os.fsync(fd)
        except BaseException:
            os.close(fd)
            path.unlink(missing_ok=True)
            raise
        self.fd = fd
        return True

    def replace(self, dead: bytes, attempt: int) -> bool:
        """Puts this process's file in the place of a dead one's. False: another machine's process is doing that, or
        has done it. `attempt` is higher where one has died while it did."""
        turn = self.path.with_name(f"{OWNER}.turn{attempt}.tmp")
        new = self.path.with_name(f"{OWNER}.{socket.gethostname()}.{self.pid}.tmp")
        try:
            os.close(os.open(turn, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        try:
            if read(self.path) != dead:
                return False
            new.unlink(missing_ok=True)
            self.create(new)
            new.replace(self.path)
            return True
        finally:
            turn.unlink(missing_ok=True)

    def text(self) -> bytes:
        """Always of one length, so that a count needs no space on a full disk."""
        known = {"pid": self.pid, "host": socket.gethostname(), "machine": machine(), "started": self.started}
        return f'{json.dumps(known)[:-1]}, "beat": {self.count:>12}}}\n'.encode()

    def beats(self) -> None:
        while not self.stop.wait(self.every):
            with suppress(OSError):  # a disk that is full or away; the next may do
                self.beat()

    def beat(self) -> None:
        self.count += 1
        if not self.path.exists():  # cleared away by hand
            old = self.fd
            if self.create(self.path):
                os.close(old)
        if self.is_mine():
            os.pwrite(self.fd, self.text(), 0)
            os.fsync(self.fd)
        elif (other := parsed(read(self.path))) is not None:
            self.lost(other)

    def is_mine(self) -> bool:
        return os.path.samestat(os.fstat(self.fd), self.path.stat())

    def lost(self, other: Holder) -> None:
        """This machine was asleep, and another has gone on with the run: whatever this process still writes is wrong,
        a last checkpoint too."""
        log.error("%s has taken over %s, as this process gave no sign of life. It ends here.", other, self.run_dir)
        logging.shutdown()
        os._exit(os.EX_TEMPFAIL)

    def end(self) -> None:
        if os.getpid() != self.pid:
            return  # a forked child that leaves the block
        self.stop.set()
        self.thread.join(timeout=2)
        with suppress(OSError):
            if self.is_mine():
                self.path.unlink()
        if not self.thread.is_alive():  # else it waits for a dead network disk, with the descriptor
            os.close(self.fd)


def read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def parsed(content: bytes | None) -> Holder | None:
    """`sure`: it is this machine's. None: no file, or half of one."""
    try:
        known = json.loads(content or b"")
        here = (known["host"], known["machine"]) == (socket.gethostname(), machine())
        return Holder(int(known["pid"]), str(known["host"]), str(known["started"]), sure=here)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def watched(path: Path, content: bytes, seconds: float) -> bytes | None:
    """What the file holds as soon as that is not `content`, else after `seconds`."""
    name = parsed(content) or "another machine"
    log.info("%s was left to %s: watching for %.0f s whether that is alive.", path.parent, name, seconds)
    until = time.monotonic() + seconds
    while (now := read(path)) == content and time.monotonic() < until:
        time.sleep(min(0.5, seconds / 10))
    return now


@cache
def machine() -> str:
    """Tells machines of one name apart."""
    with suppress(OSError):
        return Path("/etc/machine-id").read_text(encoding="ascii").strip()
    return ""
