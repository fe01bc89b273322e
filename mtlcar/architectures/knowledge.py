"""The knowledge extraction module: tokens exchange what they know through a memory of a few slots."""

import math

import torch
from torch import Tensor, nn

from mtlcar.options import whole

FIRST_LOG_VARIANCE = -5.0
"""Where the noise of the information bottleneck starts: a standard deviation of 0.08."""


def top_k_softmax(scores: Tensor, k: int) -> Tensor:
    """Softmax over the k largest scores of a row, 0 elsewhere; ties go to the lower index, k >= n means all.

    Scores [..., n] -> weights float32 [..., n], each row summing to 1.
    """
    scores = scores.float()
    if k >= scores.shape[-1]:
        return scores.softmax(-1)
    # Not topk: which of several equal scores that takes is not defined.
    largest = scores.detach().sort(dim=-1, descending=True, stable=True).indices[..., :k]
    kept = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, largest, True)
    return scores.masked_fill(~kept, -math.inf).softmax(-1)


class KnowledgeExchange(nn.Module):
    """All tasks' tokens F [B, n, d] -> what the memory R [L, d] writes to each of them, F^ [B, n, d] (KEM of
    arXiv 2410.03778):

        retrieve:  R^ = topk-softmax((R Wq)(F Wk)^T / sqrt(d)) F Wv      [B, L, d]
        write:     F^ = softmax((F Wq')(R^ Wk')^T / sqrt(d)) R^ Wv'      [B, n, d]

    One head; the six maps d -> d have no bias. R is learned and the same for every image: nothing is carried over
    from one image or batch to the next. 4 n L d multiply-adds for the attention, not 2 n^2 d.

    With `noisy` the memory is an information bottleneck: in training R^ is a draw from N(mu, sigma^2), mu being the R^
    above and log sigma^2 linear in it; in evaluation it is mu.

    Args:
        slots: L, at least 2: a softmax over one slot is 1, and Wq' and Wk' would never train.
        top_k: k, at least 2: with one token kept a slot's softmax is 1, and R, Wq and Wk would never train.
    """

    def __init__(self, width: int, *, slots: int, top_k: int, noisy: bool) -> None:
        super().__init__()
        self.width = width
        slots = whole(
            "architecture.slots", slots, least=2, because=" (a softmax over one slot is constant and does not train)"
        )
        self.top_k = whole(
            "architecture.top_k", top_k, least=2, because=" (a softmax over one token is constant; R would not train)"
        )
        self.memory = nn.Parameter(torch.randn(slots, width))
        self.retrieve_query, self.retrieve_key, self.retrieve_value = (self._map(width) for _ in range(3))
        self.write_query, self.write_key, self.write_value = (self._map(width) for _ in range(3))
        self.log_variance = nn.Linear(width, width) if noisy else None
        if self.log_variance is not None:
            nn.init.constant_(self.log_variance.bias, FIRST_LOG_VARIANCE)

    @staticmethod
    def _map(width: int) -> nn.Linear:
        return nn.Linear(width, width, bias=False)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """F -> F^, and in training with `noisy` the divergence KL(N(mu, sigma^2) || N(0, I)), a scalar: summed over
        slots and features, the mean over the images."""
        retrieved, divergence = self.retrieve(tokens), None
        if self.log_variance is not None and self.training:
            retrieved, divergence = _draw(retrieved, self.log_variance(retrieved))
        return self.write(tokens, retrieved), divergence

    def retrieve(self, tokens: Tensor) -> Tensor:
        """F [B, n, d] -> R^ [B, L, d]."""
        scores = self.retrieve_query(self.memory) @ self.retrieve_key(tokens).mT / math.sqrt(self.width)
        values = self.retrieve_value(tokens)
        return top_k_softmax(scores, self.top_k).to(values.dtype) @ values

    def write(self, tokens: Tensor, retrieved: Tensor) -> Tensor:
        """F [B, n, d] and R^ [B, L, d] -> F^ [B, n, d]."""
        scores = self.write_query(tokens) @ self.write_key(retrieved).mT / math.sqrt(self.width)
        values = self.write_value(retrieved)
        return scores.float().softmax(-1).to(values.dtype) @ values


def _draw(mean: Tensor, log_variance: Tensor) -> tuple[Tensor, Tensor]:
    """[B, L, d] each -> a draw from N(mean, variance) with its gradient, and its divergence from N(0, I)."""
    mu, log_variance = mean.float(), log_variance.float()
    drawn = mu + (0.5 * log_variance).exp() * torch.randn_like(mu)
    divergence = 0.5 * (mu.square() + log_variance.exp() - 1 - log_variance).sum((1, 2)).mean()
    return drawn.to(mean.dtype), divergence
