"""Agreement of two levels of a hierarchy: the coarse head's distribution, and what the fine head's implies for it."""

import math
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from mtlcar.errors import UserError
from mtlcar.tasks import TaskSet

Kind = Literal["js", "kl"]


class LevelMatching(nn.Module):
    """A divergence between p(make | x) of the coarse head and q(make | x) = sum of p(model | x) over the make's models.

    - js: the Jensen-Shannon divergence, KL(p || m) / 2 + KL(q || m) / 2 with m = (p + q) / 2, in nats, at most ln 2. As
      in HAF (Garg, Sani, Anand: Learning Hierarchy Aware Features for Reducing Mistake Severity, ECCV 2022, arXiv
      2207.12646), between classifiers of neighbouring levels; the other losses of that paper are not here.
    - kl: KL(p || q) + KL(q || p) (Jeffreys), without a bound: it is stricter where one of the two is sure.

    No label is needed, so images without a fine label take part: their coarse label reaches the fine head through p
    (using it so is ours). Gradients reach both heads. The value is the mean over the images of a batch, summed over the
    pairs of levels, float32 also under autocast; 0 where every pair agrees. Label smoothing pulls the two apart a
    little where makes have different numbers of models.

    Args:
        tasks: the trained tasks; every classification whose parent is among them makes a pair.
        kind: `js` or `kl`.

    Attributes:
        pairs: (parent, child) names.

    Raises:
        UserError: another kind, no pair of levels, or a coarse class that no fine class implies.
    """

    def __init__(self, tasks: TaskSet, kind: Kind = "js") -> None:
        super().__init__()
        self.kind = check_kind(kind)
        self.pairs = tuple(
            (t.parent, t.name) for t in tasks.classification if t.parent is not None and t.parent in tasks
        )
        if not self.pairs:
            raise UserError(
                "loss.matching compares a class task with the coarser one above it, and both have to be trained. "
                f"Trained here: {', '.join(tasks.names)}. Use loss.matching=0, or an architecture, data.levels and a "
                "label_transform that train two levels."
            )
        for i, (parent, child) in enumerate(self.pairs):
            table = child_table(tasks.parent_of[child], tasks[parent].classes, child)
            self.register_buffer(f"children{i}", torch.tensor(table), persistent=False)

    def forward(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """Logits {task: [B, classes]} -> float32 scalar."""
        values = []
        for i, (parent, child) in enumerate(self.pairs):
            log_p = outputs[parent].float().log_softmax(1)
            log_q = log_marginal(outputs[child].float().log_softmax(1), self.get_buffer(f"children{i}"))
            values.append(divergence(log_p, log_q, self.kind).mean())
        return torch.stack(values).sum()


def check_kind(kind: Kind) -> Kind:
    """Itself, or a UserError."""
    if kind not in get_args(Kind):
        raise UserError(f"loss.matching_kind should be {' or '.join(get_args(Kind))}. Found {kind!r}.")
    return kind


def child_table(parent_of: tuple[int, ...], parents: tuple[str, ...], what: str) -> list[list[int]]:
    """Parent -> the indices of its children, filled up with the number of children, which is the index of none."""
    children = [[c for c, up in enumerate(parent_of) if up == p] for p in range(len(parents))]
    childless = [name for name, found in zip(parents, children, strict=True) if not found]
    if childless:
        raise UserError(
            f"loss.matching: {', '.join(map(repr, childless[:5]))} has no {what}, so its probability would be pulled "
            "to 0 whatever the labels say. Leave the class out of the data, or use loss.matching=0."
        )
    width = max(map(len, children))
    return [found + [len(parent_of)] * (width - len(found)) for found in children]


def log_marginal(log_child: Tensor, children: Tensor) -> Tensor:
    """log of the sum over each parent's children: [B, C] and indices [P, K] (C: no child) -> [B, P].

    By indices and not by a product with a matrix of ones, which would underflow, and autocast would round it.
    """
    padded = nn.functional.pad(log_child, (0, 1), value=-math.inf)
    return padded[:, children].logsumexp(2)


def divergence(log_p: Tensor, log_q: Tensor, kind: Kind) -> Tensor:
    """Between two distributions given by logarithms [B, P], in nats: [B]."""
    p, q = log_p.exp(), log_q.exp()
    if kind == "kl":
        return ((p - q) * (log_p - log_q)).sum(1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return (p * (log_p - log_m) + q * (log_q - log_m)).sum(1) / 2
