"""The report's section on decodings: numbers recomputed from the probabilities that runs keep."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mtlcar.report.collect import collect
from mtlcar.report.comparison import Comparison, compare
from mtlcar.report.decodings import section
from mtlcar.report.per_image import per_image
from mtlcar.report.section import Section
from tests.run_dirs import CARS, MAKES, PER_MAKE, config, predictions, write_run, write_steel

TABLE = np.arange(MAKES * PER_MAKE) // PER_MAKE


def keep_scores(run: Path, seed: int, n: int = 120, **drop: bool) -> pd.DataFrame:
    """Give a run predictions that are the argmax of the probabilities it keeps, and metrics that fit."""
    rng = np.random.default_rng(seed)
    df = predictions(0.8, n=n, seed=seed)
    for name in ("make", "model"):
        k = len(CARS[name].classes)
        logits = rng.normal(size=(n, k)) + 2 * np.eye(k)[df[f"{name}/target"]]
        p = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)
        df[f"{name}/scores"], df[f"{name}/prediction"], df[f"{name}/confidence"] = list(p), p.argmax(1), p.max(1)
    df.to_parquet(run / "predictions.parquet")
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["test"] |= {
        f"{name}/accuracy": float((df[f"{name}/target"] == df[f"{name}/prediction"]).mean())
        for name in ("make", "model")
    }
    (run / "metrics.json").write_text(json.dumps(metrics))
    return df


def by_hand(df: pd.DataFrame) -> dict[tuple[str, str], float]:
    """(decoding, column) -> value, one image and one path at a time."""
    rows: dict[tuple[str, str], list[float]] = {}
    for _, image in df.iterrows():
        make, model = image["make/scores"].astype(float), image["model/scores"].astype(float)
        sums = np.array([model[c == TABLE].sum() for c in range(MAKES)])
        first = int(make.argmax())
        below = max((m for m in range(len(model)) if TABLE[m] == first), key=lambda m: model[m])
        best = max(range(len(model)), key=lambda m: make[TABLE[m]] * model[m])
        decoded = {
            "independent": (first, int(model.argmax())),
            "top_down": (first, below),
            "marginal": (int(sums.argmax()), int(model.argmax())),
            "joint": (int(TABLE[best]), best),
        }
        for how, (a, b) in decoded.items():
            right = a == image["make/target"], b == image["model/target"]
            height = 0 if right[1] else 1 if TABLE[b] == image["make/target"] else 2
            values = {
                "make %": 100 * right[0],
                "model %": 100 * right[1],
                "consistent %": 100 * (TABLE[b] == a),
                "full path %": 100 * all(right),
                "distance, levels": height,
            } | ({"severity, levels": height} if height else {})
            for name, value in values.items():
                rows.setdefault((how, name), []).append(float(value))
    return {key: float(np.mean(values)) for key, values in rows.items()}


def only(folder: Path) -> Comparison:
    (comparison,) = compare(collect([folder]).runs)
    return comparison


def made(found: Section | None) -> Section:
    assert found is not None
    return found


def shown(found: Section) -> dict[tuple[str, str, str], str]:
    """(cell, decoding, column) -> text."""
    (sheet,) = found.sheets
    return {
        (row[0][0], row[1][0], head): text
        for row in sheet.rows
        for head, (text, _) in zip(sheet.heads[2:], row[2:], strict=True)
    }


@pytest.fixture
def seeds(tmp_path: Path) -> tuple[Path, Mapping[str, list[pd.DataFrame]]]:
    """Two cells of three seeds, and a single-task one."""
    tables: dict[str, list[pd.DataFrame]] = {"parallel": [], "cascade": []}
    for seed in range(3):
        for name, kept in tables.items():
            run = write_run(tmp_path / "sweep", config(name, seed))
            kept.append(keep_scores(run, 10 * seed + len(name)))
        run = write_run(tmp_path / "sweep", config("single", seed))
        keep_scores(run, seed)
        df = pd.read_parquet(run / "predictions.parquet").drop(columns=["make/scores", "make/confidence"])
        df.to_parquet(run / "predictions.parquet")
    return tmp_path / "sweep", tables


def test_the_table_shows_what_was_computed_by_hand(seeds: tuple[Path, Mapping[str, list[pd.DataFrame]]]) -> None:
    folder, tables = seeds
    found = made(section(only(folder)))
    texts = shown(found)
    for cell, kept in tables.items():
        each = [by_hand(df) for df in kept]
        for how, column in each[0]:
            values = [numbers[how, column] for numbers in each]
            mean = float(texts[cell, how, column].split(" ")[0])
            digits = 0.05 if column.endswith("%") else 0.005
            assert mean == pytest.approx(np.mean(values), abs=digits + 1e-9), (cell, how, column)
        assert texts[cell, "joint", "n"] == "3"
    assert not any(cell == "single" for cell, *_ in texts)
    assert "single" in found.sheets[0].note
    first = found.sheets[0].data
    assert first is not None
    row = first[(first.cell == "cascade") & (first.decoding == "joint") & (first.metric == "model/accuracy")].iloc[0]
    values = [by_hand(df)["joint", "model %"] / 100 for df in tables["cascade"]]
    assert [float(v) for v in row["values"].split()] == pytest.approx(values)
    half = 4.302652729911275 * np.std(values, ddof=1) / 3**0.5  # Student's t of 2 degrees of freedom, a table's
    assert (row["low"], row["high"]) == pytest.approx((row["mean"] - half, row["mean"] + half))


def test_the_paragraph_compares_within_runs(seeds: tuple[Path, Mapping[str, list[pd.DataFrame]]]) -> None:
    folder, tables = seeds
    (paragraph,) = made(section(only(folder))).paragraphs
    for cell, kept in tables.items():
        change = [n["joint", "full path %"] - n["independent", "full path %"] for n in map(by_hand, kept)]
        assert f"{cell} {np.mean(change):+.1f} ± " in paragraph


def test_what_is_consistent_by_definition_has_no_interval_and_no_prize(
    seeds: tuple[Path, Mapping[str, list[pd.DataFrame]]],
) -> None:
    found = made(section(only(seeds[0])))
    texts = shown(found)
    assert {texts[cell, how, "consistent %"] for cell, how, _ in texts if how in ("joint", "top_down")} == {"100.0"}
    assert "±" in texts["cascade", "independent", "consistent %"]
    (sheet,) = found.sheets
    for head in ("consistent %", "severity, levels"):
        column = sheet.heads.index(head)
        assert not any(row[column][1] for row in sheet.rows)
    assert any(row[sheet.heads.index("full path %")][1] for row in sheet.rows)


def test_one_seed_has_an_interval_over_images(tmp_path: Path) -> None:
    df = keep_scores(write_run(tmp_path, config()), 5)
    texts = shown(made(section(only(tmp_path))))
    text = texts["all runs", "joint", "model %"]
    share = by_hand(df)["joint", "model %"]
    assert text.startswith(f"{share:.1f} [")
    low, high = (float(x) for x in text.split("[")[1].rstrip("]").split(", "))
    assert low < share < high
    assert texts["all runs", "joint", "consistent %"] == "100.0"


@pytest.mark.parametrize("fault", ["gone", "damaged", "no scores", "distances", "ragged", "other classes"])
def test_runs_without_probabilities_of_two_levels_give_nothing(tmp_path: Path, fault: str) -> None:
    run = write_run(tmp_path, config())
    df = keep_scores(run, 1)
    file = run / "predictions.parquet"
    if fault == "gone":
        file.unlink()
    elif fault == "damaged":
        file.write_bytes(file.read_bytes()[:200])
    elif fault == "no scores":
        df.drop(columns=["make/scores", "model/scores"]).to_parquet(file)
    elif fault == "distances":  # as FastCAR's scores, which come without a confidence
        df.drop(columns=["make/confidence", "model/confidence"]).to_parquet(file)
    else:
        width = 5 if fault == "other classes" else 6
        df["make/scores"] = [s[:width] if i or fault != "ragged" else s[:3] for i, s in enumerate(df["make/scores"])]
        df.to_parquet(file)
    comparison = only(tmp_path)
    assert section(comparison) is None


def test_tasks_without_a_hierarchy_have_no_section(tmp_path: Path) -> None:
    write_steel(tmp_path)
    assert section(only(tmp_path)) is None


def test_one_of_two_seeds_without_scores_is_not_counted(tmp_path: Path) -> None:
    df = keep_scores(write_run(tmp_path, config(seed=0)), 1)
    run = write_run(tmp_path, config(seed=1))
    (run / "predictions.parquet").unlink()
    texts = shown(made(section(only(tmp_path))))
    assert texts["all runs", "joint", "n"] == "1"
    assert texts["all runs", "joint", "model %"].startswith(f"{by_hand(df)['joint', 'model %']:.1f}")


def test_no_mistake_is_no_severity(tmp_path: Path) -> None:
    run = write_run(tmp_path, config())
    df = keep_scores(run, 1)
    for name in ("make", "model"):
        df[f"{name}/target"] = df[f"{name}/prediction"] if name == "model" else TABLE[df["model/prediction"]]
    df["make/scores"] = [np.eye(MAKES, dtype=np.float32)[c] for c in df["make/target"]]
    df["make/prediction"] = df["make/target"]
    df.to_parquet(run / "predictions.parquet")
    (sheet,) = made(section(only(tmp_path))).sheets
    assert "severity, levels" not in sheet.heads
    assert {row[-1][0].split(" ")[0] for row in sheet.rows} == {"0"}, "distance"


def test_scores_are_not_kept(tmp_path: Path) -> None:
    keep_scores(write_run(tmp_path, config()), 1)
    comparison = only(tmp_path)
    made(section(comparison))
    run = comparison.runs[0]

    def holds(value: Any) -> bool:
        return isinstance(value, pd.DataFrame) and any(str(name).endswith("/scores") for name in value)

    assert not any(holds(value) for value in vars(run).values())


def test_severity_per_image_is_the_number_of_levels_that_differ() -> None:
    df = pd.DataFrame(
        {
            "model/target": [0, 0, 0, 0, -1],
            "model/prediction": [0, 1, PER_MAKE, -1, 3],
            "make/target": [0, 0, 0, 0, 0],
            "make/prediction": [5, 5, 5, 5, 5],
        }
    )
    distance, severity = (per_image(f"hierarchy/{kind}", df, CARS) for kind in ("distance", "mistake_severity"))
    assert distance is not None
    assert severity is not None
    assert distance.tolist() == [0, 1, 2, 2]
    assert (severity.tolist(), severity.index.tolist()) == ([1, 2, 2], [1, 2, 3])
    assert per_image("hierarchy/mistake_severity", df.iloc[:1], CARS) is None
    assert per_image("hierarchy/distance", df[["make/target", "make/prediction"]], CARS) is None
