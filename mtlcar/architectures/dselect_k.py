"""DSelect-k: a mixture of experts in which every task comes to read at most k of them."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from mtlcar.architectures.experts import checked_number
from mtlcar.architectures.mmoe import MMoE
from mtlcar.architectures.selectors import Selectors, entropy, inverse_mass
from mtlcar.backbones.base import BackboneFactory
from mtlcar.errors import UserError
from mtlcar.heads.base import HeadFactory
from mtlcar.options import number
from mtlcar.tasks import TaskSet

SelectorInput = Literal["static", "stem", "image"]


class DSelectK(MMoE):
    """z_t = sum over e of g_te(x) f_e(x) as in MMoE, with g_t of k smooth selectors of one expert each (Hazimeh et al.
    2021, arXiv 2106.03760); see `Selectors`.

    Once a selector's bits are saturated it reads one expert and no gradient moves it any more; before that it reads
    several. In training the objective gains, with r_ti the weights [E] that selector i of task t gives the experts,

        entropy * sum over t, i of H(r_ti)   +   sum over t, i of 1 / sum_e r_ti[e]   (E not a power of two only)

    of gates that read something, the mean of this over the batch. The second term is the authors': codes that name no
    expert get their share, and the mixture is not divided by what is left, but the term is least where it is 1.

    Weight decay, which the matrices of z and alpha get like any others, draws saturated bits back towards 1/2.

    Departures. The authors' code sums both terms over the batch, so that their size grows with it. Every expert is
    computed whatever its weight: what the sparse gate saves at inference is not taken. LibMTL's class is share_until=0,
    gate=image, entropy=1e-6 with the regulariser of the last task alone. It leaves gamma at 1 whatever it is told, and
    where NumPy takes the string "0" for true (2.4 does) it gives all experts one code.

    Args:
        experts: their number E, at least 2.
        share_until: first stages common to all experts, 0..K-1.
        gate: static: trained constants, the same for every image; stem, image: linear in what MMoE's gates read.
        k: selectors a task, 1..E: the most experts it reads in the end.
        gamma: width of the smooth step; bits are 0 or 1 outside +-gamma / 2.
        entropy: lambda, its default that of the authors' code. The paper tunes it; larger values (1e-3 .. 1) push the
            bits to 0 and 1, where they stay.
    """

    def __init__(
        self,
        *,
        tasks: TaskSet,
        backbone: BackboneFactory,
        head: HeadFactory,
        name: str = "dselect_k",
        experts: int = 4,
        share_until: int = 1,
        gate: SelectorInput = "stem",
        k: int = 2,
        gamma: float = 1.0,
        entropy: float = 1e-6,
    ) -> None:
        if gate not in get_args(SelectorInput):
            raise UserError(f"architecture.gate should be one of {', '.join(get_args(SelectorInput))}. Found {gate!r}.")
        checked_number("k", k, 1, "It is how many experts a task may read.")
        checked_number("experts", experts, 2, "One expert for all tasks is architecture=parallel.")
        if k > experts:
            raise UserError(f"architecture.k should be at most architecture.experts={experts}. Found {k}.")
        self.static = gate == "static"  # before the rest, which makes the gates
        self.k = k
        self.gamma = number("architecture.gamma", gamma, above=0)
        self.entropy = number("architecture.entropy", entropy, least=0)
        super().__init__(
            tasks=tasks,
            backbone=backbone,
            head=head,
            name=name,
            experts=experts,
            share_until=share_until,
            gate="image" if gate == "static" else gate,  # constants read nothing of it
        )

    def make_gates(self) -> nn.ModuleList:
        features = None if self.static else self.gate_width
        return nn.ModuleList(Selectors(len(r), k=self.k, gamma=self.gamma, features=features) for r in self.reads)

    def mixtures(self, stem: Tensor, image: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """As in MMoE, but a row sums to less than 1 where codes that name no expert have mass; the regularisers in
        training."""
        x = self.gate_features(stem, image)
        weights, r = zip(*(gate(x) for gate in self.gates), strict=True)
        return list(weights), self.regulariser(torch.stack(r)) if self.training else None

    def regulariser(self, r: Tensor) -> Tensor | None:
        """[T, B, k, E] -> a scalar, or None where there is nothing to add."""
        terms = [self.entropy * entropy(r)] if self.entropy else []
        experts = r.shape[-1]
        if experts & (experts - 1):
            terms.append(inverse_mass(r))
        return sum(terms[1:], terms[0]).sum((0, 2)).mean() if terms else None
