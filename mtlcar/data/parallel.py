"""Work on many files by threads (Pillow and hashlib release the GIL), with progress when it takes a while."""

import logging
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger(__name__)

CHUNK = 32
"""Items a thread takes at a time, at most; fewer where that would leave threads without work, or one with the rest."""
SHARES = 32
"""Chunks of each thread, at least, where there are items enough."""
PROGRESS_AFTER = 1.0
"""Seconds of work after which a progress bar (on a terminal) or a log line (elsewhere) appears."""


def cpus() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_parallel(work: Callable[[int], None], count: int, title: str) -> None:
    """`work(0)` ... `work(count - 1)` in threads, in no particular order; the first exception ends it."""

    threads = cpus()
    size = max(1, min(CHUNK, count // (SHARES * threads)))

    def chunk(start: int) -> int:
        stop = min(start + size, count)
        for i in range(start, stop):
            work(i)
        return stop - start

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    progress = Progress(*columns, console=Console(stderr=True), transient=True)
    task = progress.add_task(title, total=count)
    begin, shown = time.monotonic(), False
    with ThreadPoolExecutor(threads, thread_name_prefix="mtlcar") as pool:
        try:
            for done in pool.map(chunk, range(0, count, size)):
                progress.update(task, advance=done)
                if not shown and time.monotonic() - begin > PROGRESS_AFTER:
                    shown = True
                    if sys.stderr.isatty():
                        progress.start()
                    else:
                        log.info("%s: %d files", title, count)
        finally:
            progress.stop()
