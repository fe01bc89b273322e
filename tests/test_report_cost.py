"""Time and cost of a comparison."""

import math
from typing import Any

import numpy as np
import pytest

from mtlcar.report.collect import Run
from mtlcar.report.cost_section import section
from mtlcar.report.section import Section
from tests.report_cells import comparison_of, made

BOX = "NVIDIA H100"


def run(architecture: str, seed: int = 0, *, device: str | None = BOX, **changes: Any) -> Run:
    cost: dict[str, Any] = {
        "parameters": 7_204_981,
        "shared_parameters": 7_000_000,
        "forward_gmacs": 0.4,
        "latency_ms": {"make": 2.0, "model": 2.5, "all": 3.0},
    }
    timing: dict[str, Any] = {
        "fit_seconds": 600.0, "sessions": 1, "epochs": 4, "train_images_per_second": 250.0, "step_ms_median": 100.0,
    }  # fmt: skip
    if device is not None:
        cost["latency_device"] = device
    cost |= {k: v for k, v in changes.items() if k in cost}
    timing |= {k: v for k, v in changes.items() if k in timing}
    return made(architecture, seed, test={"model/accuracy": 0.5}, cost=cost, timing=timing)


def table(found: Section | None) -> dict[str, dict[str, tuple[str, bool]]]:
    assert found is not None
    (sheet,) = found.sheets
    return {row[0][0]: dict(zip(sheet.heads, row, strict=True)) for row in sheet.rows}


def test_a_cell_has_the_mean_of_its_runs_and_the_file_their_range() -> None:
    seconds = (500.0, 700.0, 1200.0)
    found = section(comparison_of([run("a", i, fit_seconds=s) for i, s in enumerate(seconds)]))
    row = table(found)["all"] if "all" in table(found) else next(iter(table(found).values()))
    assert row["fit, min"][0] == f"{np.mean(seconds) / 60:.1f}"
    assert row["parameters, M"][0] == "7.205"
    assert row["shared, M"][0] == "7.000"
    assert (row["all tasks, ms"][0], row["make alone, ms"][0], row["model alone, ms"][0]) == ("3.00", "2.00", "2.50")
    assert (row["training, images/s"][0], row["step, ms"][0], row["epochs"][0]) == ("250", "100", "4")
    assert row["device"][0] == BOX
    assert found is not None
    (record,) = found.sheets[0].data.to_dict("records")
    assert record["minutes"] == pytest.approx(np.mean(seconds) / 60)
    assert (record["minutes/least"], record["minutes/most"]) == pytest.approx((500 / 60, 20))


def test_hours_of_all_runs_are_added_up() -> None:
    found = section(comparison_of([run(a, s, fit_seconds=5400.0) for a in "ab" for s in range(3)]))
    assert found is not None
    assert f"All 6 runs together trained for 9.0 hours on {BOX}" in found.paragraphs[0]


def test_the_cheapest_and_the_fastest_are_bold() -> None:
    found = section(comparison_of([
        run("small", parameters=1_000_000, latency_ms={"all": 9.0}, train_images_per_second=100.0),
        run("fast", train_images_per_second=900.0),
    ]))  # fmt: skip
    rows = table(found)
    assert rows["small"]["parameters, M"] == ("1.000", True)
    assert not rows["fast"]["parameters, M"][1]
    assert rows["fast"]["all tasks, ms"][1]
    assert rows["fast"]["training, images/s"] == ("900", True), "more is better"
    assert not rows["small"]["training, images/s"][1]
    assert not any(rows[name]["epochs"][1] or rows[name]["fit, min"][1] for name in rows), "equal ones have no best"


@pytest.mark.parametrize("other", ["AMD EPYC", None])
def test_times_of_several_or_unknown_machines_have_no_best_but_sizes_do(other: str | None) -> None:
    found = section(comparison_of([
        run("a", fit_seconds=60.0, parameters=1_000_000),
        run("b", fit_seconds=6000.0, latency_ms={"all": 9.0}, device=other),
    ]))  # fmt: skip
    rows = table(found)
    assert not any(bold for row in rows.values() for head, (_, bold) in row.items() if "parameters" not in head)
    assert rows["a"]["parameters, M"][1]
    assert found is not None
    assert "several machines" in found.sheets[0].note
    assert "1.7 h on " + (other or "an unknown machine") in found.paragraphs[0]


def test_what_old_or_odd_files_lack_is_a_dash() -> None:
    odd = run("odd", latency_ms=None, forward_gmacs=None, fit_seconds=math.nan, step_ms_median=0.0)
    del odd.metrics["cost"]["shared_parameters"]
    found = section(comparison_of([run("whole"), odd]))
    row = table(found)["odd"]
    missing = {head for head, (text, _) in row.items() if text == "-"}
    assert missing == {
        "shared, M", "forward GMACs", "all tasks, ms", "make alone, ms", "model alone, ms", "fit, min", "step, ms",
    }  # fmt: skip
    assert found is not None
    assert any("1 run does not say how long it took" in p for p in found.paragraphs)


def test_runs_that_say_nothing_of_their_cost_have_no_section() -> None:
    assert section(comparison_of([made(), made("cascade")])) is None


def test_interrupted_runs_are_counted() -> None:
    found = section(comparison_of([run("a", sessions=3), run("b")]))
    assert found is not None
    assert any("1 run was interrupted" in p for p in found.paragraphs)


@pytest.mark.parametrize(("slow", "bold"), [(110.0, True), (300.0, False)])
def test_times_of_a_machine_that_had_other_work_have_no_best(slow: float, bold: bool) -> None:
    runs = [run("a", 0), run("a", 1, step_ms_median=slow), run("b", 0, fit_seconds=60.0), run("b", 1, fit_seconds=60.0)]
    found = section(comparison_of(runs))
    assert table(found)["b"]["fit, min"] == ("1.0", bold)
    assert found is not None
    assert ("3.0 times as long" in found.sheets[0].note) is not bold
