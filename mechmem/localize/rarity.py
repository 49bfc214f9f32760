"""Statistics of attention against the frequency of the tokens attended to."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from scipy.stats import rankdata

Attention = Float[np.ndarray, "paragraph head key_pos"]
PerKey = Float[np.ndarray, "paragraph key_pos"]
PerHead = Float[np.ndarray, " head"]
# Shuffled frequencies, or pairs of keys, held at once: 4 or 8 bytes each.
_CHUNK = 2_000_000


def spearman(attention: Attention, frequency: PerKey) -> PerHead:
    """Spearman's rank correlation over each paragraph's keys, mean over paragraphs; ties get their mean rank.

    Paragraphs where one side is constant say nothing and are left out; NaN if all are.
    """
    ours, theirs = _unit(rankdata(attention, axis=-1)), _unit(rankdata(frequency, axis=-1))
    return _mean(einsum(ours, theirs, "paragraph head key_pos, paragraph key_pos -> paragraph head"))


def pearson(attention: Attention, log_frequency: PerKey) -> PerHead:
    """Pearson's correlation over each paragraph's keys, mean over paragraphs, as `spearman`."""
    ours, theirs = _unit(attention), _unit(log_frequency)
    return _mean(einsum(ours, theirs, "paragraph head key_pos, paragraph key_pos -> paragraph head"))


def _unit(values: np.ndarray) -> np.ndarray:
    """Values centred and scaled to length 1 on the last axis; NaN where they are all equal."""
    centred = values - values.mean(-1, keepdims=True)
    constant = (values == values[..., :1]).all(-1, keepdims=True)
    length = np.where(constant, np.nan, np.linalg.norm(centred, axis=-1, keepdims=True))
    return centred / length


def kendall(attention: Attention, frequency: PerKey) -> PerHead:
    """Kendall's tau-b over each paragraph's keys, mean over paragraphs.

    tau-b = (concordant - discordant pairs) / sqrt(pairs untied in attention * pairs untied in frequency). Paragraphs
    where one side is constant are left out; NaN if all are.
    """
    # Ranks are small whole numbers: exact in float32, and so are their differences' signs.
    ours, theirs = (torch.from_numpy(rankdata(x, "dense", axis=-1).astype(np.float32)) for x in (attention, frequency))
    first, second = torch.triu_indices(frequency.shape[-1], frequency.shape[-1], 1)
    rows = []
    step = max(1, _CHUNK // (attention.shape[1] * max(1, len(first))))
    for a, f in zip(ours.split(step), theirs.split(step), strict=True):
        ranked, counted = ((x[..., first] - x[..., second]).sign_() for x in (a, f))
        balance = torch.einsum("phk,pk->ph", ranked, counted)
        untied = (ranked.abs_().sum(-1).double() * counted.abs_().sum(-1, keepdim=True).double()).sqrt()
        rows.append(balance / torch.where(untied == 0, torch.nan, untied))
    return _mean(torch.cat(rows).numpy())


def _mean(rows: Float[np.ndarray, "paragraph head"]) -> PerHead:
    with warnings.catch_warnings():
        # A head without any paragraph that says something is NaN, as documented.
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
        return np.nanmean(rows, axis=0)


def rarest_weight(
    frequency: Float[np.ndarray, "*batch key_pos"], fraction: float
) -> Float[np.ndarray, "*batch key_pos"]:
    """Weight 1 on each paragraph's rarest keys, 0 on the others; sums to round(fraction * keys), at least 1.

    Keys tied at the border share the weight that is left, so that no position is preferred.
    """
    need = max(1, round(fraction * frequency.shape[-1]))
    border = np.partition(frequency, need - 1, axis=-1)[..., need - 1 : need]
    rarer, tied = frequency < border, frequency == border
    share = (need - rarer.sum(-1, keepdims=True)) / tied.sum(-1, keepdims=True)
    return np.where(rarer, 1.0, tied * share)


def rarity_weights(
    frequency: Float[np.ndarray, "paragraph key_pos"], parts: int
) -> Float[np.ndarray, "part paragraph key_pos"]:
    """The weight of each key in each of some equal parts of a paragraph's keys, from the rarest part on.

    Every key's weights sum to 1. Parts end at whole keys, and tied keys share what the parts that they lie in have, so
    that no position is preferred. With fewer keys than parts, parts are empty from the second on.
    """
    keys = frequency.shape[-1]
    ends = [max(1, round(part * keys / parts)) for part in range(1, parts + 1)]
    reached = np.stack([rarest_weight(frequency, end / keys) for end in ends])
    return np.diff(reached, axis=0, prepend=0)


def rarity_counts(frequency: Float[np.ndarray, "paragraph key_pos"], parts: int) -> Float[np.ndarray, " part"]:
    """The median frequency of the keys of each part, from the rarest on; NaN for an empty part."""
    ordered, keys = np.sort(frequency, axis=-1), frequency.shape[-1]
    ends = [0, *(max(1, round(part * keys / parts)) for part in range(1, parts + 1))]
    return np.array(
        [np.median(ordered[:, low:high]) if high > low else np.nan for low, high in itertools.pairwise(ends)]
    )


def shuffled_p_value(
    matched: Attention,
    tokens: Int[np.ndarray, "paragraph key_pos"],
    counts: Float[np.ndarray, " d_vocab"],
    *,
    fraction: float,
    permutations: int,
    seed: int,
) -> PerHead:
    """Chance that any head's mass on the rarest keys is as far out as this head's, were counts unrelated to tokens.

    1. Shuffle the counts over the token types that occur. The type is the unit, not the place where it stands: a head
       that likes one word likes it in every paragraph, and shuffling places would take each for a new observation.
    2. Every head's mean mass on the keys that are now rarest is one draw of its null. Divide by the spread of the
       null, so that heads of different sharpness can be compared.
    3. A head's p-value is the share of draws, the observed one among them, whose largest head reaches its value.

    Args:
        matched: attention minus its expectation, [paragraph, head, key_pos]; its mean over paragraphs is 0 at every
            key.
        tokens: ids of the keys.
        counts: of every id.
        fraction: of keys that are the rarest.
        permutations: shuffles.
        seed: of the shuffles.

    Returns:
        p-values between 1 / (permutations + 1) and 1, one-sided. The chance that any is at most 0.05 is at most 5 %,
        and less where types that stand in few places are the rare ones.
    """
    rng = np.random.default_rng(seed)
    types, members = np.unique(tokens, return_inverse=True)
    members = members.reshape(tokens.shape)
    flat = rearrange(matched, "paragraph head key_pos -> (paragraph key_pos) head") / len(tokens)

    def masses(frequency: Float[np.ndarray, "draw paragraph key_pos"]) -> Float[np.ndarray, "draw head"]:
        return rearrange(rarest_weight(frequency, fraction), "draw paragraph key -> draw (paragraph key)") @ flat

    chunk = max(1, _CHUNK // max(tokens.size, len(types)))
    null = []
    for start in range(0, permutations, chunk):
        copies = np.broadcast_to(counts[types], (min(chunk, permutations - start), len(types)))
        null.append(masses(rng.permuted(copies, axis=-1)[:, members]))
    # What was observed counts as one of the draws, in the spread too: only so do all of them stand on equal terms.
    draws = np.concatenate([masses(counts[types][members][None]), *null])
    # A head that attends nowhere in the prefix has rounding errors for a spread: it is never far out.
    distance = (draws - draws.mean(0)) / np.maximum(draws.std(0), 1e-12)
    return (distance.max(-1)[:, None] >= distance[0]).mean(0)
