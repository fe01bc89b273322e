"""`mtlcar runs diff`: what tells runs apart, whether they may be compared, and how their results differ."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from mtlcar.errors import UserError
from mtlcar.listing.differences import ABSENT, Difference, remarks, settings_differences, unmatched
from mtlcar.listing.finding import find_run
from mtlcar.listing.image_intervals import image_intervals
from mtlcar.listing.stored import StoredRun, mapping
from mtlcar.listing.tables import notice, number, print_table
from mtlcar.metrics.direction import lower_is_better
from mtlcar.report.varied import NONE, title

if TYPE_CHECKING:
    from mtlcar.report.paired import Difference as OfImages

INTERVALS = "In brackets: 95 % over the test images, for these networks; other seeds vary by themselves."


def command(words: Sequence[str], *, runs: str = "runs", as_json: bool = False, markdown: bool = False) -> int:
    """Print how two or more runs differ.

    Raises:
        UserError: fewer than two runs, or one that is not there.
    """
    chosen = list({run.directory: run for run in (find_run(word, Path(runs)) for word in words)}.values())
    if len(chosen) < 2:
        raise UserError(f"mtlcar runs diff needs two runs or more. Found {len(chosen)}: {', '.join(words)}.")
    found = settings_differences(chosen)
    unfair, doubts = unmatched(chosen, found), remarks(chosen, found)
    if as_json:
        print(json.dumps(record(chosen, found, unfair, doubts), indent=1))
        return 0
    console = Console()
    names = letters(chosen)

    def section(text: str) -> None:
        console.print(f"\n### {text}\n" if markdown else f"\n{text}", style="bold", highlight=False, markup=False)

    section("Runs")
    rows = [
        (letter, run.name, run.state, number(run.best), run.monitor or NONE)
        for letter, run in zip(names, chosen, strict=True)
    ]
    print_table(("", "run", "state", "best", "of"), rows, right=(3,), whole=(1,), markdown=markdown, console=console)
    section("Settings that differ" if found else "No setting differs")
    if found:
        body = [[title(d.key), *d.texts(), d.effect] for d in found]
        print_table(("setting", *names, ""), body, whole=(0,), markdown=markdown, console=console)
    told = (
        ("Not matched" if unfair else "Matched: a fair comparison as far as the settings say", unfair, True),
        ("To keep in mind", doubts, False),
    )
    for heading, sentences, always in told:
        if sentences or always:
            section(heading)
        for sentence in sentences:
            console.print(f"- {sentence}", highlight=False, markup=False, soft_wrap=True)
    for heading, (heads, body) in (("Results", results(chosen)), ("Versions that differ", versions(chosen))):
        if body:
            section(heading)
            print_table(heads, body, right=range(1, len(heads)), whole=(0,), markdown=markdown, console=console)
            if heading == "Results" and any(" to " in cell for row in body for cell in row):
                console.print(f"\n{INTERVALS}", highlight=False, markup=False, soft_wrap=True)
    for run in chosen:
        for problem in run.problems:
            notice(f"Damaged: {run.name} ({problem})")
    return 0


def letters(runs: Sequence[StoredRun]) -> list[str]:
    """A, B, C, ...: heads short enough for many columns."""
    return [chr(ord("A") + i) if i < 26 else str(i + 1) for i in range(len(runs))]


def results(runs: Sequence[StoredRun]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows: metric, its value in each run, and what each has more than the first."""
    letter = letters(runs)
    names = dict.fromkeys(name for run in runs for name in run.numbers if not name.startswith("val/"))
    heads = ["metric", *letter, *(f"{other} - {letter[0]}" for other in letter[1:])]
    intervals = image_intervals(runs, list(names))
    body = []
    for name in names:
        values = [run.numbers.get(name) for run in runs]
        first = values[0]
        more = [
            NONE if first is None or v is None else difference_text(name, v - first, own.get(name))
            for v, own in zip(values[1:], intervals, strict=True)
        ]
        body.append([name, *(value_text(name, value) for value in values), *more])
    return heads, body


def value_text(metric: str, value: float | None) -> str:
    return f"{value:,.0f}" if metric == "parameters" and value is not None else number(value)


def difference_text(metric: str, value: float, found: "OfImages | None" = None) -> str:
    """With its sign, its interval where there is one, and a word where that leaves no doubt of the sign."""
    if metric == "parameters":
        return f"{value:+,.0f}" if value else "0"
    text = f"{value:+.3g}" if value else "0"
    if found is None:
        return text
    text += f" ({found.low:+.3g} to {found.high:+.3g})"
    if found.low <= 0 <= found.high:
        return text
    return f"{text} {'better' if (value < 0) == lower_is_better(metric) else 'worse'}"


def versions(runs: Sequence[StoredRun]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the packages of which runs had different versions."""
    found = [mapping(run.metrics, "versions") for run in runs]
    names = sorted({name for own in found for name in own})
    rows = [[name, *(str(own.get(name, NONE)) for own in found)] for name in names]
    return ["package", *letters(runs)], [row for row in rows if len(set(row[1:]) - {NONE}) > 1]


def record(
    runs: Sequence[StoredRun], found: Sequence[Difference], unfair: list[str], doubts: list[str]
) -> dict[str, Any]:
    """The same for `--json`."""
    return {
        "runs": [
            {
                "run": run.name,
                "directory": str(run.directory),
                "state": run.state,
                "best": run.best,
                "metrics": run.numbers,
            }
            for run in runs
        ],
        "settings": {
            d.key: {
                "values": [None if value is ABSENT else value for value in d.values],
                "absent": [value is ABSENT for value in d.values],
                "default": list(d.filled),
                "effect": d.effect or "changes the result",
            }
            for d in found
        },
        "differences": [
            {name: {"mean": d.mean, "low": d.low, "high": d.high} for name, d in own.items()}
            for own in image_intervals(runs, list(runs[0].numbers))
        ],
        "not_matched": unfair,
        "remarks": doubts,
        "versions": {row[0]: row[1:] for row in versions(runs)[1]},
    }
