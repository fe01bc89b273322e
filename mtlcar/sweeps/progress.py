"""A line whenever a cell of a sweep ends, with the time left."""

import threading
import time
from collections.abc import Callable

from mtlcar.listing.tables import number, seconds_text
from mtlcar.sweeps.closing import WORDS
from mtlcar.sweeps.outcomes import Journal, Outcome

EVERY = 2.0
"""Seconds between two looks at the journal."""

NOT_OVER = ("elsewhere", "unstarted")


class SweepProgress:
    """Reads a sweep's journal in a thread, whichever processes write it, and prints what it tells. A context; all is
    read when it ends.

    Args:
        total: cells of the sweep; None: nobody knows.
        skipped: those of them that were finished before.
        label: what tells a cell from the others.

    Attributes:
        ended: `Outcome.key` -> its last outcome in this call.
        started: `Outcome.key` -> the outcome it began with, of all that began.
    """

    def __init__(
        self,
        journal: Journal,
        total: int | None,
        skipped: int,
        label: Callable[[Outcome], str],
        every: float = EVERY,
    ) -> None:
        self.journal, self.total, self.skipped, self.label, self.every = journal, total, skipped, label, every
        self.ended: dict[str, Outcome] = {}
        self.started: dict[str, Outcome] = {}
        self._over = self._finished = 0
        self._clock: Callable[[], float] = time.monotonic
        self._began: float | None = None
        self._reading = threading.Lock()
        self._quit = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="mtlcar-progress", daemon=True)

    def __enter__(self) -> "SweepProgress":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._quit.set()
        self._thread.join()
        self.look()

    def _follow(self) -> None:
        while not self._quit.wait(self.every):
            self.look()

    def look(self) -> None:
        """Print what is new."""
        with self._reading:
            for event, outcome in self.journal.read():
                if self._began is None:
                    self._began = self._clock()
                if event == "started":
                    self.started[outcome.key] = outcome
                    continue
                if outcome.state != "skipped" or outcome.key not in self.ended:  # a sweeper may choose a cell twice
                    self.ended[outcome.key] = outcome
                if outcome.state not in NOT_OVER:
                    self._over += 1
                    self._finished += outcome.state == "finished"
                    print(self.line(outcome), flush=True)

    def line(self, outcome: Outcome) -> str:
        """Such as `[5/12] finished fa92... (architecture=cascade seed=1) in 3 min, val/model/accuracy 0.81; 7 left,
        about 21 min`."""
        of = "" if self.total is None else f"/{self.total}"
        state, label = WORDS.get(outcome.state, outcome.state), self.label(outcome) or "defaults"
        words = f"[{self.skipped + self._over}{of}] {state} {outcome.cell} ({label})"
        if outcome.seconds is not None:
            words += f" in {seconds_text(outcome.seconds)}"
        if outcome.value is not None:
            words += f", {outcome.metric} {number(outcome.value)}"
        if outcome.error:
            words += f": {outcome.error}"
        left = 0 if self.total is None else self.total - self.skipped - self._over
        return f"{words}; {left} left{self._time_left(left)}" if left > 0 else words

    def _time_left(self, left: int) -> str:
        """From this call's own pace, whatever number of cells runs at a time. Cells that failed early say nothing."""
        if not self._finished or self._began is None:
            return ""
        return f", about {seconds_text((self._clock() - self._began) / self._finished * left)}"

    @property
    def begun(self) -> list[Outcome]:
        """All cells of this call, in the order in which they began."""
        return [*self.started.values(), *(o for key, o in self.ended.items() if key not in self.started)]
