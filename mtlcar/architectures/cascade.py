"""Heads in a directed acyclic graph: what one task says is fed to the next."""

from collections.abc import Iterator, Sequence
from typing import cast, get_args

import torch
from torch import Tensor, nn

from mtlcar.architectures.base import Architecture, Shared
from mtlcar.architectures.common import (
    above_trunk,
    as_output,
    freeze_unused_pooling,
    head_inputs,
    pooling_parameters,
    several,
    trainable,
    typed,
)
from mtlcar.architectures.feed import Combine, Feed, Join, fed_value, fed_width
from mtlcar.architectures.task_graph import parents
from mtlcar.backbones.base import BackboneFactory
from mtlcar.errors import UserError
from mtlcar.heads.base import Head, HeadFactory
from mtlcar.tasks import TaskSet


class Cascade(Architecture):
    """make = W1 f + b1, model = W2 [f ; make] + b2, f = Dropout_p(backbone(x)) (arXiv 2603.01746), and its relatives.

    With linear heads, feed=logits, combine=concat and no detach this has the same function class as parallel heads:
    W2 [f ; W1 f + b1] + b2 folds into one linear map of f, so only the path of the optimizer differs. feed=softmax,
    feed=label, detach, combine=gate or heads with a hidden layer change what can be expressed or learned.

    Args:
        order: [parent, child] edges; None: from the tasks (`task_graph.default_edges`).
        feed: what a parent hands on: its logits (a regression: its value), softmax, hidden representation, or the true
            label in training and, in evaluation and for missing labels, the softmax; for combine=select the one-hot
            predicted class instead.
        detach: cut the gradient from the child's loss into the parent's head and, through it, into the backbone.
        combine: concat, add, gate or select; see `Join`.

    combine=select is regression given the class: a value y whose one parent is a classification has an output y_c for
    each of that parent's classes, and y = sum_c p_c y_c. With feed=label y is, in training, the output of the true
    class, which alone gets a gradient, and in evaluation and for missing labels that of the predicted class; with
    feed=softmax it is the expectation over the predicted classes.
    """

    has_bottleneck = True

    def __init__(
        self,
        *,
        tasks: TaskSet,
        backbone: BackboneFactory,
        head: HeadFactory,
        name: str = "cascade",
        order: Sequence[Sequence[str]] | None = None,
        feed: Feed = "logits",
        detach: bool = False,
        combine: Combine = "concat",
    ) -> None:
        super().__init__()
        for key, value, choices in (("feed", feed, get_args(Feed)), ("combine", combine, get_args(Combine))):
            if value not in choices:
                raise UserError(f"architecture.{key} should be one of {', '.join(choices)}. Found {value!r}.")
        several("cascade", tasks)
        self.name = name
        self.tasks = tasks
        self.feed: Feed = feed
        self.combine: Combine = combine
        self.can_be_averaged = combine != "select"
        self.detach = detach
        self.backbone = backbone()
        features = self.backbone.features
        self.parents = parents(tasks, order)
        if combine == "select":
            self._check_select()
        self.feeding = tuple(n for n in tasks.names if any(n in p for p in self.parents.values()))
        heads: dict[str, Head] = {}
        joins: dict[str, Join] = {}
        for child, above in self.parents.items():
            width = sum(fed_width(tasks[p], heads[p], feed) for p in above)
            joins[child] = Join(combine if above else "concat", features, width)
            join = joins[child]
            heads[child] = head(tasks[child], features, extra_features=join.extra_features, outputs=join.outputs)
        self._check_feed(heads)
        freeze_unused_pooling(self.backbone, list(heads.values()))
        self.heads = nn.ModuleList(heads[n] for n in tasks.names)
        self.joins = nn.ModuleList(joins[n] for n in tasks.names)

    def _check_select(self) -> None:
        if self.feed not in ("label", "softmax"):
            raise UserError(
                "architecture.combine=select weighs one output per class by probabilities, which architecture.feed="
                f"{self.feed} does not hand on. Use architecture.feed=label or architecture.feed=softmax."
            )
        for child, above in self.parents.items():
            if not above:
                continue
            kinds = [self.tasks[p].kind for p in above]
            if self.tasks[child].kind == "classification" or kinds != ["classification"]:
                raise UserError(
                    "architecture.combine=select is for regressions with one classification above each. Found "
                    f"{' and '.join(f'{p} ({k})' for p, k in zip(above, kinds, strict=True))} above {child} "
                    f"({self.tasks[child].kind}). {self._edge_for_select()}"
                )

    def _edge_for_select(self) -> str:
        """What to do: an edge from the finest class to the first value, or another method."""
        if not (self.tasks.classification and self.tasks.regression):
            return "Use another architecture.combine: of these tasks none is of the other kind."
        return (
            f"Give such edges alone: architecture.order=[[{self.tasks.finest().name},{self.tasks.regression[0].name}]]."
        )

    def _check_feed(self, heads: dict[str, Head]) -> None:
        bare = [n for n in self.feeding if not heads[n].has_hidden]
        if self.feed == "hidden" and bare:
            raise UserError(
                f"architecture.feed=hidden needs a head with a hidden layer: the linear one of {bare[0]} would hand on "
                "the features that its child has anyway. Use head=mlp or head=conv, or another feed."
            )
        values = [n for n in self.feeding if self.tasks[n].kind == "regression"]
        if self.feed == "label" and values:
            raise UserError(
                f"architecture.feed=label hands on class labels; {', '.join(values)} is a regression. Use feed=logits, "
                "or an architecture.order in which it feeds nothing."
            )

    def _reached(self, task: str, passes: bool) -> set[str]:
        """The tasks whose heads the loss of `task` reaches, itself among them."""
        found = {task}
        if passes:
            for parent in self.parents[task]:
                found |= self._reached(parent, passes)
        return found

    def forward(self, image: Tensor, targets: dict[str, Tensor] | None = None) -> Shared:
        forcing = self.feed == "label" and self.training
        if forcing and targets is None:
            raise ValueError("architecture.feed=label needs the targets in training.")
        heads, joins = typed(self.heads), cast(Sequence[Join], self.joins)
        bottleneck, inputs = head_inputs(self.backbone, heads, self.backbone(image)[-1])
        outputs: dict[str, Tensor] = {}
        fed: dict[str, Tensor] = {}
        for name, above in self.parents.items():
            i = self.tasks.names.index(name)
            given = torch.cat([fed[p] for p in above], 1) if above else None
            hidden = heads[i].hidden(*joins[i](inputs[i], given))
            raw = heads[i].output(hidden)
            task = self.tasks[name]
            outputs[name] = as_output(task, joins[i].read(raw, given))
            if name in self.feeding:
                label = targets[name] if forcing and targets is not None else None
                value = fed_value(task, self.feed, hidden, raw, label, one_class=self.combine == "select")
                fed[name] = value.detach() if self.detach else value
        return Shared({n: outputs[n] for n in self.tasks.names}, bottleneck)

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """The backbone; and, where the gradient passes, what lies in the heads that feed others."""
        passes = not self.detach and self.feed != "label"
        pooled = [
            any(typed(self.heads)[self.tasks.names.index(n)].takes == "vector" for n in self._reached(t, passes))
            for t in self.tasks.names
        ]
        private = {id(p) for p in pooling_parameters(self.backbone)} if sum(pooled) < 2 else set()
        yield from (p for p in trainable([self.backbone]) if id(p) not in private)
        if not passes:
            return
        for name in self.feeding:
            i = self.tasks.names.index(name)
            beyond = set(typed(self.heads)[i].output.parameters()) if self.feed == "hidden" else set()
            yield from (p for p in trainable([self.joins[i], self.heads[i]]) if p not in beyond)

    def above_bottleneck(self) -> Iterator[nn.Parameter]:
        return above_trunk(self)
