"""Timing things against each other in one process, so that a busy or throttled machine slows all of them alike."""

import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

Run = Callable[[], object]


@dataclass
class Paired:
    """Milliseconds of one candidate, and what each was in units of the baseline's run next to it."""

    ms: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)

    @property
    def median_ms(self) -> float:
        return statistics.median(self.ms)

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """Of the ratios."""
        return quartiles(self.ratios)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The middle one is the median; of one value it is all three."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


@contextmanager
def no_collections() -> Iterator[None]:
    """Python's garbage collector waits: its pauses would hit whoever comes next."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def timed(run: Run, synchronize: Callable[[], None]) -> float:
    """Milliseconds of one run, to the end of what it queued on the device."""
    synchronize()
    start = time.perf_counter()
    run()
    synchronize()
    return 1e3 * (time.perf_counter() - start)


def interleave(
    candidates: Sequence[Run],
    baseline: Run,
    *,
    rounds: int,
    seed: int = 0,
    synchronize: Callable[[], None] = lambda: None,
    tick: Callable[[], None] = lambda: None,
) -> list[Paired]:
    """Every candidate `rounds` times, each time next to a run of the baseline, in an order drawn anew every round.

    Either of a pair goes first in turn, so that neither always finds the other's leftovers in the caches.

    Args:
        synchronize: waits for the device.
        tick: called after each pair.
    """
    order = random.Random(seed)
    found = [Paired() for _ in candidates]
    with no_collections():
        for n in range(rounds):
            for i in order.sample(range(len(candidates)), len(candidates)):
                if (n + i) % 2:
                    base = timed(baseline, synchronize)
                    own = timed(candidates[i], synchronize)
                else:
                    own = timed(candidates[i], synchronize)
                    base = timed(baseline, synchronize)
                found[i].ms.append(own)
                found[i].ratios.append(own / base)
                tick()
            gc.collect()
    return found


def each_ms(run: Run, *, calls: int = 50, samples: int = 7, synchronize: Callable[[], None] = lambda: None) -> float:
    """Milliseconds of a run too short to be timed alone: the median over `samples` of the mean over `calls`."""

    def several() -> None:
        for _ in range(calls):
            run()

    with no_collections():
        several()
        return statistics.median(timed(several, synchronize) for _ in range(samples)) / calls
