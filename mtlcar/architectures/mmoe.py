"""Multi-gate mixture of experts: every task mixes the same experts in its own way."""

from mtlcar.architectures.experts import OneLevel, checked_number
from mtlcar.architectures.gates import GateInput
from mtlcar.backbones.base import BackboneFactory
from mtlcar.heads.base import HeadFactory
from mtlcar.tasks import TaskSet


class MMoE(OneLevel):
    """z_t = sum over e of g_te(x) f_e(x), g_t(x) = softmax(W_t x + b_t), y_t = head_t(z_t) (Ma et al. 2018, KDD,
    "Modeling task relationships in multi-task learning with multi-gate mixture-of-experts").

    f_e is what the head takes of expert e: its last map [B, D, H, W], or the vector [B, D] that it pools from it. The
    stem and the experts are shared, the gates private.

    Departures. Ma 2018 has 8 small fully connected experts on the input vector, and gates on the same vector. Here
    experts are trunks, each as dear as hard parameter sharing's one: there are 3, they share the first stage, and the
    gates read what the experts read, averaged to a vector (gate=stem). The gates' gradient passes into the stem, as in
    Ma 2018 it passes into the embeddings that both read. LibMTL's class is share_until=0, gate=image: whole networks
    as experts (their number has no default), and gates on all the pixels.

    Args:
        experts: their number E, at least 2.
        share_until: first stages common to all experts, 0..K-1.
        gate: stem: the gates read the mean over all positions of the map that the common stages give (of a ViT: class
            token's row and grid alike); image: the flattened image, W_t [E, 3 S S].
    """

    def __init__(
        self,
        *,
        tasks: TaskSet,
        backbone: BackboneFactory,
        head: HeadFactory,
        name: str = "mmoe",
        experts: int = 3,
        share_until: int = 1,
        gate: GateInput = "stem",
    ) -> None:
        checked_number("experts", experts, 2, "One expert for all tasks is architecture=parallel.")
        reads = [range(experts) for _ in tasks]
        super().__init__(
            tasks=tasks, backbone=backbone, head=head, name=name, reads=reads, share_until=share_until, gate=gate
        )
