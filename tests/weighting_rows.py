"""One row for every conf/weighting/*.yaml: what its first call gives, and how it scales."""

from dataclasses import dataclass, field
from typing import Any

LOSSES = (0.7, 2.0)
OPPOSING = ((4.0, -1.0), (-1.0, 1.0))
"""Norms 2 and 1, cosine -1/2."""

GRADIENTS = ("parameters", "representation")


@dataclass(frozen=True)
class Row:
    """
    Attributes:
        expected: weights of the first call for LOSSES and (methods of the gradients) OPPOSING, derived by hand.
            Combiners: `applied` after the first `combine`. None: random.
        overrides: keys that the yaml needs to be usable at all.
        levels: where it works; `()` for functions of the losses.
        degree: d in w(s J) = s^d w(J); None where there is none.
        permutes: whether permuting the tasks permutes the first weights (random orders and draws do not).
        averages: whether every micro-batch moves its state on (tracked gradients), so that four are not one.
        extra: an optional package it needs.
    """

    expected: tuple[float, float] | None
    overrides: dict[str, Any] = field(default_factory=dict)
    levels: tuple[str, ...] = GRADIENTS
    degree: float | None = 0.0
    permutes: bool = True
    averages: bool = False
    extra: str | None = None


TRACKED = ("parameters",)


def first_of_two(n1: float, n2: float) -> tuple[float, float]:
    """The hull's point nearest to zero for norms n1, n2 and cosine -1/2."""
    first = (n2 * n2 + n1 * n2 / 2) / (n1 * n1 + n2 * n2 + n1 * n2)
    return first, 1 - first


ROWS = {
    # functions of the losses
    "equal": Row((1.0, 1.0), levels=()),
    "fixed": Row((0.25, 3.0), {"weights": {"make": 0.25, "weight": 3.0}}, levels=(), permutes=False),
    "uncertainty": Row((1.0, 0.5), levels=()),  # s = 0: a classification and a regression
    "dwa": Row((1.0, 1.0), levels=()),  # the first epoch
    "rlw": Row(None, levels=(), permutes=False),
    "gls": Row((1.4**0.5 / 1.4, 1.4**0.5 / 4), levels=()),  # GLS / (T L_t)
    "imtl_l": Row((1.0, 1.0), levels=()),  # s = 0
    "stch": Row((1 / 0.7, 1 / 2), levels=()),  # warm-up: sum of log L
    "famo": Row((2 / 2.7, 0.7 / 2.7), levels=()),  # z = 1/2: proportional to 1/L
    # functions of the Gramian
    "mgda": Row((2 / 7, 5 / 7)),  # (G_22 - G_12) / (G_11 + G_22 - 2 G_12)
    # the same with gradients divided by L, L n and n: their norms are 20/7 and 1/2; 10/7 and 1/2; 1 and 1
    "mgda_loss": Row(first_of_two(20 / 7, 1 / 2)),
    "mgda_loss_plus": Row(first_of_two(10 / 7, 1 / 2)),
    "mgda_l2": Row((0.5, 0.5)),
    "pcgrad": Row((1.25, 2.0), permutes=False),  # c_1 = (1, 1/1), c_2 = (1/4, 1)
    "gradvac": Row((1.25, 2.0), permutes=False),  # the first call is pcgrad's
    "imtl": Row((1 / 3, 2 / 3)),  # (n_2, n_1) / (n_1 + n_2)
    # b = G 1/2 = (1.5, 0), k = sqrt(3)/4; F grows with w_1, so w = (0, 1) and a = (1/2, 1/2 + k / 1)
    "cagrad": Row((0.5, 0.5 + 3**0.5 / 4)),
    "nash_mtl": Row((0.5 / 0.5**0.5, 1 / 0.5**0.5), degree=-1.0),  # 1 / (n_t sqrt(1 + cos))
    "fairgrad": Row((0.5 / 0.5**0.5, 1 / 0.5**0.5), degree=-1.0),  # alpha = 1 is Nash's
    # ((tr + sqrt(det)) I - G) 1/2 / sqrt(s_max (tr + 2 sqrt(det))) with tr = 5, det = 3, s_max = (5 + sqrt(13)) / 2
    "aligned_mtl": Row(
        tuple((x + 3**0.5) / 2 / ((2.5 + 13**0.5 / 2) * (5 + 2 * 3**0.5)) ** 0.5 for x in (2.0, 5.0))  # type: ignore
    ),
    "upgrad": Row((0.625, 1.0)),  # half of pcgrad's
    "gradnorm": Row((1.0, 1.0)),  # the update follows
    "callable": Row((2.0, 1.0), {"function": "tests.weighting_net.tenth"}, degree=None, permutes=False),
    # more than the Gramian
    "graddrop": Row(None, levels=("representation",), permutes=False),
    # Y = J/2, lambda = projection of (1/2, 1/2) - 0.1 (G/4) (1/2, 1/2)
    "moco": Row((0.48125, 0.51875), levels=TRACKED, averages=True),
    "db_mtl": Row((1.0, 2.0 / 0.7 / 0.5), levels=TRACKED, averages=True),  # norms of log-gradients: 2 / 0.7 and 1 / 2
    "torchjd": Row(None, levels=GRADIENTS, extra="torchjd"),
}
