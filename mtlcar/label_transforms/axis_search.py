"""Choosing an axis's constants by short trainings: the one-epoch test of FastCAR, and candidates on validation data."""

import itertools
import logging
import math
from abc import abstractmethod
from collections.abc import Generator, Mapping, Sequence
from typing import Any, Literal

from mtlcar.errors import UserError
from mtlcar.label_transforms.axis_constants import order_of
from mtlcar.label_transforms.base import LabelTransform, Outcome, Trial
from mtlcar.label_transforms.intervals import Intervals
from mtlcar.options import number, whole
from mtlcar.tasks import Task

log = logging.getLogger("mtlcar")
CANDIDATES = ("gap", "layout", "order", "pad")


class AxisSearch(LabelTransform):
    """A transform whose `options` are searched.

    First every combination of `candidates` is trained for `candidate_epochs`, and the best on validation data stays: by
    the class's accuracy (ties: by the value's mae, then the earlier), decoded, because a loss on the axis has another
    unit for each candidate. Then the one-epoch test of arXiv 2403.17926: one epoch is trained, and the mean |gradient|
    over all parameters, averaged over its steps, should be below `gradient_limit`; else `scale` is multiplied by
    `factor` (or `gap` divided by it), and again, up to `tries` times.

    Every trial begins with the run's first weights and random numbers, and so does the real training after them.

    Args:
        gradient_limit: the paper's is 2; None: no test.
        candidates: option -> values: `gap` and `pad` (in the value's unit), `layout`, `order` (each `mean`, a list
            of all classes, or `swaps`: the order by mean with two neighbours exchanged, for every two neighbours).
    """

    task: Task
    value: Task
    given: tuple[Intervals, float] | None
    options: dict[str, Any]

    @abstractmethod
    def set_options(self, changes: Mapping[str, Any]) -> None:
        """Fit again with some options changed."""

    def check_order(self, order: object, where: str) -> list[int] | None:
        """Class indices from low to high; None for `mean`."""
        return None if order == "mean" else order_of(order, self.task, where)

    def set_search(
        self,
        gradient_limit: float | None,
        tries: int,
        adjust: Literal["scale", "gap"],
        factor: float,
        candidates: Mapping[str, Sequence[Any]] | None,
        candidate_epochs: int,
    ) -> None:
        where = "label_transform.gradient_limit"
        self.gradient_limit = None if gradient_limit is None else number(where, gradient_limit, above=0)
        self.tries = whole("label_transform.tries", tries, least=1)
        if adjust not in ("scale", "gap"):
            raise UserError(f"label_transform.adjust should be scale or gap. Found {adjust!r}.")
        self.adjust = adjust
        self.factor = number("label_transform.factor", factor, above=1)
        self.candidate_epochs = whole("label_transform.candidate_epochs", candidate_epochs, least=1)
        if candidates is not None and not isinstance(candidates, Mapping):
            raise UserError(
                f"label_transform.candidates maps some of {', '.join(CANDIDATES)} to lists of values. "
                f"Found {candidates!r}."
            )
        self.candidates = dict(candidates or {})
        for key, values in self.candidates.items():
            if key not in CANDIDATES or isinstance(values, str) or not isinstance(values, Sequence) or not values:
                raise UserError(
                    f"label_transform.candidates maps some of {', '.join(CANDIDATES)} to lists of values. "
                    f"Found {key}: {values!r}."
                )
            for value in values:
                self._check_candidate(key, value)

    def _check_candidate(self, key: str, value: Any) -> None:
        where = f"label_transform.candidates.{key}"
        if key == "order" and value != "swaps":
            self.check_order(value, where)
        elif key == "layout" and value not in ("minimal", "stacked"):
            raise UserError(f"{where} should list minimal and stacked. Found {value!r}.")
        elif key == "gap" and value is not None:
            number(where, value, above=0)
        elif key == "pad":
            number(where, value, least=0)

    def search(self) -> Generator[Trial, Outcome, None]:
        if self.given is not None:
            return
        if self.candidates:
            yield from self._choose()
        if self.gradient_limit is not None:
            yield from self._test(self.gradient_limit)

    def _changes(self) -> list[dict[str, Any]]:
        """Every combination of the candidates, as options."""
        lists = {key: list(values) for key, values in self.candidates.items()}
        if "order" in lists:
            lists["order"] = [o for value in lists["order"] for o in self._orders(value)]
        return [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]

    def _orders(self, value: Any) -> list[list[int] | None]:
        if value != "swaps":
            return [self.check_order(value, "label_transform.candidates.order")]
        before = self.options["order"]
        self.set_options({"order": None})
        rank = [self.task.classes.index(name) for name in self.constants()["classes"]]
        self.set_options({"order": before})
        return [[*rank[:i], rank[i + 1], rank[i], *rank[i + 2 :]] for i in range(len(rank) - 1)]

    def _shown(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Options as they are logged: an order as class names."""
        order = changes.get("order")
        named = {} if "order" not in changes else {"order": [self.task.classes[c] for c in order] if order else "mean"}
        return {**changes, **named}

    def _choose(self) -> Generator[Trial, Outcome, None]:
        combinations = self._changes()
        for changes in combinations:  # a gap that float32 cannot resolve, say, is said before anything is trained
            self.set_options(changes)
        tried: list[dict[str, Any]] = []
        self.searched["candidates"] = tried
        by = (f"val/{self.task.name}/accuracy", f"val/{self.value.name}/mae")
        best: tuple[tuple[float, float], dict[str, Any]] | None = None
        for changes in combinations:
            self.set_options(changes)
            shown = self._shown(changes)
            outcome = yield Trial(shown, self.candidate_epochs)
            accuracy, error = (outcome.metrics.get(name, math.nan) for name in by)
            tried.append({**shown, by[0]: _json(accuracy), by[1]: _json(error)})
            log.info("%s: tried %s: accuracy %.4g, mae %.4g", self.name, shown, accuracy, error)
            rank = (-accuracy, math.inf if math.isnan(error) else error)
            if not math.isnan(accuracy) and (best is None or rank < best[0]):
                best = (rank, changes)
        if best is None:
            raise UserError(
                f"label_transform={self.name}: no candidate has a {by[0]}: every loss stopped being finite, or no "
                "validation image has a class label. Lower optimizer.lr, or leave label_transform.candidates out."
            )
        self.set_options(best[1])
        self.searched["chosen"] = self._shown(best[1])
        log.info("%s: goes on with %s, the best on validation data", self.name, self.searched["chosen"])

    def _test(self, limit: float) -> Generator[Trial, Outcome, None]:
        tried: list[dict[str, Any]] = []
        self.searched["one_epoch_test"] = tried
        for attempt in range(self.tries):
            now = {key: self.constants()[key] for key in ("scale", "gap")}
            outcome = yield Trial(now)
            passed = outcome.gradient < limit
            tried.append({**now, "mean_gradient": _json(outcome.gradient), "passed": passed})
            log.info(
                "%s: one-epoch test %d with scale %.6g, gap %.6g: mean |gradient| %.4g, %s",
                *(self.name, attempt + 1, now["scale"], now["gap"], outcome.gradient),
                "passed" if passed else f"not below {limit:g}",
            )
            if passed:
                return
            if attempt + 1 < self.tries:
                further = now[self.adjust] * self.factor ** (1 if self.adjust == "scale" else -1)
                try:
                    self.set_options({self.adjust: further})
                except UserError as error:
                    raise UserError(f"{self._failed(limit)}\nThe next, {self.adjust} {further:.3g}: {error}") from error
        raise UserError(self._failed(limit))

    def _failed(self, limit: float) -> str:
        tried = self.searched["one_epoch_test"]
        lines = [f"{self.adjust} {t[self.adjust]:.6g}: {t['mean_gradient']}" for t in tried]
        return (
            f"label_transform={self.name}: after {len(tried)} one-epoch tests the mean |gradient| is still not below "
            f"label_transform.gradient_limit={limit:g} ({'; '.join(lines)}). Raise label_transform.tries, "
            "label_transform.factor or the limit, or use scale=half_range with gradient_limit=null."
        )


def _json(value: float) -> float | None:
    return value if math.isfinite(value) else None
