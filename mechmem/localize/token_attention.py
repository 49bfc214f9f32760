"""Attention against the frequency of the token attended to, by token: as the study sums it, and as a mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from scipy.stats import kendalltau, pearsonr, rankdata, spearmanr

from mechmem.data.paragraphs import Paragraphs
from mechmem.localize.heads import head_patterns
from mechmem.model.load import HookedTransformer

Coefficient = Literal["spearman", "kendall", "pearson"]
COEFFICIENTS: Mapping[str, Any] = {"spearman": spearmanr, "kendall": kendalltau, "pearson": pearsonr}
BATCH = 32


def attention_at_continuation(
    model: HookedTransformer, paragraphs: Paragraphs, heads: Sequence[tuple[int, int]]
) -> Float[np.ndarray, "paragraph head_slot key_pos"]:
    """Attention of chosen heads from position prefix_len to the prefix (the study's query 50 and keys 0..49)."""
    query = paragraphs.prefix_len
    rows = [
        head_patterns(model, part, heads)[:, :, query, :query]
        for part in paragraphs.tokens[:, : query + 1].split(BATCH)
    ]
    return torch.cat(rows).double().numpy()


def elsewhere(attention: Float[np.ndarray, "paragraph ..."]) -> Float[np.ndarray, "paragraph ..."]:
    """What the other paragraphs give to the same positions, mean: what a head would do that sees positions alone."""
    return (attention.sum(0) - attention) / (len(attention) - 1)


def by_token(
    tokens: Int[np.ndarray, "paragraph key_pos"], values: Float[np.ndarray, "paragraph key_pos"]
) -> tuple[Int[np.ndarray, " token"], Int[np.ndarray, " token"], Float[np.ndarray, " token"]]:
    """The distinct tokens, in how many places each stands, and the mean of `values` over these places."""
    types, member = np.unique(tokens, return_inverse=True)
    places = np.bincount(member.ravel())
    return types, places, np.bincount(member.ravel(), values.ravel()) / places


def token_correlation(
    tokens: Int[np.ndarray, "paragraph key_pos"],
    values: Float[np.ndarray, "paragraph key_pos"],
    counts: Num[np.ndarray, " d_vocab"],
    coefficient: Coefficient,
) -> float:
    """Correlation, over distinct tokens, of a token's mean value and its corpus count.

    Pearson's takes log(1 + count); the others are of ranks. Below zero: rare tokens have the higher values. NaN where
    all tokens have one value: uniform attention has no correlation with anything.
    """
    types, _, mean = by_token(tokens, values)
    return _correlation(mean, np.log1p(counts[types]), coefficient)


def rank_sums(
    tokens: Int[np.ndarray, "paragraph key_pos"],
    attention: Float[np.ndarray, "paragraph key_pos"],
    counts: Num[np.ndarray, " d_vocab"],
) -> Float[np.ndarray, "paragraph rank"]:
    """Each paragraph's attention by the dense rank of the token's corpus count in the paragraph; the rarest is first.

    The study sums this over paragraphs and correlates the sums with the rank. Tokens that repeat share a rank, so few
    paragraphs have high ranks, and the sums there are small whatever the head does: uniform attention gives the same
    picture. Use `token_correlation` for what a head does.
    """
    ranks = rankdata(counts[tokens], "dense", axis=-1).astype(np.int64) - 1
    result = np.zeros(tokens.shape)
    rows = np.broadcast_to(np.arange(len(tokens))[:, None], tokens.shape)
    np.add.at(result, (rows, ranks), attention)
    return result[:, : int(ranks.max()) + 1]


def rank_sum_correlation(sums: Float[np.ndarray, "paragraph rank"], coefficient: Coefficient) -> float:
    """The study's statistic: correlation of the sum over paragraphs with the rank. See `rank_sums`."""
    total = sums.sum(0)
    # A resample may have no paragraph that reaches the highest ranks.
    reached = total > 0
    return _correlation(total[reached], np.flatnonzero(reached).astype(float), coefficient)


def _correlation(values: np.ndarray, frequency: np.ndarray, coefficient: Coefficient) -> float:
    # Means of equal numbers differ by rounding, which would be correlated like anything else.
    if len(values) < 2 or np.ptp(values) <= 1e-12 * np.abs(values).max(initial=0) or np.ptp(frequency) == 0:
        return float("nan")
    return float(COEFFICIENTS[coefficient](values, frequency)[0])
