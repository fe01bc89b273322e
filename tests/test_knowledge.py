"""The exchange through the memory: retrieve from the k nearest tokens, write, and the information bottleneck."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mtlcar.architectures.knowledge import KnowledgeExchange, top_k_softmax


def exchange(width: int = 6, slots: int = 3, top_k: int = 4, *, noisy: bool = False) -> KnowledgeExchange:
    torch.manual_seed(0)
    return KnowledgeExchange(width, slots=slots, top_k=top_k, noisy=noisy)


def test_permuting_tokens_permutes_what_is_written_to_them() -> None:
    network, tokens, order = exchange(), torch.randn(2, 10, 6), torch.randperm(10)
    torch.testing.assert_close(network(tokens[:, order])[0], network(tokens)[0][:, order])


def test_retrieving_from_all_tokens_is_plain_attention() -> None:
    tokens = torch.randn(2, 10, 6)
    for k in (10, 11, 1000):
        network = exchange(top_k=k)
        query = network.retrieve_query(network.memory).expand(2, -1, -1)
        key, value = network.retrieve_key(tokens), network.retrieve_value(tokens)
        plain = nn.functional.scaled_dot_product_attention(query, key, value)
        torch.testing.assert_close(network.retrieve(tokens), plain)
    assert not torch.allclose(exchange(top_k=9).retrieve(tokens), plain)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12), st.integers(1, 14))
@settings(max_examples=60, deadline=None)
def test_top_k_keeps_the_largest_and_of_equal_ones_the_first(scores: list[int], k: int) -> None:
    weights = top_k_softmax(torch.tensor(scores).float(), k)
    kept = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]
    total = sum(math.exp(scores[i]) for i in kept)
    expected = [math.exp(s) / total if i in kept else 0.0 for i, s in enumerate(scores)]
    torch.testing.assert_close(weights, torch.tensor(expected))
    assert [i for i, w in enumerate(weights.tolist()) if w > 0] == sorted(kept)


def test_of_very_many_equal_scores_too_the_first_are_kept() -> None:
    scores = torch.arange(4).repeat(500).float()
    assert top_k_softmax(scores, 7).nonzero().flatten().tolist() == [3, 7, 11, 15, 19, 23, 27]


@pytest.mark.parametrize(("n", "gap"), [(3, 1.0), (100, 2.0), (1000, 5.0)])
def test_plain_attention_leaks_to_the_many_and_top_k_does_not(n: int, gap: float) -> None:
    scores = torch.zeros(n + 1)
    scores[0] = gap
    assert float(top_k_softmax(scores, n + 1)[1:].sum()) == pytest.approx(n / (n + math.exp(gap)), rel=1e-5)
    assert float(top_k_softmax(scores, 2)[1:].sum()) == pytest.approx(1 / (1 + math.exp(gap)), rel=1e-5)


def test_the_bottlenecks_loss_is_the_divergence_from_a_standard_normal() -> None:
    network, tokens = exchange(noisy=True).train(), torch.randn(3, 10, 6)
    mean = network.retrieve(tokens)
    deviation = (0.5 * network.log_variance(mean)).exp()
    normal = torch.distributions.Normal
    divergence = torch.distributions.kl_divergence(normal(mean, deviation), normal(torch.tensor(0.0), 1.0))
    torch.testing.assert_close(network(tokens)[1], divergence.sum() / 3)


def test_the_memory_is_drawn_in_training_with_that_mean_and_deviation_and_is_the_mean_in_evaluation() -> None:
    network, tokens = exchange(noisy=True), torch.randn(1, 10, 6)
    seen: list[Tensor] = []
    network.write = lambda tokens, retrieved: seen.append(retrieved) or tokens
    with torch.no_grad():
        network.log_variance.bias.fill_(0.5)
        network.train()(tokens.expand(20_000, -1, -1))
        network.eval()(tokens)
        mean = network.retrieve(tokens)
        torch.testing.assert_close(seen[1], mean)
        torch.testing.assert_close(seen[0].mean(0, keepdim=True), mean, atol=0.05, rtol=0)
        deviation = (0.5 * network.log_variance(mean)).exp()
        torch.testing.assert_close(seen[0].std(0, keepdim=True), deviation, atol=0, rtol=0.05)
