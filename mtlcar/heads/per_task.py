"""A head of its own kind for each task."""

from collections.abc import Mapping
from typing import Any

from hydra.utils import instantiate
from omegaconf import OmegaConf

from mtlcar.config import conf_dir, groups
from mtlcar.errors import UserError, did_you_mean
from mtlcar.heads.base import Head, checked_dropout, head_of
from mtlcar.tasks import Task


class PerTask:
    """A `HeadFactory` that looks the task's kind up.

    A conv head reads the trunk's last map and the others the pooled vector; where tasks differ, the map is the
    bottleneck.

    Args:
        default: kind of the tasks that `kinds` does not name: a choice of the group `head`.
        kinds: task -> kind.
        options: task -> options of its head, `{hardness: {hidden: 64}}`; others have their yaml's values.
        dropout: p of all heads; None: each kind's own.
    """

    def __init__(
        self,
        *,
        name: str = "per_task",
        default: str = "linear",
        kinds: Mapping[str, str] | None = None,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        dropout: float | None = None,
    ) -> None:
        self.name = name
        self.default = default
        self.kinds = mapping("kinds", kinds, "{hardness:mlp}")
        given = mapping("options", options, "{hardness:{hidden:64}}")
        self.options = {task: mapping(f"options.{task}", of, "{hidden:64}") for task, of in given.items()}
        self.dropout = None if dropout is None else checked_dropout(dropout)
        possible = [n for n in groups()["head"] if n != "per_task"]
        for key, kind in [("default", default), *((f"kinds.{t}", k) for t, k in self.kinds.items())]:
            if kind not in possible:
                raise UserError(
                    f"head.{key} should be one of {', '.join(possible)}. Found {kind!r}.{did_you_mean(kind, possible)}"
                )

    def check(self, names: tuple[str, ...]) -> None:
        """UserError for a task that there is not."""
        for key, given in (("kinds", self.kinds), ("options", self.options)):
            for task in given:
                if task not in names:
                    raise UserError(
                        f"head.{key} names {task!r}, which is no task here.{did_you_mean(task, names)} "
                        f"There are: {', '.join(names)}."
                    )

    def __call__(self, task: Task, in_features: int, extra_features: int = 0, outputs: int | None = None) -> Head:
        kind = self.kinds.get(task.name, self.default)
        node: Any = OmegaConf.load(conf_dir() / "head" / f"{kind}.yaml")
        for key, value in self.options.get(task.name, {}).items():
            own = [k for k in node if k not in ("_target_", "name")]
            if key not in own:
                raise UserError(
                    f"head.options.{task.name}.{key}: head={kind} has no such option.{did_you_mean(str(key), own)} "
                    f"There are: {', '.join(own)}."
                )
            node[key] = value
        if self.dropout is not None and "dropout" not in self.options.get(task.name, {}):
            node.dropout = self.dropout
        make = instantiate(node, _partial_=True)
        try:
            return head_of(task, make, in_features, extra_features, outputs)
        except UserError as error:
            raise UserError(f"The head of {task.name}: {error}") from error


def mapping(key: str, given: Any, example: str) -> dict[str, Any]:
    """`head.<key>` as a dictionary, empty for null; UserError for anything else."""
    if given is None or isinstance(given, Mapping):
        return dict(given or {})
    raise UserError(f"head.{key} should be a dictionary, such as {example}. Found {given!r}.")
