"""Mixtures of expert trunks: what mmoe, cgc, ple and dselect_k have in common."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from mtlcar.architectures.base import Shared
from mtlcar.architectures.common import (
    TaskRepresentations,
    copies,
    freeze_unused_pooling,
    make_heads,
    pooling_parameters,
    several,
    trainable,
    trunks_of,
    typed,
)
from mtlcar.architectures.gates import Gate, GateInput, check_gate, gate_features, gate_width, mix
from mtlcar.backbones.base import BackboneFactory, StagedBackbone
from mtlcar.heads.base import HeadFactory
from mtlcar.options import whole
from mtlcar.tasks import TaskSet


class Experts(TaskRepresentations):
    """n expert trunks on one stem, and for each task the experts that it reads.

    Args:
        reads: per task the numbers of its experts, 0..n-1, in the order of its gate's outputs.
        share_until: first stages common to all experts, those of expert 0: the stem. 0: none, the experts read the
            image.
        gate: what the gates read; see `gate_features`.

    Attributes:
        backbone: expert 0, whose first `share_until` stages are the stem.
        others: experts 1..n-1, without the stem's stages.
        gate_width: width F of what `gate_features` gives.
    """

    others: nn.ModuleList

    def __init__(
        self,
        *,
        tasks: TaskSet,
        backbone: BackboneFactory,
        head: HeadFactory,
        name: str,
        reads: Sequence[Sequence[int]],
        share_until: int,
        gate: GateInput,
    ) -> None:
        super().__init__()
        several(name, tasks)
        check_gate(gate, share_until)
        self.name = name
        self.tasks = tasks
        self.reads = tuple(tuple(r) for r in reads)
        self.share_until = share_until
        self.gate = gate
        trunks = copies(backbone, 1 + max(map(max, self.reads)), share_until)
        self.backbone = trunks[0]
        self.others = nn.ModuleList(trunks[1:])
        self.gate_width = gate_width(gate, self.backbone, share_until, backbone.image_size)
        self.set_heads(make_heads(tasks, head, self.backbone.features))
        for e, trunk in enumerate(trunks):
            freeze_unused_pooling(trunk, [typed(self.heads)[t] for t in self.readers(e)])

    @property
    def experts(self) -> list[StagedBackbone]:
        """All n."""
        return [self.backbone, *trunks_of(self.others)]

    def readers(self, expert: int) -> list[int]:
        """The numbers of the tasks that read an expert."""
        return [t for t, read in enumerate(self.reads) if expert in read]

    def gate_features(self, stem: Tensor, image: Tensor) -> Tensor:
        """The map that enters the experts and the image -> what the gates read [B, F]."""
        return gate_features(self.gate, stem, image)

    def mixed(self, weights: Sequence[Tensor], maps: Sequence[Tensor]) -> list[Tensor]:
        """What each head takes: the mixture of its experts' last maps, or of the vectors that each of them pools."""
        vectors: dict[int, Tensor] = {}
        mixed = []
        for head, w, read in zip(typed(self.heads), weights, self.reads, strict=True):
            if head.takes == "vector":
                for e in read:
                    if e not in vectors:
                        vectors[e] = self.experts[e].pool(maps[e])
            mixed.append(mix(w, [vectors[e] if head.takes == "vector" else maps[e] for e in read]))
        return mixed

    def shared_pooling(self) -> Iterator[nn.Parameter]:
        """The layers of those experts' poolings whose vector at least two heads take."""
        for e, expert in enumerate(self.experts):
            if sum(typed(self.heads)[t].takes == "vector" for t in self.readers(e)) > 1:
                yield from (p for p in pooling_parameters(expert) if p.requires_grad)

    def compiled_parts(self) -> Iterator[nn.Module]:
        for expert in self.experts:
            yield from expert.stages


class OneLevel(Experts):
    """Stem, experts, and one mixture of them a task: mmoe, cgc and dselect_k differ in which experts a task reads and
    in what weighs them.

    Attributes:
        gates: private to their tasks.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.gates = self.make_gates()

    def make_gates(self) -> nn.ModuleList:
        """A gate a task."""
        return nn.ModuleList(Gate(self.gate_width, len(read)) for read in self.reads)

    def mixtures(self, stem: Tensor, image: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """The map that enters the experts [B, C, H, W] and the image [B, 3, S, S] -> each task's weights of the experts
        it reads, [B, its number] float32, each row summing to 1; and an extra loss, or None."""
        x = self.gate_features(stem, image)
        return [gate(x) for gate in self.gates], None

    def forward(self, image: Tensor, targets: dict[str, Tensor] | None = None) -> Shared:
        stem = self.backbone.through(image, 0, self.share_until)
        weights, extra_loss = self.mixtures(stem, image)
        maps = [expert.through(stem, self.share_until) for expert in self.experts]
        return self.read(self.mixed(weights, maps), extra_loss)

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """The stem, the experts that several tasks read, and the poolings whose vectors several heads take."""
        yield from trainable(self.backbone.stages[: self.share_until])
        for e, expert in enumerate(self.experts):
            if len(self.readers(e)) > 1:
                yield from trainable(expert.stage(k) for k in range(self.share_until, expert.depth))
        yield from self.shared_pooling()


def checked_number(key: str, number: object, smallest: int, instead: str) -> int:
    """`architecture.<key>` as a whole number of at least `smallest`; `instead` says what to do below that."""
    below = type(number) is int and number < smallest and instead
    return whole(f"architecture.{key}", number, least=smallest, because=f" ({instead.rstrip('.')})" if below else "")
