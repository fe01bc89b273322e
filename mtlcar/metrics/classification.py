"""Accuracy, top-k accuracy and macro F1 of one classification task, as sums."""

from typing import Any

import torch
from torch import Tensor

from mtlcar.metrics.sums import Sums

TOP_K = (3, 5)


class ClassificationSums(Sums):
    """Counts per class; exact (int64), so that any split of the images into batches gives the same values.

    A missing label (-1) takes no part. A missing prediction (-1: no class) is wrong.

    Args:
        classes: number C of classes. top-k is there for k < C only.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.ks = top_ks(classes)
        # One slot more than classes: it takes what is masked.
        for name, slots in (("hits", classes + 1), ("predicted", classes + 1), ("labelled", classes + 1)):
            self.add_state(name, torch.zeros(slots, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("scored", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("within", torch.zeros(len(self.ks), dtype=torch.int64), dist_reduce_fx="sum")
        self.hits: Tensor
        self.predicted: Tensor
        self.labelled: Tensor
        self.scored: Tensor
        self.within: Tensor

    def update(self, prediction: Tensor, target: Tensor, scores: Tensor | None = None) -> None:
        """Class indices int64 [B], labels int64 [B], class scores [B, C] (higher is likelier; any scale)."""
        valid = target >= 0
        slot = torch.where(valid, target, self.classes)
        predicted = torch.where(valid & (prediction >= 0), prediction, self.classes)
        one = torch.ones_like(slot)
        self.labelled = self.labelled.scatter_add(0, slot, one)
        self.predicted = self.predicted.scatter_add(0, predicted, one)
        self.hits = self.hits.scatter_add(0, slot, (valid & (prediction == target)).long())
        if scores is not None and self.ks:
            rank = label_rank(scores, target.clamp(min=0))
            self.scored = self.scored + valid.sum()
            self.within = self.within + torch.stack([(valid & (rank < k)).sum() for k in self.ks])

    def compute(self) -> dict[str, Any]:
        """`values`: the metrics that are defined; `classes`: labelled images and recall by class index.

        `macro_f1` is the plain mean over the classes that occur among labels or predictions (as torchmetrics' macro).
        """
        hits, predicted, labelled = (s[:-1].tolist() for s in (self.hits, self.predicted, self.labelled))
        total = sum(labelled)
        values: dict[str, float] = {}
        if total:
            values["accuracy"] = sum(hits) / total
            if scored := int(self.scored):
                values |= {f"top{k}": n / scored for k, n in zip(self.ks, self.within.tolist(), strict=True)}
            f1 = [2 * h / (p + n) for h, p, n in zip(hits, predicted, labelled, strict=True) if p + n]
            values["macro_f1"] = sum(f1) / len(f1)
        table = {c: {"count": n, "accuracy": h / n} for c, (h, n) in enumerate(zip(hits, labelled, strict=True)) if n}
        return {"values": values, "classes": table}


def top_ks(classes: int) -> tuple[int, ...]:
    """The k of 3 and 5 for which top-k says something about so many classes."""
    return tuple(k for k in TOP_K if k < classes)


def label_rank(scores: Tensor, target: Tensor) -> Tensor:
    """Classes that come before the label's, [B]: scores [B, C], target [B] in range.

    Of equal scores the lower index comes first, so that constant scores do not look right. A NaN score of the label
    ranks last.
    """
    own = scores.gather(1, target[:, None])
    index = torch.arange(scores.shape[1], device=scores.device)
    before = (scores > own) | ((scores == own) & (index < target[:, None])) | own.isnan()
    return before.sum(dim=1)
