"""Multi-task gain: the definition, and which networks of one task it is measured against."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from mtlcar.errors import UserError
from mtlcar.metrics.gain import delta_m, relative_gain
from mtlcar.report.collect import collect
from mtlcar.report.comparison import Comparison, compare
from mtlcar.report.gain import gains, section
from tests.run_dirs import config, write_run


def plain_delta_m(values: list[float], baselines: list[float], lower: list[bool]) -> float:
    """The paper's formula, written out."""
    total = 0.0
    for value, baseline, less in zip(values, baselines, lower, strict=True):
        total += (-1) ** int(less) * (value - baseline) / baseline
    return 100 * total / len(values)


def libmtl_improvement(base: dict[str, Any], new: dict[str, Any], weight: dict[str, Any]) -> float:
    """What LibMTL's docs say `count_improvement` is: 1/T sum_t 1/M_t sum_m (-1)^{w} (B - N) / B; w is 1 where higher is
    better."""
    tasks = [
        np.mean([(-1.0) ** w * (b - n) / b for b, n, w in zip(base[t], new[t], weight[t], strict=True)]) for t in base
    ]
    return float(np.mean(tasks))


@pytest.mark.parametrize("seed", range(5))
def test_delta_m_is_the_papers_formula(seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = ["make/accuracy", "model/accuracy", "weight/mae", "depth/loss"][: 1 + seed % 4]
    values, baselines = rng.uniform(0.1, 2, (2, len(names)))
    lower = [name.endswith(("mae", "loss")) for name in names]
    found = delta_m(dict(zip(names, values, strict=True)), dict(zip(names, baselines, strict=True)))
    assert found == pytest.approx(plain_delta_m(list(values), list(baselines), lower))


def test_delta_m_is_libmtls_with_several_metrics_a_task() -> None:
    base = {"A": [96.0, 98.0], "B": [0.2]}
    new = {"A": [93.0, 99.0], "B": [0.5]}
    expected = 100 * libmtl_improvement(base, new, {"A": [1, 0], "B": [1]})
    # A: an accuracy and an error; B: an accuracy.
    found = delta_m(
        {"A/accuracy": 93.0, "A/mae": 99.0, "B/accuracy": 0.5}, {"A/accuracy": 96.0, "A/mae": 98.0, "B/accuracy": 0.2}
    )
    assert found == pytest.approx(expected)
    assert found == pytest.approx(100 * ((-3 / 96 - 1 / 98) / 2 + 1.5) / 2)


def test_better_is_positive_either_way() -> None:
    assert relative_gain("x/accuracy", 0.9, 0.8) == pytest.approx(12.5)
    assert relative_gain("x/mae", 9.0, 8.0) == pytest.approx(-12.5)
    assert delta_m({"x/mae": 4.0}, {"x/mae": 8.0}) == 50


def test_a_baseline_of_zero_has_no_ratio() -> None:
    assert math.isnan(delta_m({"a/accuracy": 0.5, "b/mae": 1.0}, {"a/accuracy": 0.0, "b/mae": 1.0}))


@pytest.mark.parametrize(("values", "baselines"), [({}, {}), ({"a/mae": 1.0}, {"b/mae": 1.0})])
def test_other_metrics_are_refused(values: dict[str, float], baselines: dict[str, float]) -> None:
    with pytest.raises(UserError, match="expected the same metrics"):
        delta_m(values, baselines)


# From run directories


def run(folder: Path, architecture: str = "parallel", seed: int = 0, task: str | None = None, **more: Any) -> dict:
    """Write a run with random test values; a single network has those of its task alone. Returns its test metrics."""
    made = config(architecture, seed, **more)
    if architecture == "single":
        made["architecture"]["task"] = task
    where = write_run(folder, made)
    stored = json.loads((where / "metrics.json").read_text())
    rng = np.random.default_rng([seed, len(list(folder.iterdir()))])
    own = {"make/accuracy": rng.uniform(0.7, 0.9), "model/accuracy": rng.uniform(0.5, 0.7)}
    own |= {"weight/mae": rng.uniform(50, 90)}
    if architecture == "single":
        chosen = task or "model"
        own = {m: v for m, v in own.items() if m.startswith(chosen)} | {f"{chosen}/loss": 1.0}
        if chosen == "model":
            own["make/implied_accuracy"] = own["make/accuracy"] = rng.uniform(0.7, 0.9)
    else:
        own |= {"make/loss": 1.0, "model/loss": 1.0, "weight/loss": 1.0, "make/implied_accuracy": 0.1}
    stored["test"] = own
    (where / "metrics.json").write_text(json.dumps(stored))
    (where / "predictions.parquet").unlink()
    return own


def only(folder: Path) -> Comparison:
    (comparison,) = compare(collect([folder]).runs)
    return comparison


METRICS = ("make/accuracy", "model/accuracy", "weight/mae")
LOWER = [False, False, True]


def expected(ours: dict, alone: dict[str, dict]) -> float:
    theirs = [alone[metric.split("/")[0]][metric] for metric in METRICS]
    return plain_delta_m([ours[m] for m in METRICS], theirs, LOWER)


def test_each_seed_is_against_the_baselines_of_its_own_seed(tmp_path: Path) -> None:
    values = []
    for seed in (0, 1, 2):
        ours = run(tmp_path / "s", "parallel", seed)
        alone = {task: run(tmp_path / "s", "single", seed, task) for task in ("make", "model", "weight")}
        values.append(expected(ours, alone))
    (gain,) = gains(only(tmp_path))
    assert gain.delta is not None
    assert sorted(gain.delta.values) == pytest.approx(sorted(values))
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (gain.delta.low, gain.delta.high) == pytest.approx((low, high))
    assert gain.missing == []
    assert gain.implied is None
    found = section(only(tmp_path))
    assert found is not None
    row = dict(zip(found.sheets[0].heads, (text for text, _ in found.sheets[0].rows[0]), strict=True))
    assert row["delta m, %"] == f"{np.mean(values):+.1f} ± {(high - low) / 2:.1f}"
    assert row["n"] == "3"


def test_no_architecture_task_is_the_finest_level(tmp_path: Path) -> None:
    ours = run(tmp_path / "s")
    alone = {t: run(tmp_path / "s", "single", 0, None if t == "model" else t) for t in ("make", "model", "weight")}
    (gain,) = gains(only(tmp_path))
    assert gain.delta is not None
    assert gain.delta.mean == pytest.approx(expected(ours, alone))
    assert not gain.delta.has_interval


def test_settings_have_to_agree_and_weightings_do_not(tmp_path: Path) -> None:
    alone, loss = [], {"name": "default", "matching": 0.0}
    for weighting in ("fixed", "equal"):  # a multirun crosses single with weightings: the same network twice
        tasks = ("make", "model", "weight")
        alone.append(
            {task: run(tmp_path / "s", "single", 0, task, weighting__name=weighting, loss=loss) for task in tasks}
        )
    run(tmp_path / "s", "single", 0, "make", head__dropout=0.5, loss=loss)
    ours = run(tmp_path / "s", weighting__name="mgda", loss={"name": "default", "matching": 0.5})
    run(tmp_path / "s", head__dropout=0.5, loss=loss)
    run(tmp_path / "s", backbone__name="resnet18", loss=loss)
    found = {gain.cell.label: gain for gain in gains(only(tmp_path))}
    assert len(found) == 2, "resnet18 has no baseline at all"
    (same,) = (gain for gain in found.values() if gain.delta)
    assert "mgda" in same.cell.label
    one_of_both = [100 * (ours["make/accuracy"] / baselines["make"]["make/accuracy"] - 1) for baselines in alone]
    assert any(same.tasks["make/accuracy"].mean == pytest.approx(value) for value in one_of_both)
    (other,) = (gain for gain in found.values() if not gain.delta)
    assert other.missing == ["model", "weight"]


def single(folder: Path, weighting: str, validation: float, seed: int = 0) -> dict:
    """A network of the make alone, and what it reached on validation images."""
    before = set(folder.iterdir()) if folder.is_dir() else set()
    test = run(folder, "single", seed, "make", weighting__name=weighting)
    (made,) = set(folder.iterdir()) - before
    stored = json.loads((made / "metrics.json").read_text())
    (made / "metrics.json").write_text(json.dumps({**stored, "val": {"make/accuracy": validation}}))
    return test


def made_gain(ours: dict, alone: dict) -> float:
    return 100 * (ours["make/accuracy"] / alone["make/accuracy"] - 1)


@pytest.mark.parametrize("order", [("equal", "mgda"), ("mgda", "equal")])
def test_of_several_baselines_the_one_with_the_cells_weighting_is_taken(tmp_path: Path, order: tuple) -> None:
    alone = {name: single(tmp_path / "s", name, 0.5 if name == "equal" else 0.9) for name in order}
    ours = {name: run(tmp_path / "s", name, weighting__name="equal") for name in ("parallel", "cascade")}
    found = gains(only(tmp_path))
    expected = {name: made_gain(test, alone["equal"]) for name, test in ours.items()}
    assert {g.cell.values[0]: g.tasks["make/accuracy"].mean for g in found} == pytest.approx(expected)
    made = section(only(tmp_path))
    assert made is not None
    assert "make: single · equal (of 2, that with the label transform and weighting" in made.sheets[0].note


@pytest.mark.parametrize("order", [("equal", "mgda"), ("mgda", "equal")])
def test_cells_of_several_weightings_have_one_baseline_the_best_in_validation(tmp_path: Path, order: tuple) -> None:
    alone = {name: single(tmp_path / "s", name, 0.5 if name == "equal" else 0.9) for name in order}
    ours = {name: run(tmp_path / "s", weighting__name=name) for name in ("equal", "mgda")}
    found = gains(only(tmp_path))
    assert sorted(g.tasks["make/accuracy"].mean for g in found) == pytest.approx(
        sorted(made_gain(test, alone["mgda"]) for test in ours.values())
    )
    made = section(only(tmp_path))
    assert made is not None
    sheet = made.sheets[0]
    assert "make: single · mgda (of 2, the best in validation)" in sheet.note
    assert sheet.data is not None
    assert set(sheet.data["baselines"]) == {"single · mgda"}


def test_a_baseline_of_all_seeds_comes_before_a_better_one_of_some(tmp_path: Path) -> None:
    for seed in (0, 1):
        single(tmp_path / "s", "equal", 0.5, seed)
        run(tmp_path / "s", "parallel", seed, weighting__name="uncertainty")
    single(tmp_path / "s", "mgda", 0.9, 0)
    (gain,) = gains(only(tmp_path))
    assert gain.tasks["make/accuracy"].n == 2
    assert gain.baselines["make/accuracy"].cell.values[1] == "equal"


def test_one_network_of_two_tasks_made_one_is_no_baseline(tmp_path: Path) -> None:
    """As FastCAR's, whose architecture may be called single: it is judged by the others."""
    run(tmp_path / "s", "single", 0, "make")
    fastcar = write_run(tmp_path / "s", config("single", label_transform={"name": "fastcar"}))
    stored = json.loads((fastcar / "metrics.json").read_text())
    stored["test"] = {k: v for k, v in stored["test"].items() if not k.endswith("/loss")} | {"axis/loss": 1.0}
    (fastcar / "metrics.json").write_text(json.dumps(stored))
    (gain,) = gains(only(tmp_path))
    assert "fastcar" in gain.cell.label
    assert list(gain.tasks) == ["make/accuracy"]


def test_the_finest_level_alone_gives_an_implied_gain_and_says_so(tmp_path: Path) -> None:
    ours = run(tmp_path / "s")
    model = run(tmp_path / "s", "single", 0, None)
    weight = run(tmp_path / "s", "single", 0, "weight")
    (gain,) = gains(only(tmp_path))
    assert gain.delta is None
    assert gain.missing == ["make"]
    assert gain.implied is not None
    make = {"make/accuracy": model["make/implied_accuracy"]}
    assert gain.implied.mean == pytest.approx(expected(ours, {"make": make, "model": model, "weight": weight}))
    found = section(only(tmp_path))
    assert found is not None
    assert "delta m with implied, %" in found.sheets[0].heads
    assert "trained on make alone" in found.sheets[0].note
    assert any("implies" in paragraph for paragraph in found.paragraphs)


def test_a_task_without_any_baseline_leaves_delta_m_out(tmp_path: Path) -> None:
    run(tmp_path / "s")
    run(tmp_path / "s", "single", 0, None)
    (gain,) = gains(only(tmp_path))
    assert gain.delta is None
    assert gain.implied is None, "weight has neither a baseline nor an implied value"
    assert gain.missing == ["make", "weight"]
    assert list(gain.tasks) == ["model/accuracy"]
    found = section(only(tmp_path))
    assert found is not None
    row = dict(zip(found.sheets[0].heads, (text for text, _ in found.sheets[0].rows[0]), strict=True))
    assert (row["delta m, %"], row["weight MAE, %"]) == ("-", "-")
    assert "make or weight alone" in found.sheets[0].note


def test_other_seeds_are_no_baseline(tmp_path: Path) -> None:
    run(tmp_path / "s", "parallel", 0)
    run(tmp_path / "s", "single", 1, None)
    assert section(only(tmp_path)) is None


def test_only_the_seeds_that_all_tasks_have_count(tmp_path: Path) -> None:
    values = {}
    for seed in (0, 1):
        ours = run(tmp_path / "s", "parallel", seed)
        tasks = ("make", "model", "weight") if seed else ("make", "model")
        values[seed] = (ours, {task: run(tmp_path / "s", "single", seed, task) for task in tasks})
    (gain,) = gains(only(tmp_path))
    assert gain.delta is not None
    assert gain.delta.values == pytest.approx((expected(*values[1]),))
    assert gain.tasks["make/accuracy"].n == 2


def test_no_network_of_one_task_is_no_section(tmp_path: Path) -> None:
    run(tmp_path / "a")
    run(tmp_path / "a", "cascade")
    assert section(only(tmp_path / "a")) is None
    run(tmp_path / "b", "single", 0, "make")
    run(tmp_path / "b", "single", 0, "model")
    assert section(only(tmp_path / "b")) is None


def test_the_best_gain_is_bold_and_the_csv_is_in_full(tmp_path: Path) -> None:
    run(tmp_path / "s", "parallel")
    run(tmp_path / "s", "cascade")
    for task in ("make", "model", "weight"):
        run(tmp_path / "s", "single", 0, task)
    found = section(only(tmp_path))
    assert found is not None
    sheet = found.sheets[0]
    deltas = {row[0][0]: (float(row[2][0]), row[2][1]) for row in sheet.rows}
    best = max(deltas, key=lambda name: deltas[name][0])
    assert [name for name, (_, bold) in deltas.items() if bold] == [best]
    assert sheet.data is not None
    full = sheet.data[sheet.data["gain of"] == "delta m"].set_index("cell")["percent"]
    assert {name: f"{value:+.1f}" for name, value in full.items()} == {n: f"{v:+.1f}" for n, (v, _) in deltas.items()}
