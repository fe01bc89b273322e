"""What makes a comparison unfair: settings that should be equal and are not."""

from mtlcar.report.collect import Run
from mtlcar.report.comparison import Comparison, replicate
from mtlcar.report.varied import show

MATCHED = {
    "data.batch_size": "batch size",
    "trainer.accumulate_grad_batches": "gradient accumulation",
    "trainer.devices": "number of devices",
    "trainer.max_epochs": "number of epochs",
    "trainer.max_steps": "number of steps",
    "trainer.limit_train_batches": "share of the training batches",
    "trainer.limit_test_batches": "share of the test batches",
    "trainer.limit_val_batches": "share of the validation batches",
    "trainer.precision": "precision",
    "data.image_size": "image size",
    "data.fractions": "split fractions",
    "data.levels": "task levels",
    "data.root": "data folder",
    "monitor": "metric that picks the checkpoint",
}


def unmatched(comparison: Comparison) -> list[str]:
    """One sentence for each thing that differs between the cells and should not in a comparison of methods."""
    found = list(comparison.doubtful)
    for key, words in MATCHED.items():
        if key in comparison.differing:
            found.append(f"{words} ({key}) differs: {', '.join(comparison.differing[key])}")
    sets = {cell.label: tuple(replicate(run) for run in cell.runs) for cell in comparison.cells}
    if len(set(sets.values())) > 1:
        most = max(sets.values(), key=lambda seeds: (len(seeds), seeds))
        odd = [f"{label} has {'; '.join(seeds)}" for label, seeds in sets.items() if seeds != most]
        more = f" and {len(odd) - 5} more" if len(odd) > 5 else ""
        found.append(f"seeds differ: most cells have {'; '.join(most)}, but {', '.join(odd[:5])}{more}")
    for seed in comparison.seeds:
        images = {_test_images(run) for run in comparison.runs if replicate(run) == seed} - {None}
        if len(images) > 1:
            found.append(f"test images differ between runs of seed {seed}")
    versions = {
        name: list(dict.fromkeys(show(run.metrics.get("versions", {}).get(name)) for run in comparison.runs))
        for name in sorted({name for run in comparison.runs for name in run.metrics.get("versions", {})})
    }
    found += [f"version of {name} differs: {', '.join(values)}" for name, values in versions.items() if len(values) > 1]
    return found


def _test_images(run: Run) -> int | None:
    """A number that is equal for equal sets of test images."""
    df = run.predictions
    if df is None or "index" not in df or "path" not in df:
        return None
    return hash(tuple(sorted(zip(df["index"].tolist(), df["path"].tolist(), strict=True))))


def test_sets(comparison: Comparison) -> int | None:
    """How many different sets of test images the runs have; None where one run does not tell."""
    images = {_test_images(run) for run in comparison.runs}
    return None if None in images else len(images)


SETTINGS = (
    *("method", "backbone", "architecture", "head", "weighting", "label_transform", "optimizer", "scheduler"),
    *("data.image_size", "data.batch_size", "data.split", "data.fractions", "trainer.max_epochs", "trainer.precision"),
)
"""What a reader wants to know of the fixed settings at a glance."""


def main_fixed(comparison: Comparison) -> list[str]:
    """`backbone tiny`, `batch size 32`, ... for the most important settings that were the same in all runs."""
    found = []
    for key in SETTINGS:
        if f"{key}.name" in comparison.fixed:
            found.append(f"{key} {comparison.fixed[f'{key}.name']}")
        elif key in comparison.fixed:
            words = {**MATCHED, "data.split": "split"}
            found.append(f"{words.get(key, key)} {show(comparison.fixed[key])}")
    return found


def other_fixed(comparison: Comparison) -> list[str]:
    """`key = value` of all settings that were the same in all runs."""
    values = {k: v for k, v in comparison.fixed.items() if not k.startswith("paths")}
    return [f"{key} = {show(value)}" for key, value in values.items()]
