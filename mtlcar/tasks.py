"""Tasks, their order and their hierarchy: the only source of both."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mtlcar.errors import UserError, did_you_mean

Kind = Literal["classification", "regression"]


@dataclass(frozen=True)
class Task:
    """One thing to predict from an image.

    `classes` are the class names in index order (classification); `unit` is the unit of the value
    (regression, `""` when it has none); `parent` names the coarser task whose class every class of this
    one implies (a car's model implies its make).
    """

    name: str
    kind: Kind
    classes: tuple[str, ...] = ()
    unit: str = ""
    parent: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(str(c) for c in self.classes))
        if not self.name.isidentifier():
            raise UserError(f"Task name should be a plain word (letters, digits, _). Found {self.name!r}.")
        if self.kind not in ("classification", "regression"):
            raise UserError(
                f"Task {self.name!r}: kind should be 'classification' or 'regression'. Found {self.kind!r}."
            )
        if self.kind == "classification" and len(self.classes) < 2:
            raise UserError(f"Task {self.name!r}: a classification needs at least 2 classes. Found {self.classes}.")
        if len(set(self.classes)) != len(self.classes):
            raise UserError(f"Task {self.name!r}: class names should be unique.")
        if self.kind == "regression" and (self.classes or self.parent):
            raise UserError(f"Task {self.name!r}: a regression has neither classes nor a parent.")

    @property
    def outputs(self) -> int:
        """Numbers a head gives for this task: one per class, or one value."""
        return len(self.classes) if self.kind == "classification" else 1


class TaskSet:
    """Ordered tasks and, for each child task, the table `class -> class of the parent`.

    Deliberately no dataclass: Hydra would turn one into a config node when it is passed to `instantiate`.

    Args:
        tasks: the tasks, in the dataset's order.
        parent_of: for every task with a `parent`, the parent's class index of each of its classes.
    """

    def __init__(self, tasks: Iterable[Task], parent_of: Mapping[str, Sequence[int]] | None = None) -> None:
        self.tasks = tuple(tasks)
        self.names = tuple(t.name for t in self.tasks)
        self.parent_of = {k: tuple(int(i) for i in v) for k, v in (parent_of or {}).items()}
        if not self.tasks:
            raise UserError("A TaskSet needs at least one task.")
        if len(set(self.names)) != len(self.names):
            raise UserError(f"Task names should be unique. Found {self.names}.")
        for task in self.tasks:
            chain = [task.name]
            while (above := self[chain[-1]].parent) is not None and above in self.names:
                if above in chain:
                    raise UserError(
                        f"Task parents should not go round in a circle. Found {' -> '.join([*chain, above])}."
                    )
                chain.append(above)
            if task.parent is None or task.parent not in self.names:
                continue
            table = self.parent_of.get(task.name)
            parent = self[task.parent]
            if table is None or len(table) != len(task.classes):
                raise UserError(f"Task {task.name!r}: parent_of should give the {task.parent} of each of its classes.")
            if min(table) < 0 or max(table) >= len(parent.classes):
                raise UserError(f"Task {task.name!r}: parent_of should hold class indices of {task.parent!r}.")

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __getitem__(self, key: str | int) -> Task:
        if isinstance(key, int):
            return self.tasks[key]
        if key not in self.names:
            raise UserError(f"No task {key!r}; there are {', '.join(self.names)}.{did_you_mean(key, self.names)}")
        return self.tasks[self.names.index(key)]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TaskSet) and (self.tasks, self.parent_of) == (other.tasks, other.parent_of)

    def __hash__(self) -> int:
        return hash(self.tasks)

    def __repr__(self) -> str:
        parts = [f"{t.name}[{len(t.classes)}]" if t.classes else f"{t.name}({t.unit})" for t in self.tasks]
        return f"TaskSet({', '.join(parts)})"

    @property
    def classification(self) -> tuple[Task, ...]:
        return tuple(t for t in self.tasks if t.kind == "classification")

    @property
    def regression(self) -> tuple[Task, ...]:
        return tuple(t for t in self.tasks if t.kind == "regression")

    def depth(self, name: str) -> int:
        """Number of coarser tasks above `name` that are in this set."""
        return len(self.ancestors(name))

    def ancestors(self, name: str) -> tuple[str, ...]:
        """The chain of coarser tasks above `name` in this set, nearest first."""
        chain: list[str] = []
        parent = self[name].parent
        while parent is not None and parent in self:
            chain.append(parent)
            parent = self[parent].parent
        return tuple(chain)

    def finest(self) -> Task:
        """The classification with the longest chain of ancestors (ties: more classes, then the earlier);
        a set without one: its first task."""
        if not self.classification:
            return self.tasks[0]
        return max(self.classification, key=lambda t: (self.depth(t.name), len(t.classes)))

    def ancestor_table(self, child: str, ancestor: str) -> tuple[int, ...]:
        """For each class of `child` the class of `ancestor` it implies."""
        table = tuple(range(len(self[child].classes)))
        name = child
        while name != ancestor:
            parent = self[name].parent
            if parent is None or parent not in self:
                raise UserError(f"Task {ancestor!r} is not above {child!r} in the hierarchy.")
            step = self.parent_of[name]
            table = tuple(step[i] for i in table)
            name = parent
        return table

    def subset(self, names: Iterable[str]) -> "TaskSet":
        """The named tasks, in this set's order."""
        keep = set(names)
        for name in keep:
            self[name]
        return TaskSet(
            (t for t in self.tasks if t.name in keep), {k: v for k, v in self.parent_of.items() if k in keep}
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, for JSON."""
        return {
            "tasks": [
                {"name": t.name, "kind": t.kind, "classes": list(t.classes), "unit": t.unit, "parent": t.parent}
                for t in self.tasks
            ],
            "parent_of": {k: list(v) for k, v in self.parent_of.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "TaskSet":
        return cls((Task(**{**t, "classes": tuple(t["classes"])}) for t in data["tasks"]), data["parent_of"])
