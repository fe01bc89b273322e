"""Pareto fronts of cells."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Polygon

from mtlcar.report.pareto import objectives, pareto_front, section
from mtlcar.report.pareto_figure import LETTER, free_offsets
from tests.report_cells import comparison_of, made
from tests.run_dirs import STEEL

NUMBER = st.integers(0, 6).map(float) | st.floats(allow_infinity=True)
POINTS = st.lists(st.tuples(NUMBER, NUMBER), max_size=30)


def beaten(a: tuple[float, float], b: tuple[float, float], lower: tuple[bool, bool]) -> bool:
    """Whether `b` is as good as `a` in both and better in one."""
    good = [(y <= x) if low else (y >= x) for x, y, low in zip(a, b, lower, strict=True)]
    better = [(y < x) if low else (y > x) for x, y, low in zip(a, b, lower, strict=True)]
    return all(good) and any(better)


@pytest.mark.parametrize("lower", [(a, b) for a in (True, False) for b in (True, False)])
@settings(max_examples=150, deadline=None)
@given(points=POINTS)
def test_the_front_is_what_brute_force_finds(lower: tuple[bool, bool], points: list[tuple[float, float]]) -> None:
    whole = [not (math.isnan(x) or math.isnan(y)) for x, y in points]
    expected = {
        i
        for i, a in enumerate(points)
        if whole[i] and not any(whole[j] and beaten(a, b, lower) for j, b in enumerate(points))
    }
    found = pareto_front(points, lower)
    assert len(found) == len(set(found))
    assert set(found) == expected
    xs = [points[i][0] for i in found]
    assert xs == sorted(xs, reverse=not lower[0]), "along the front, the best of the first number first"


def runs(n: int = 12, seeds: int = 1, **kwargs: object) -> list:
    rng = np.random.default_rng(3)
    found = []
    for i in range(n):
        skill = rng.random()
        for seed in range(seeds):
            test = {
                "model/accuracy": skill + 0.02 * rng.random(),
                "make/accuracy": 1 - skill**2 * rng.random(),
                "weight/mae": 100 - 50 * skill + 30 * rng.random(),
            }
            cost = {"parameters": 1e6 * (1 + 20 * rng.random()), "forward_gmacs": 0.1 + skill}
            found.append(
                made(f"net{i}", seed, test=test, cost=cost, timing={"fit_seconds": 60 + 600 * rng.random()}, **kwargs)
            )
    return found


def test_the_table_lists_the_cells_that_brute_force_finds_in_any_plane() -> None:
    comparison = comparison_of(runs(40, seeds=2))
    found = section(comparison)
    assert found is not None
    (sheet,) = found.sheets
    data = sheet.data.set_index("cell")
    members: set[str] = set()
    planes = [
        ("make/accuracy", "model/accuracy", (False, False)),
        ("weight/mae", "model/accuracy", (True, False)),
        ("parameters", "model/accuracy", (True, False)),
        ("forward GMACs", "model/accuracy", (True, False)),
        ("minutes", "model/accuracy", (True, False)),
    ]
    for x, y, lower in planes:
        points = dict(zip(data.index, zip(data[x], data[y], strict=True), strict=True))
        expected = {a for a in points if not any(beaten(points[a], b, lower) for b in points.values())}
        assert set(data.index[data[f"front {x} {y}"]]) == expected
        members |= expected
    assert {row[1][0] for row in sheet.rows} == members
    assert 0 < len(members) < len(comparison.cells)
    for row in sheet.rows:
        assert comparison.cells[int(row[0][0]) - 1].label == row[1][0], "the number is the place in the table"


@pytest.mark.parametrize("name", ["pareto_make_accuracy_model_accuracy", "pareto_weight_mae_model_accuracy"])
def test_the_stairs_part_what_the_front_beats_from_what_it_does_not(name: str) -> None:
    comparison = comparison_of(runs(30))
    found = section(comparison)
    assert found is not None
    (ax,) = (d.figure.axes[0] for d in found.drawings if d.name == name)
    (stairs,) = (line for line in ax.lines if line.get_linestyle() == "--")
    lower = ("mae" in name, False)
    metric = "weight/mae" if "mae" in name else "make/accuracy"
    factor = 1 if "mae" in name else 100
    front = [
        (factor * c.numbers[metric].mean, 100 * c.numbers["model/accuracy"].mean)
        for c in comparison.cells
        if not any(
            beaten(
                (c.numbers[metric].mean, c.numbers["model/accuracy"].mean),
                (d.numbers[metric].mean, d.numbers["model/accuracy"].mean),
                lower,
            )
            for d in comparison.cells
        )
    ]
    xs, ys = ax.get_xlim(), ax.get_ylim()
    corner = (xs[1] if lower[0] else xs[0], ys[0])
    region = Polygon([*map(tuple, stairs.get_xydata()), corner], closed=False)
    rng = np.random.default_rng(0)
    for q in rng.uniform((xs[0], ys[0]), (xs[1], ys[1]), (500, 2)):
        assert region.contains_point(q) == any(beaten((q[0], q[1]), p, lower) for p in front)


def test_only_members_are_numbered_and_all_numbers_are_named() -> None:
    comparison = comparison_of(runs())
    found = section(comparison)
    assert found is not None
    for drawing in found.drawings:
        numbers = {t.get_text() for ax in drawing.figure.axes for t in ax.texts}
        named = {
            line.split("  ")[0] for t in drawing.figure.texts for line in t.get_text().splitlines() if "  " in line
        }
        assert numbers == named
        assert numbers
        labels = {
            line.split("  ")[1] for t in drawing.figure.texts for line in t.get_text().splitlines() if "  " in line
        }
        assert labels == {comparison.cells[int(n) - 1].label for n in numbers}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(20, 280), st.floats(20, 180)), min_size=1, max_size=8, unique=True))
def test_numbers_of_marks_that_are_apart_cover_neither_marks_nor_each_other(marks: list[tuple[float, float]]) -> None:
    apart = [m for i, m in enumerate(marks) if all(abs(m[0] - k[0]) > 60 or abs(m[1] - k[1]) > 60 for k in marks[:i])]
    offsets = free_offsets(apart, range(len(apart)), [13.0] * len(apart), 300, 200)
    boxes = [(x + dx, y + dy) for (x, y), (dx, dy) in zip(apart, offsets, strict=True)]
    for i, (x, y) in enumerate(boxes):
        assert 6.5 <= x <= 300 - 6.5
        assert LETTER / 2 <= y <= 200 - LETTER / 2
        assert all(abs(x - u) > 12.99 or abs(y - v) > LETTER - 0.01 for u, v in boxes[:i])
        assert all(abs(x - u) > 6.5 + 2.99 or abs(y - v) > LETTER / 2 + 2.99 for u, v in apart)


def test_the_numbers_set_against_each_other_are_those_of_the_tasks() -> None:
    cars = comparison_of(runs(3))
    assert objectives(cars) == [("make/accuracy", "model/accuracy"), ("weight/mae", "model/accuracy")]
    steel = comparison_of([made(tasks=STEEL, data__name="steel", test={"class/accuracy": 1.0, "property/mae": 2.0})])
    assert objectives(steel) == [("property/mae", "class/accuracy")]


def test_costs_that_are_alike_are_said_and_not_drawn() -> None:
    many = runs(5)
    for i, run in enumerate(many):
        run.metrics["cost"]["parameters"] = 1_000_000 + i
    found = section(comparison_of(many))
    assert found is not None
    assert any("parameters" in p for p in found.paragraphs)
    (cost,) = (d.figure for d in found.drawings if d.name == "pareto_cost")
    assert len(cost.axes) == 2


def test_cells_that_lack_a_number_or_have_nan_take_no_part_and_are_counted() -> None:
    many = runs(6)
    del many[0].metrics["test"]["make/accuracy"]
    many[1].metrics["test"]["model/accuracy"] = math.nan
    found = section(comparison_of(many))
    assert found is not None
    (drawing,) = (d for d in found.drawings if d.name == "pareto_make_accuracy_model_accuracy")
    assert "2 cells have only one of the two" in drawing.caption
    front = found.sheets[0].data["front make/accuracy model/accuracy"]
    assert not front[:2].any()


def test_two_cells_have_no_front() -> None:
    assert section(comparison_of(runs(2))) is None


def test_a_cost_of_zero_and_equal_cells_are_drawn() -> None:
    same = {"model/accuracy": 0.5, "make/accuracy": 0.5}
    many = [made(f"n{i}", test=same, timing={"fit_seconds": 60.0 * i}) for i in range(3)]
    found = section(comparison_of(many))
    assert found is not None
    assert found.sheets[0].data["front make/accuracy model/accuracy"].all()
    for drawing in found.drawings:
        drawing.figure.draw_without_rendering()
