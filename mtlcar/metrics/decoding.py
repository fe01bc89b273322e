"""From the class probabilities of several levels to one class of each level; numpy alone.

Networks with a head for each level (make, model) may contradict themselves. Four ways to read them, with p_l(c) the
probability that level l's head gives to class c:

- `independent`: each level's own argmax. What a network says by itself; levels may disagree.
- `top_down`: the coarsest level's argmax, then at each level below the most probable child of the class above.
  Consistent; a wrong coarse class cannot be repaired.
- `marginal`: a coarse level's probabilities are those of the finest scored level below, summed over the classes that
  imply each of its own; the finest level is its own argmax. The coarse heads are not asked. Levels may disagree: the
  make with the largest sum need not be the make of the most probable model.
- `joint`: the path from the coarsest level down with the largest product of p_l over its classes. Consistent; every
  level has its say.

A level without scores (the make, where only the model is trained) is the one that the level decoded below it implies,
whatever the decoding; where one level alone is scored all four are the same. Equal values go to the lowest class index,
decided from the coarsest level down.

A class that has no child at some level below is left out by `top_down` and `joint` where other classes have one. If
none has, the levels below it get class -1.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mtlcar.errors import UserError, did_you_mean
from mtlcar.metrics.scored_levels import Arrays, ScoredLevels
from mtlcar.tasks import TaskSet

DECODINGS = ("independent", "top_down", "marginal", "joint")


def decode_levels(
    scores: Mapping[str, Any], tasks: TaskSet, how: str, predictions: Mapping[str, Any] | None = None
) -> Arrays:
    """One class of each level of the hierarchy.

    Args:
        scores: {classification: class probabilities [N, C]}, arrays or tensors on the CPU; those of other tasks than
            levels are not read.
        how: one of `DECODINGS`.
        predictions: the network's own {task: [N]}. They come back with the levels' classes put in place, and are what
            `independent` takes for its levels' argmax, so that it is exactly what the network said.

    Returns:
        {task: [N]} in the order of `tasks`; classes int64, -1 where there is none. Without `predictions` the levels
        that are scored or have a scored level below.

    Raises:
        UserError: no such decoding.
    """
    _check(how)
    hierarchy = ScoredLevels(scores, tasks)
    own = {name: np.asarray(values) for name, values in (predictions or {}).items()}
    if how == "top_down":
        found = hierarchy.descend(hierarchy.evidence(np.maximum))
    elif how == "joint":
        found = hierarchy.descend(hierarchy.messages(np.maximum))
    else:
        found = {}
        for name in hierarchy.order[::-1]:  # the finest first: it implies levels that have no scores
            if name not in hierarchy.scored:
                child = hierarchy.finest[name]
                found[name] = lift(hierarchy.table(child, name), found[child])
            elif how == "marginal" and hierarchy.finest[name] != name:
                found[name] = hierarchy.summed(name).argmax(axis=1)
            else:
                found[name] = own[name].astype(np.int64) if name in own else hierarchy.scored[name].argmax(axis=1)
    found = {**own, **found}
    return {name: found[name] for name in tasks.names if name in found}


def probabilities(scores: Mapping[str, Any], tasks: TaskSet, how: str) -> Arrays:
    """The class probabilities of each level that a decoding works with, float64 {task: [N, C]}.

    - `joint`: p(path) is the product of p_l over the path's classes, normalised over all paths; a class has the sum
      over the paths through it.
    - `top_down`: p(path) is the coarsest level's p times, at each level below, p among the children of the class above,
      normalised to 1.
    - `marginal`: sums of the finest scored level's.
    - `independent`: each level's own; a level without scores has the sums.

    In a chain of levels, all but `independent` give the marginals of one distribution over paths: a make has the sum of
    its models'. The decoded class of a coarse level need not be the one with the largest probability there: a make with
    many fair models may have more than the make of the best path.

    Args:
        scores, how: as for `decode_levels`.
    """
    _check(how)
    hierarchy = ScoredLevels(scores, tasks)
    if how == "top_down":
        found = hierarchy.spread(hierarchy.evidence(np.logaddexp))
    elif how == "joint":
        found = hierarchy.spread(hierarchy.messages(np.logaddexp))
    else:
        own = hierarchy.scored if how == "independent" else {}
        found = {n: own[n].astype(np.float64) if n in own else hierarchy.summed(n) for n in hierarchy.order}
    return {name: found[name] for name in tasks.names if name in found}


def _check(how: str) -> None:
    if how not in DECODINGS:
        raise UserError(f"There is no decoding {how!r}.{did_you_mean(how, DECODINGS)} Use {', '.join(DECODINGS)}.")


def lift(table: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Classes [N] -> the classes above that they imply [N]; -1 stays -1."""
    return np.where(classes >= 0, table[np.maximum(classes, 0)], -1)
