"""A diagnosis on the terminal."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


def show(result: Mapping[str, Any], folder: Path) -> None:
    """Tables for its width, and where the files are."""
    console = Console()

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    gradients, features = result["gradients"], result["features"]
    if "reason" in gradients:
        say(gradients["reason"])
    else:
        console.print(conflict_table(gradients))
        say(gradients["what"])
        say(
            f"{gradients['batches']} batches of {gradients['batch_size']} images. Of means: cosine of the gradients "
            "averaged over them. Conflict: batches with a cosine below 0. GMS: gradient magnitude similarity. "
            "Noise: share of a batch gradient's squared norm that varies from batch to batch."
        )
    console.print()
    if "reason" in features:
        say(features["reason"])
    else:
        for table in (probe_table(features), overlap_table(features)):
            if table.row_count:
                console.print(table)
        say(
            f"{features['images']} validation images, {features['folds']}-fold cross-validation: probes are fitted on "
            "few images, so compare them with one another and not with test metrics."
        )
        if features["groups"]:
            say("Images of one group are in one fold, where each class has several groups.")
        say("Shuffled, random: overlap of as many directions from shuffled labels, and drawn at random.")
    say(f"Written to {folder}")


def conflict_table(gradients: Mapping[str, Any]) -> Table:
    """A row for each part and pair of tasks."""
    rows = gradients["parts"]
    pairs = {(r["task_a"], r["task_b"]) for r in rows}
    heads = ["part"] + (["tasks"] if len(pairs) > 1 else [])
    heads += ["cosine", "of means", "conflict", "GMS", "norms", "noise"]
    a, b = rows[0]["task_a"], rows[0]["task_b"]
    table = _table("gradients of the tasks" if len(pairs) > 1 else f"gradients of {a} and {b}", heads)
    for r in rows:
        row = [r["part"]] + ([f"{r['task_a']}, {r['task_b']}"] if len(pairs) > 1 else [])
        row += [_signed(r["cosine"]), _signed(r["cosine_of_mean"]), _percent(r["conflict"]), _number(r["gms"])]
        row += [f"{r['norm_a']:.2g}, {r['norm_b']:.2g}", f"{_percent(r['noise_a'])}, {_percent(r['noise_b'])}"]
        table.add_row(*(Text(text) for text in row))
    return table


def probe_table(features: Mapping[str, Any]) -> Table:
    """Linear probes: a row a feature vector, a column a task."""
    tasks = list(features["baselines"])
    table = _table("linear probes", ["features", "width", *(f"{t} {_score(features, t)}" for t in tasks)])
    for row in features["of"]:
        table.add_row(row["name"], str(row["width"]), *(_share(features, t, row["probes"][t]) for t in tasks))
    table.add_row("without features", "", *(_share(features, t, features["baselines"][t]) for t in tasks))
    return table


def overlap_table(features: Mapping[str, Any]) -> Table:
    """Overlap of the tasks' directions: a row for each feature vector and pair of tasks."""
    heads = ["features", "directions of", "ranks", "overlap", "shuffled", "random"]
    table = _table("overlap of the tasks' directions (0: orthogonal, 1: one within the other)", heads)
    for row in features["of"]:
        for o in row["overlaps"]:
            numbers = (_number(o[k]) for k in ("overlap", "shuffled", "random"))
            table.add_row(row["name"], pair_name(o), f"{o['rank_a']}, {o['rank_b']}", *numbers)
    return table


def pair_name(o: Mapping[str, Any]) -> str:
    """`make, model given make`."""
    return f"{o['a']}, {o['b']} given {o['a']}" if o["given"] else f"{o['a']}, {o['b']}"


def _table(title: str, heads: list[str]) -> Table:
    table = Table(title=title, title_justify="left", header_style="")
    words = ("part", "tasks", "features", "directions of")
    for head in heads:
        table.add_column(Text(head), justify="left" if head in words else "right")
    return table


def _score(features: Mapping[str, Any], task: str) -> str:
    return "R²" if features["scores"][task] == "R2" else "accuracy"


def _share(features: Mapping[str, Any], task: str, value: float | None) -> str:
    return _number(value) if features["scores"][task] == "R2" else _percent(value, 1)


def _percent(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f} %"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f}"
