"""Gates over experts: which weights each image gives them, and the mixture of what the experts say."""

from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor, nn

from mtlcar.backbones.base import StagedBackbone
from mtlcar.errors import UserError

GateInput = Literal["stem", "image"]


class Gate(nn.Module):
    """g(x) = softmax(W x + b): [B, F] -> weights [B, E], float32, each row summing to 1.

    W starts random and not at zero: experts that start from the same pretrained weights are equal, and it is only
    by what the gates weigh differently that their gradients, and then they themselves, come to differ.
    """

    def __init__(self, features: int, experts: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, experts)

    def forward(self, x: Tensor) -> Tensor:
        # In bfloat16 each weight would be off by up to 0.2 %, and so would the mixture's scale.
        return self.linear(x).float().softmax(-1)


def over_positions(feature_map: Tensor) -> Tensor:
    """[B, C, H, W] -> its mean over all positions [B, C], float32 also for a map in bfloat16."""
    return feature_map.float().mean((2, 3))


def gate_features(kind: GateInput, stem: Tensor, image: Tensor) -> Tensor:
    """What the gates read: of the map that the shared stages give [B, C, H, W], or of the image [B, 3, S, S]."""
    return over_positions(stem) if kind == "stem" else image.flatten(1)


def gate_width(kind: GateInput, trunk: StagedBackbone, share_until: int, image_size: int) -> int:
    """The width F of `gate_features`: channels of the last shared stage, or 3 S S."""
    return trunk.channels[share_until - 1] if kind == "stem" else 3 * image_size**2


def check_gate(kind: GateInput, share_until: int) -> None:
    """UserError for a gate that there is not, or one that reads a stem where there is none."""
    if kind not in get_args(GateInput):
        raise UserError(f"architecture.gate should be one of {', '.join(get_args(GateInput))}. Found {kind!r}.")
    if kind == "stem" and share_until == 0:
        raise UserError(
            "architecture.gate=stem reads what the stages common to all experts give, and with "
            "architecture.share_until=0 there are none. Share at least one, or set architecture.gate=image."
        )


def mix(weights: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """sum over e of weights[:, e] parts[e]: float32 [B, E] and E tensors [B, ...] -> [B, ...] in the parts' dtype.

    One after the other and not stacked: a stack would copy all the maps and give up their memory format.
    """
    of_each = [w.reshape(-1, *[1] * (parts[0].ndim - 1)) for w in weights.unbind(1)]
    total = of_each[0] * parts[0]
    for w, part in zip(of_each[1:], parts[1:], strict=True):
        total = total + w * part
    return total.to(parts[0].dtype)
