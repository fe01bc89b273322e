"""DSelect-k's gate: selectors that each spell the number of one expert in bits that can be trained."""

import math
from functools import reduce
from operator import mul

import torch
from torch import Tensor, nn

EPSILON = 1e-6
"""Within logarithms, as the authors have it: at 0 the entropy's slope would be infinite; and under fractions."""


def smooth_step(t: Tensor, gamma: float) -> Tensor:
    """S(t) = -2 t^3 / gamma^3 + 3 t / (2 gamma) + 1/2 for |t| < gamma / 2, exactly 0 below and exactly 1 above, where
    its slope is 0 too (Hazimeh 2020, arXiv 2002.07772)."""
    u = (t / gamma).clamp(-0.5, 0.5)
    return u * (1.5 - 2 * u * u) + 0.5


class Constant(nn.Module):
    """The same trained n numbers for every image: [B, ...] -> [B, n]."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(n))

    def forward(self, x: Tensor) -> Tensor:
        # A new tensor, not a view of the parameter: torch's counter of operations stumbles over those without a graph.
        return self.bias.expand(len(x), -1).clone()


class Selectors(nn.Module):
    """One task's k selectors of E experts, m = ceil(log2 E) bits each:

        r_i[e] = prod over bits b of (S(z_ib) if bit b of e is 1 else 1 - S(z_ib)),   g = sum_i softmax(alpha)_i r_i

    z and alpha are constants or linear in what the gate reads. Expert 0's bits are all 0; the first bit is the highest.
    Where E is no power of two, codes without an expert take part of the mass: r_i and g then sum to less than 1.

    As in the authors' code z starts uniform in +-gamma / 100, next to S = 1/2 where its slope is largest, and alpha in
    +-0.05. Theirs holds for matrices as well, which over many inputs saturates the bits from the start (of a flattened
    224 px image, z would be spread by 2 gamma): here a matrix's entries have that range over sqrt(F).

    Args:
        features: F of what the gate reads, or None for constants.
    """

    codes: Tensor

    def __init__(self, experts: int, *, k: int, gamma: float, features: int | None) -> None:
        super().__init__()
        bits = (experts - 1).bit_length()
        self.k = k
        self.gamma = gamma
        self.z = _started(k * bits, features, gamma / 100)
        self.alpha = _started(k, features, 0.05) if k > 1 else None  # one selector has weight 1
        codes = [[bool(e >> b & 1) for b in reversed(range(bits))] for e in range(experts)]
        self.register_buffer("codes", torch.tensor(codes), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, F] -> g [B, E] and r [B, k, E], float32."""
        s = smooth_step(self.z(x).float().unflatten(1, (self.k, 1, -1)), self.gamma)
        # Not `prod`: its gradient asks on the host whether there are zeros.
        r = reduce(mul, torch.where(self.codes, s, 1 - s).unbind(-1))
        if self.alpha is None:
            return r[:, 0], r
        return (self.alpha(x).float().softmax(1)[:, :, None] * r).sum(1), r


def entropy(r: Tensor) -> Tensor:
    """- sum over e of r[e] log r[e] in nats: [..., E] -> [...]."""
    return -(r * (r + EPSILON).log()).sum(-1)


def inverse_mass(r: Tensor) -> Tensor:
    """1 / the mass of the codes that name an expert: [..., E] -> [...], at least 1. It keeps a selector from settling
    on a code that names none."""
    return 1 / r.sum(-1).clamp(min=EPSILON)


def _started(n: int, features: int | None, bound: float) -> nn.Module:
    layer = Constant(n) if features is None else nn.Linear(features, n)
    for p in layer.parameters():
        within = bound / math.sqrt(features or 1) if p.ndim == 2 else bound
        nn.init.uniform_(p, -within, within)
    return layer
