"""`mtlcar runs list`: one line a run, with the settings that tell the runs apart."""

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from mtlcar.listing.columns import Listing
from mtlcar.listing.filters import matches, refuse_unknown
from mtlcar.listing.finding import find
from mtlcar.listing.life import STATES
from mtlcar.listing.tables import notice, print_table


def command(
    words: Sequence[str],
    *,
    sort: str | None = None,
    state: str | None = None,
    as_json: bool = False,
    markdown: bool = False,
) -> int:
    """Print the runs below the folders in `words` (default: `runs`) that its `key=value` words let through."""
    filters = [word for word in words if "=" in word and not os.path.isdir(word)]  # noqa: PTH112 - Path's raises for long ones
    folders = [Path(word) for word in words if word not in filters] or [Path("runs")]
    found = find(folders)
    refuse_unknown(found.runs, filters)
    chosen = [run for run in found.runs if state in (None, run.state) and all(matches(run, word) for word in filters)]
    listing = Listing(chosen)
    listing.sort(sort)
    if as_json:
        print(json.dumps([listing.record(run) for run in listing.runs], indent=1))
    elif chosen:
        show_listing(listing, Console(), markdown=markdown)
    total = len(found.runs)
    count = f"{total} runs" if len(chosen) == total else f"{len(chosen)} of {total} runs"
    states = Counter(run.state for run in chosen)
    told = ", ".join(f"{states[name]} {name}" for name in STATES if states[name])
    notice(f"{count} below {', '.join(map(str, folders))}" + (f": {told}" if chosen else ""))
    if found.damaged:
        notice("Damaged: " + "; ".join(f"{name} ({reason})" for name, reason in found.damaged))
    return 0


def show_listing(listing: Listing, console: Console, *, markdown: bool = False) -> None:
    """One table; on a terminal no wider than that."""
    columns = listing.columns()
    if console.is_terminal and not markdown:
        columns = listing.narrowed(console.width)
    print_table(
        [column.head for column in columns],
        [[column.text(run) for column in columns] for run in listing.runs],
        right=[i for i, column in enumerate(columns) if column.right],
        whole=[i for i, column in enumerate(columns) if column.whole],
        markdown=markdown,
        console=console,
    )
