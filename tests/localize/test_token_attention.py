"""Attention by token against places counted one by one, and what the study's rank sums say of uniform attention."""

import numpy as np
import pytest

from mechmem.localize.token_attention import (
    attention_at_continuation,
    by_token,
    elsewhere,
    rank_sum_correlation,
    rank_sums,
    token_correlation,
)
from mechmem.truth.planted import planted


@pytest.fixture(scope="module")
def text():
    """Paragraphs that repeat their tokens more or less, and counts by a power law, as of words."""
    rng = np.random.default_rng(0)
    tokens = np.stack([rng.choice(rng.choice(300, rng.integers(3, 40), replace=False), 20) for _ in range(60)])
    return tokens, 1e6 / np.arange(1, 301)


def test_attention_is_that_of_run_with_cache(tiny_model, tiny_paragraphs):
    found = attention_at_continuation(tiny_model, tiny_paragraphs, [(1, 2), (0, 1)])
    _, cache = tiny_model.run_with_cache(tiny_paragraphs.tokens)
    for slot, (layer, head) in enumerate([(1, 2), (0, 1)]):
        wanted = cache["pattern", layer][:, head, 13, :13]
        np.testing.assert_allclose(found[:, slot], wanted, atol=1e-6)
    others = elsewhere(found)
    np.testing.assert_allclose(others[3], np.delete(found, 3, 0).mean(0))


def test_sums_by_rank_and_means_by_token_are_counted_place_by_place(text):
    tokens, counts = text
    attention = np.random.default_rng(1).dirichlet(np.ones(20), len(tokens))
    sums = rank_sums(tokens, attention, counts)
    slow = np.zeros_like(sums)
    for paragraph, row in enumerate(tokens):
        kinds = sorted({counts[token] for token in row})
        for position, token in enumerate(row):
            slow[paragraph, kinds.index(counts[token])] += attention[paragraph, position]
    np.testing.assert_allclose(sums, slow)
    types, places, mean = by_token(tokens, attention)
    for token, count, value in zip(types, places, mean, strict=True):
        here = attention[tokens == token]
        assert count == len(here) and value == pytest.approx(here.mean())


def test_uniform_attention_slopes_down_by_rank_and_says_nothing_by_token(text):
    tokens, counts = text
    uniform = np.full(tokens.shape, 1 / 20)
    names = ("spearman", "kendall", "pearson")
    by_rank = [rank_sum_correlation(rank_sums(tokens, uniform, counts), name) for name in names]
    assert max(by_rank) < -0.5, "no head is needed for a slope"
    assert all(np.isnan(token_correlation(tokens, uniform, counts, name)) for name in names)


def test_a_mean_by_token_tells_heads_apart_that_rank_sums_do_not(text):
    tokens, counts = text
    rarity = 1 / counts[tokens]
    rare, frequent = (weight / weight.sum(-1, keepdims=True) for weight in (rarity**0.3, rarity**-0.3))
    assert token_correlation(tokens, rare, counts, "spearman") < -0.5 < 0.5
    assert token_correlation(tokens, frequent, counts, "spearman") > 0.5
    by_rank = [rank_sum_correlation(rank_sums(tokens, head, counts), "spearman") for head in (rare, frequent)]
    assert max(by_rank) < -0.5, "both slope down, although one attends to frequent tokens"


def test_planted_rare_head_is_found_by_token():
    truth = planted()
    heads = [(1, head) for head in range(4)]
    attention = attention_at_continuation(truth.model, truth.memorized, heads)
    tokens, counts = truth.memorized.prefix.numpy(), truth.unigram_counts.numpy()
    found = [token_correlation(tokens, attention[:, head], counts, "spearman") for head in range(4)]
    assert truth.head == (1, 2) and int(np.argmin(found)) in (2, truth.silent[1]) and min(found) < -0.3
