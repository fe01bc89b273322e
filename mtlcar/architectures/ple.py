"""Progressive layered extraction: customized gate control, level upon level."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import cast

from torch import Tensor, nn

from mtlcar.architectures.base import Shared
from mtlcar.architectures.cgc import shared_and_own
from mtlcar.architectures.common import trainable
from mtlcar.architectures.experts import Experts
from mtlcar.architectures.gates import Gate, GateInput, mix, over_positions
from mtlcar.backbones.base import BackboneFactory
from mtlcar.errors import UserError
from mtlcar.heads.base import HeadFactory
from mtlcar.tasks import TaskSet


class PLE(Experts):
    """Stacked `CGC` (Tang et al. 2020, RecSys, "Progressive layered extraction (PLE)", section 4.2). With x_t^0 and
    x_s^0 the stem's map and f_e^l the stages of expert e that belong to level l = 0..L-1,

        x_t^(l+1) = sum over e in S and P_t of g_te^l(x_t^l) h_e^l       h_e^l = f_e^l(x_s^l) for e in S
        x_s^(l+1) = sum over all e of g_se^l(x_s^l) h_e^l                h_e^l = f_e^l(x_t^l) for e in P_t

    z_t is level L-1's mixture for task t, of maps or pooled vectors as in `CGC`; that level has no gate s. The gates
    are softmax(W x + b) of the mean over positions of their own input, x_t^l or x_s^l; only level 0's may read the
    image instead.

    The stages after the stem are divided into levels as evenly as possible, later levels getting the remainder (3
    stages, 2 levels: 1 and 2). An expert's stages at all levels are those of one trunk, so that pretrained weights
    reach all of them.

    Below the last level everything that gate s reads is shared: the private experts P_t too, since their maps reach the
    other tasks through x_s. So are task t's gates from the third level from the end downwards, if it has private
    experts. The private experts of the last level and the gates of the last two are private.

    Departures. Tang 2020 has fully connected experts; see `MMoE`. LibMTL's class has no gate s: each shared expert
    runs T times, on every task's own mixture; it has a level for each of ResNet's stages, and gates on all the numbers
    of a map.

    Args:
        levels: L, 1 to the number of stages after the stem; 1 is `CGC`.
        shared_experts, task_experts, share_until: see `CGC`; the numbers of experts hold at every level.
        gate: stem or image, what level 0's gates read; see `MMoE`.
    """

    def __init__(
        self,
        *,
        tasks: TaskSet,
        backbone: BackboneFactory,
        head: HeadFactory,
        name: str = "ple",
        levels: int = 2,
        shared_experts: int = 1,
        task_experts: int | Mapping[str, int] = 1,
        share_until: int = 1,
        gate: GateInput = "stem",
    ) -> None:
        reads = shared_and_own(tasks, shared_experts, task_experts)
        super().__init__(
            tasks=tasks, backbone=backbone, head=head, name=name, reads=reads, share_until=share_until, gate=gate
        )
        self.shared_experts = shared_experts
        self.segments = segments(share_until, self.backbone.depth, levels)
        widths = [self.gate_width, *(self.backbone.channels[start - 1] for start, _ in self.segments[1:])]
        self.gates = nn.ModuleList(nn.ModuleList(Gate(width, len(read)) for read in reads) for width in widths)
        self.shared_gates = nn.ModuleList(Gate(width, len(self.experts)) for width in widths[:-1])

    def forward(self, image: Tensor, targets: dict[str, Tensor] | None = None) -> Shared:
        shared = self.backbone.through(image, 0, self.share_until)
        own = [shared] * len(self.tasks)
        shared_features = self.gate_features(shared, image)
        features = [shared_features] * len(own)
        for level, (start, stop) in enumerate(self.segments):
            weights = [gate(x) for gate, x in zip(self.task_gates()[level], features, strict=True)]
            inputs = self.inputs(shared, own)
            maps = [expert.through(x, start, stop) for expert, x in zip(self.experts, inputs, strict=True)]
            if level < len(self.shared_gates):
                own = [mix(w, [maps[e] for e in read]) for w, read in zip(weights, self.reads, strict=True)]
                shared = mix(self.shared_gates[level](shared_features), maps)
                features = [over_positions(x) for x in own]
                shared_features = over_positions(shared)
        return self.read(self.mixed(weights, maps))

    def task_gates(self) -> Sequence[nn.ModuleList]:
        """Per level a gate a task."""
        return cast(Sequence[nn.ModuleList], self.gates)

    def inputs(self, shared: Tensor, own: Sequence[Tensor]) -> list[Tensor]:
        """What each expert takes, in their order: shared ones the shared map, private ones their task's."""
        n = self.shared_experts
        return [shared] * n + [x for x, read in zip(own, self.reads, strict=True) for _ in read[n:]]

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """The stem, every expert and gate s below the last level, the shared experts at the last, and what the class
        says of gates."""
        yield from trainable(self.backbone.stages[: self.share_until])
        for level, (start, stop) in enumerate(self.segments):
            last = level == len(self.shared_gates)
            experts = self.experts[: self.shared_experts] if last else self.experts
            yield from trainable(expert.stage(k) for expert in experts for k in range(start, stop))
        yield from trainable(self.shared_gates)
        for gates in self.task_gates()[:-2]:
            mixed_on = [len(read) > self.shared_experts for read in self.reads]
            yield from trainable(gate for gate, yes in zip(gates, mixed_on, strict=True) if yes)
        yield from self.shared_pooling()


def segments(start: int, stop: int, levels: int) -> list[tuple[int, int]]:
    """Stages start..stop-1 -> `levels` runs of them (first, last + 1), as even as possible, longer ones later.

    Raises:
        UserError: a level would have no stage.
    """
    stages = stop - start
    if isinstance(levels, bool) or not isinstance(levels, int) or not 1 <= levels <= stages:
        raise UserError(
            f"architecture.levels should be 1 to {stages}: {stages} of the trunk's {stop} stages come after "
            f"architecture.share_until={start}, and each level has at least one. Found {levels!r}."
        )
    lengths = [(stages + level) // levels for level in range(levels)]
    return list(pairwise(accumulate(lengths, initial=start)))
