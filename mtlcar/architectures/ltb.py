"""Learning to branch: a tree of stages whose shape is trained."""

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from mtlcar.architectures.base import Shared
from mtlcar.architectures.branches import Choice, leave_out, leave_out_pooling
from mtlcar.architectures.common import (
    TaskRepresentations,
    copies,
    freeze_unused_pooling,
    make_heads,
    represent,
    several,
    trainable,
    trunks_of,
    typed,
)
from mtlcar.backbones.base import BackboneFactory, StagedBackbone
from mtlcar.heads.base import HeadFactory
from mtlcar.options import number, whole
from mtlcar.tasks import TaskSet

Path = tuple[int, ...]
"""The branch that a task goes through in each unshared stage, input side first."""


class LTB(TaskRepresentations):
    """Learning to branch (Guo, Lee, Ulbricht 2020, arXiv 2006.01895).

    Of K stages the first s are shared. Every later one has several copies, its branches. Branch j of stage k takes

        x = sum_i a_ji z_i,   a_j one-hot, drawn from softmax(l_j) (Gumbel-softmax, straight-through)

    with z_i the map of branch i of stage k - 1 and l_j trained logits. The branches of stage s all take the one shared
    map (s = 0: the image). The last stage has T branches and task t reads branch t. Logits start at 0.

    - Training: for the first epochs x is the mean of the parents and the logits stand still; then parents are drawn in
      every forward pass, from the device's global generator, at the temperature
      tau = temperature / sqrt(1 + ((temperature / final_temperature)^2 - 1) p), p from 0 (first epoch) to 1 (last).
      A network that `begin_epoch` never told of an epoch is in the only one of a run, and draws.
    - Evaluation: every branch takes its likeliest parent, at a tie the first, in the warm-up too; nothing is drawn,
      and branches that no task reaches are not computed (under `torch.compile` they are, and not used).
    - `pruned()` is that tree by itself, without the other branches and the logits; it can be trained further.

    Copies with the same pretrained weights stay equal in the warm-up, below the last stage: their gradients are. Random
    draws tell them apart afterwards. Frozen pretrained stages never differ: share them.

    Departures. The authors search the tree and then train it anew from the start; here, as in LibMTL, the weights found
    on the way are evaluated. tau is LibMTL's 5 / sqrt(epoch + 1) of a run of 100 epochs, the same for any length.
    LibMTL has T branches in every stage and the stem, warms up for 1 % of the epochs and draws in evaluation as well.

    Args:
        share_until: s, shared first stages, 0 to K - 2.
        branches: of every unshared stage but the last, at least 2; None: T.
        warmup: share of the epochs, 0 to below 1, begun ones whole; the last epoch is none of them.
        temperature, final_temperature: tau in the first and in the last epoch; the draws do not depend on it, only
            their gradients do, which are smoother and more biased at high tau.
    """

    def __init__(
        self,
        *,
        tasks: TaskSet,
        backbone: BackboneFactory,
        head: HeadFactory,
        name: str = "ltb",
        share_until: int = 1,
        branches: int | None = None,
        warmup: float = 0.05,
        temperature: float = 5.0,
        final_temperature: float = 0.5,
    ) -> None:
        super().__init__()
        several("ltb", tasks)
        if branches is not None:
            whole("architecture.branches", branches, least=2)
        number("architecture.warmup", warmup, least=0, below=1)
        number("architecture.temperature", temperature, above=0)
        number("architecture.final_temperature", final_temperature, above=0, most=temperature)
        self.name = name
        self.tasks = tasks
        self.warmup = warmup
        self.temperatures = (float(temperature), float(final_temperature))
        inner = len(tasks) if branches is None else branches
        trunks = copies(backbone, max(inner, len(tasks)), share_until, own=2)  # with one, no branch has a choice
        depth = trunks[0].depth
        self.unshared = range(share_until, depth)
        self.widths = [inner] * (len(self.unshared) - 1) + [len(tasks)]
        self.paths: tuple[Path, ...] | None = None  # of a pruned network
        self.begin_epoch(0, 1)
        heads = make_heads(tasks, head, trunks[0].features)
        for j, trunk in enumerate(trunks):
            leave_out(trunk, [k for k, width in zip(self.unshared, self.widths, strict=True) if j >= width])
            if j < len(tasks):
                freeze_unused_pooling(trunk, [heads[j]])
            else:
                leave_out_pooling(trunk)
        self.backbone = trunks[0]
        self.others = nn.ModuleList(trunks[1:])
        self.choices = nn.ModuleList(
            nn.ModuleList(Choice(parents) for _ in range(width))
            for parents, width in zip(self.widths[:-1], self.widths[1:], strict=True)
        )
        self.set_heads(heads)

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        first, last = self.temperatures
        progress = min(epoch / max(epochs - 1, 1), 1.0)
        tau = first / math.sqrt(1 + ((first / last) ** 2 - 1) * progress)
        warming_up = epoch < self.warmup * epochs and epoch < epochs - 1
        self.temperature = None if warming_up else tau

    def forward(self, image: Tensor, targets: dict[str, Tensor] | None = None) -> Shared:
        x = self.backbone.through(image, 0, self.unshared.start)
        everywhere = self.paths is None and (self.training or torch.compiler.is_compiling())
        maps = self._through_all(x) if everywhere else self._along(self._paths(), x)
        trunks = [self._trunk(t) for t in range(len(self.tasks))]
        return self.read([represent(*parts) for parts in zip(trunks, typed(self.heads), maps, strict=True)])

    def _trunk(self, j: int) -> StagedBackbone:
        return trunks_of(self.others)[j - 1] if j else self.backbone

    def _choices(self, step: int) -> Sequence[Choice]:
        """Those of the branches of the unshared stage number `step`, counted from 0, which has none."""
        return cast(Sequence[Choice], self.choices[step - 1])

    def _through_all(self, x: Tensor) -> list[Tensor]:
        """The shared map -> the maps of all T branches of the last stage."""
        maps: list[Tensor] = []
        for step, k in enumerate(self.unshared):
            below = maps
            maps = []
            for j in range(self.widths[step]):
                if step:
                    choice = self._choices(step)[j]
                    x = choice(below, self.temperature) if self.training else choice.pick(below)
                maps.append(self._trunk(j).stage(k)(x))
        return maps

    def _along(self, paths: Sequence[Path], x: Tensor) -> list[Tensor]:
        """The same, of the tree of these paths alone."""
        maps = {0: x}
        for step, k in enumerate(self.unshared):
            parent = {path[step]: path[step - 1] if step else 0 for path in paths}
            maps = {j: self._trunk(j).stage(k)(maps[i]) for j, i in parent.items()}
        return [maps[path[-1]] for path in paths]

    def _paths(self) -> tuple[Path, ...]:
        """A path a task, by the likeliest parents. Waits for the device once."""
        if self.paths is not None:
            return self.paths
        steps = range(1, len(self.widths))
        found = iter(torch.stack([c.logits.argmax() for step in steps for c in self._choices(step)]).tolist())
        parents = {step: [next(found) for _ in range(self.widths[step])] for step in steps}
        paths = []
        for t in range(len(self.tasks)):
            path = [t]
            for step in reversed(steps):
                path.append(parents[step][path[-1]])
            paths.append(tuple(reversed(path)))
        return tuple(paths)

    def tree(self) -> dict[str, Path]:
        """Task -> its branch in every unshared stage, input side first: tasks share a stage where their branches are
        equal."""
        return dict(zip(self.tasks.names, self._paths(), strict=True))

    def findings(self) -> dict[str, Any]:
        return {"tree": {task: list(path) for task, path in self.tree().items()}}

    def pruned(self) -> "LTB":
        """A copy that has the tree of today's choices alone, in training too."""
        if self.paths is not None:
            return self
        tree = copy.deepcopy(self)
        tree.paths = self._paths()
        tree.choices = nn.ModuleList()
        for j in range(max(self.widths)):
            unused = [k for step, k in enumerate(self.unshared) if all(path[step] != j for path in tree.paths)]
            leave_out(tree._trunk(j), unused)
        return tree

    def _branches(self, step: int) -> dict[int, int]:
        """The branches of an unshared stage, and how many tasks reach each in training."""
        if self.paths is not None:
            on = [path[step] for path in self.paths]
            return {j: on.count(j) for j in on}
        last = step == len(self.widths) - 1
        return dict.fromkeys(range(self.widths[step]), 1 if last else len(self.tasks))

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """All below the last stage, logits included; of a pruned network what lies on the paths of two tasks."""
        yield from trainable(self.backbone.stage(k) for k in range(self.unshared.start))
        for step, k in enumerate(self.unshared):
            shared = [j for j, reached in self._branches(step).items() if reached > 1]
            yield from trainable(self._trunk(j).stage(k) for j in shared)
            if step and self.paths is None:
                yield from trainable(self._choices(step)[j] for j in shared)

    def compiled_parts(self) -> Iterator[nn.Module]:
        yield from (self.backbone.stage(k) for k in range(self.unshared.start))
        for step, k in enumerate(self.unshared):
            yield from (self._trunk(j).stage(k) for j in self._branches(step))
