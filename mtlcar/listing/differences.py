"""The settings in which runs differ, and whether that leaves a fair comparison."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mtlcar.listing.defaults import group_defaults
from mtlcar.listing.flat import flat, outside_fingerprint
from mtlcar.listing.stored import StoredRun
from mtlcar.report.varied import BY_CONTENT, IGNORED, NONE, by_content, show, title

SPLIT = ("data.name", "data.root", "data.split", "data.split_seed", "data.fractions")
"""What decides which images are tested."""
ABSENT = object()


@dataclass(frozen=True)
class Difference:
    """A setting in which runs differ: their values, which of these are defaults filled in, and what it does."""

    key: str
    values: tuple[Any, ...]
    filled: tuple[bool, ...]

    @property
    def effect(self) -> str:
        if self.key in BY_CONTENT:
            return "by its content"
        if outside_fingerprint(self.key):
            return "does not change the result"
        return "last digits only" if self.key in IGNORED else ""

    def texts(self) -> list[str]:
        return [
            NONE if value is ABSENT else show(value) + (" (default)" if filled else "")
            for value, filled in zip(self.values, self.filled, strict=True)
        ]


def settings_differences(runs: Sequence[StoredRun]) -> list[Difference]:
    """Every key whose value is not the same in all runs, groups' choices before what belongs to them.

    A key that a run lacks has the default of the run's own groups, where they have the key today: a run of an older
    version was made with it.
    """
    flats = by_content([flat(run.config, run.task_names) for run in runs], [run.digests for run in runs])
    keys = list(dict.fromkeys(key for values in flats for key in values))
    defaults = [
        group_defaults(run) if any(key not in values for key in keys) else {}
        for run, values in zip(runs, flats, strict=True)
    ]
    found = []
    for key in keys:
        values = tuple(own.get(key, default.get(key, ABSENT)) for own, default in zip(flats, defaults, strict=True))
        filled = tuple(key not in own and key in default for own, default in zip(flats, defaults, strict=True))
        if any(value != values[0] for value in values):
            found.append(Difference(key, values, filled))
    return sorted(found, key=lambda d: (bool(d.effect) and d.key not in BY_CONTENT, not d.key.endswith(".name")))


def unmatched(runs: Sequence[StoredRun], found: Sequence[Difference]) -> list[str]:
    """One sentence for each thing that should be the same where methods are compared, and is not."""
    from mtlcar.report.matching import MATCHED

    names = {key: key for key in SPLIT} | MATCHED
    sentences = [
        f"{names[d.key]} differs ({title(d.key)}): {', '.join(d.texts())}"
        for d in found
        if d.key in names and d.key not in SPLIT
    ]
    data = [d for d in found if d.key in SPLIT]
    same = same_test_images(runs)
    if same is False or (same is None and data):
        why = "; ".join(f"{title(d.key)} {', '.join(d.texts())}" for d in data)
        sentences.insert(0, "the test images are others" + (f": {why}" if why else ""))
    elif data:
        sentences.append(
            "the images trained on may be others, though the test images are the same: "
            + "; ".join(f"{title(d.key)} {', '.join(d.texts())}" for d in data)
        )
    return sentences


def same_test_images(runs: Sequence[StoredRun]) -> bool | None:
    """Whether predictions.parquet lists the same images for all runs; None where one does not tell."""
    import pyarrow
    import pyarrow.parquet

    sets = []
    for run in runs:
        try:
            table = pyarrow.parquet.read_table(run.directory / "predictions.parquet", columns=["index", "path"])
        except (OSError, KeyError, pyarrow.ArrowException):
            return None
        sets.append(set(zip(*(column.to_pylist() for column in table.columns), strict=True)))
    return all(other == sets[0] for other in sets)


def remarks(runs: Sequence[StoredRun], found: Sequence[Difference]) -> list[str]:
    """What a reader should know besides."""
    told = []
    unfinished = [run.name for run in runs if run.state != "finished"]
    if unfinished:
        told.append(f"not finished: {', '.join(unfinished)}")
    if len({run.monitor for run in runs}) > 1:
        told.append("their best checkpoints were picked by different metrics")
    prints = {run.directory.name for run in runs}
    if len(prints) == 1:
        told.append("one fingerprint: the same run in several places")
    elif (
        not any(not d.effect or d.key in BY_CONTENT for d in found)
        and len({str(sorted(run.digests.items())) for run in runs}) == 1
    ):
        told.append(
            "other fingerprints with the same settings: made by versions of mtlcar that compute something differently"
        )
    if not unfinished and any(not d.effect and not d.key.endswith("seed") for d in found):
        told.append("one run of each: seeds alone make results differ; `mtlcar report` gives intervals over seeds")
    return told
