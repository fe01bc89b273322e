"""Tasks and their hierarchy."""

import pytest

from mtlcar.errors import UserError
from mtlcar.tasks import Task, TaskSet

MAKE = Task("make", "classification", ("a", "b"))
MODEL = Task("model", "classification", ("x", "y", "z"), parent="make")
TRIM = Task("trim", "classification", ("p", "q", "r", "s"), parent="model")
WEIGHT = Task("weight", "regression", unit="kg")
TABLES = {"model": (0, 1, 1), "trim": (2, 0, 1, 0)}
CARS = TaskSet((WEIGHT, TRIM, MAKE, MODEL), TABLES)


def test_order_is_the_given_one() -> None:
    assert CARS.names == ("weight", "trim", "make", "model")
    assert [t.name for t in CARS.subset(["model", "weight"])] == ["weight", "model"]


def test_the_finest_task_has_the_longest_chain() -> None:
    assert CARS.finest() is TRIM
    assert CARS.subset(["make", "model"]).finest() is MODEL
    assert CARS.subset(["weight"]).finest() is WEIGHT


def test_tables_compose_along_the_chain() -> None:
    assert CARS.ancestors("trim") == ("model", "make")
    assert CARS.ancestor_table("trim", "make") == (1, 0, 1, 0)
    with pytest.raises(UserError, match="not above"):
        CARS.ancestor_table("make", "trim")


def test_round_trip_through_plain_containers() -> None:
    import json

    assert TaskSet.from_dict(json.loads(json.dumps(CARS.to_dict()))) == CARS


def test_a_tasks_outputs_are_its_classes_or_one_value() -> None:
    assert (MODEL.outputs, WEIGHT.outputs) == (3, 1)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: Task("make", "classification", ("a",)), "at least 2"),
        (lambda: Task("make", "classification", ("a", "a")), "unique"),
        (lambda: Task("make", "clasification", ("a", "b")), "kind"),
        (lambda: Task("a make", "regression"), "plain word"),
        (lambda: Task("w", "regression", ("a", "b")), "neither"),
        (lambda: TaskSet(()), "at least one"),
        (lambda: TaskSet((MAKE, MAKE)), "unique"),
        (lambda: TaskSet((MAKE, MODEL)), "parent_of"),
        (lambda: TaskSet((MAKE, MODEL), {"model": (0, 1)}), "parent_of"),
        (lambda: TaskSet((MAKE, MODEL), {"model": (0, 1, 2)}), "class indices"),
        (lambda: TaskSet((Task("a", "classification", ("x", "y"), parent="a"),), {"a": (0, 1)}), "circle"),
        (lambda: CARS["modle"], "Did you mean 'model'"),
    ],
)
def test_what_makes_no_sense_is_refused(build, says: str) -> None:
    with pytest.raises(UserError, match=says):
        build()
