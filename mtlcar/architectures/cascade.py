"""Heads in a directed acyclic graph: what one task says is fed to the next."""

from collections.abc import Iterator, Sequence
from typing import get_args

import torch
from torch import Tensor, nn

from mtlcar.architectures.base import Architecture, Shared
from mtlcar.architectures.common import as_output, freeze_unused_pooling, represent, trainable, typed
from mtlcar.architectures.feed import Combine, Feed, Join, fed_value, fed_width
from mtlcar.architectures.task_graph import parents
from mtlcar.backbones.base import StagedBackbone
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
            label in training and the softmax in evaluation and for missing labels.
        detach: cut the gradient from the child's loss into the parent's head and, through it, into the backbone.
        combine: concat, add or gate; see `Join`.
    """

    has_bottleneck = True

    def __init__(
        self,
        *,
        tasks: TaskSet,
        backbone: StagedBackbone,
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
        if len(tasks) < 2:
            raise UserError(
                f"architecture=cascade needs at least two tasks; here is {tasks.names[0]} alone. "
                "Use architecture=single, or another label_transform or data.levels."
            )
        self.name = name
        self.tasks = tasks
        self.feed: Feed = feed
        self.detach = detach
        self.backbone = backbone
        self.parents = parents(tasks, order)
        self.feeding = tuple(n for n in tasks.names if any(n in p for p in self.parents.values()))
        heads: dict[str, Head] = {}
        joins: dict[str, Join] = {}
        for child, above in self.parents.items():
            width = sum(fed_width(tasks[p], heads[p], feed) for p in above)
            joins[child] = Join(combine if above else "concat", backbone.features, width)
            heads[child] = head(backbone.features, tasks[child].outputs, extra_features=joins[child].extra_features)
        self._check_feed(heads)
        freeze_unused_pooling(backbone, list(heads.values()))
        # Lists and not dicts: ModuleDict refuses names that nn.Module has itself, `type` among them.
        self.heads = nn.ModuleList(heads[n] for n in tasks.names)
        self.joins = nn.ModuleList(joins[n] for n in tasks.names)

    def _check_feed(self, heads: dict[str, Head]) -> None:
        if self.feed == "hidden" and not heads[self.feeding[0]].has_hidden:
            raise UserError(
                "architecture.feed=hidden needs a head with a hidden layer: with head=linear the child would get the "
                "features that it has anyway. Use head=mlp or head=conv, or another feed."
            )
        values = [n for n in self.feeding if self.tasks[n].kind == "regression"]
        if self.feed == "label" and values:
            raise UserError(
                f"architecture.feed=label hands on class labels; {', '.join(values)} is a regression. Use feed=logits, "
                "or an architecture.order in which it feeds nothing."
            )

    def forward(self, image: Tensor, targets: dict[str, Tensor] | None = None) -> Shared:
        forcing = self.feed == "label" and self.training
        if forcing and targets is None:
            raise ValueError("architecture.feed=label needs the targets in training.")
        heads = typed(self.heads)
        bottleneck = represent(self.backbone, heads[0], image)
        x = heads[0].input_dropout(bottleneck)
        outputs: dict[str, Tensor] = {}
        fed: dict[str, Tensor] = {}
        for name, above in self.parents.items():
            i = self.tasks.names.index(name)
            features, extra = self.joins[i](x, torch.cat([fed[p] for p in above], 1)) if above else (x, None)
            hidden = heads[i].hidden(features, extra)
            raw = heads[i].output(hidden)
            task = self.tasks[name]
            outputs[name] = as_output(task, raw)
            if name in self.feeding:
                label = targets[name] if forcing and targets is not None else None
                value = fed_value(task, self.feed, hidden, raw, label)
                fed[name] = value.detach() if self.detach else value
        return Shared({n: outputs[n] for n in self.tasks.names}, bottleneck)

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """The backbone; and, where the gradient passes, what lies in the heads that feed others."""
        yield from trainable([self.backbone])
        if self.detach or self.feed == "label":
            return
        for name in self.feeding:
            i = self.tasks.names.index(name)
            beyond = set(typed(self.heads)[i].output.parameters()) if self.feed == "hidden" else set()
            yield from (p for p in trainable([self.joins[i], self.heads[i]]) if p not in beyond)
