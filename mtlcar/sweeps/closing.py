"""The table at the end of a sweep: what became of each cell, how to run again what failed, and how to go on."""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from mtlcar.listing.tables import number, print_table, seconds_text
from mtlcar.sweeps.launcher import quoted
from mtlcar.sweeps.outcomes import Outcome

ORDER = ("finished", "joined", "skipped", "failed", "lost", "interrupted", "elsewhere", "unstarted")
WORDS = {
    "joined": "finished by another process",
    "skipped": "finished before",
    "elsewhere": "running elsewhere",
    "lost": "lost with its worker",
    "unstarted": "not started",
}
AGAIN = ("failed", "lost", "interrupted")
"""What a command is printed for."""


def print_closing(
    outcomes: Sequence[Outcome],
    labels: Mapping[str, str],
    *,
    stopped: bool = False,
    resumed: bool = False,
    threads: int | None = None,
) -> None:
    """A row for each cell that something became of in this call, the counts, and commands for what did not finish.

    Args:
        labels: `Outcome.key` -> what tells the cell from the others.
        stopped: the whole sweep was, and goes on as a whole.
        resumed, threads: see `rerun`.
    """
    shown = [o for o in outcomes if o.state not in ("skipped", "unstarted")]
    print()
    if shown:
        rows = [
            (o.cell, labels.get(o.key, ""), WORDS.get(o.state, o.state), origin(o), result(o), time_of(o))
            for o in shown
        ]
        kept = [i for i in range(6) if i in (0, 2) or any(row[i] for row in rows)]
        heads = ("run", "cell", "state", "went on from", "best", "time")
        print_table([heads[i] for i in kept], [[row[i] for i in kept] for row in rows], whole=(0,))
        print()
    counts = Counter(o.state for o in outcomes)
    gone_on = sum(o.state == "finished" and o.resumed_step is not None for o in outcomes)
    words = [f"{counts[state]} {WORDS.get(state, state)}" for state in ORDER if counts[state]]
    if gone_on:
        words[0] += f" ({gone_on} of them resumed)"
    print(f"{len(outcomes)} cell{'s' * (len(outcomes) != 1)}: {', '.join(words)}.")
    open_ = [o for o in outcomes if not o.ended_well]
    again = [o for o in open_ if o.state in AGAIN and not (stopped and o.state == "interrupted")]
    if again:
        print(f"{len(open_)} of {len(outcomes)} cells did not finish; the same command goes on, or one by one:")
    for outcome in again:
        if outcome.error:
            print(f"  {outcome.cell}: {outcome.error}")
        print(f"  {rerun(outcome, resumed=resumed, threads=threads)}")


def rerun(outcome: Outcome, *, resumed: bool = False, threads: int | None = None) -> str:
    """The command that runs this cell alone.

    Args:
        resumed: the sweep was begun elsewhere, perhaps on another machine, so that the overrides alone lead elsewhere.
        threads: what `threads: null` meant there.
    """
    overrides, directory = list(outcome.overrides), Path(outcome.directory)
    if resumed and outcome.directory:
        if (directory / "config.yaml").is_file():
            return f"mtlcar resume {shlex.quote(outcome.directory)}"
        overrides = [*([] if threads is None else [f"threads={threads}"]), *overrides]
        overrides.append(f"paths.runs={quoted(str(directory.parent.parent))}")
    return f"mtlcar train {shlex.join(overrides)}".rstrip()


def origin(outcome: Outcome) -> str:
    return "" if outcome.resumed_step is None else f"step {outcome.resumed_step}"


def result(outcome: Outcome) -> str:
    return "" if outcome.value is None else f"{outcome.metric} {number(outcome.value)}"


def time_of(outcome: Outcome) -> str:
    return "" if outcome.seconds is None else seconds_text(outcome.seconds)


def labels_of(cells: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Cell -> its overrides that not all cells have."""
    common = set.intersection(*map(set, cells.values())) if len(cells) > 1 else set()
    return {key: " ".join(o for o in overrides if o not in common) for key, overrides in cells.items()}
