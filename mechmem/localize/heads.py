"""Heads that attend to rare tokens, and the attention patterns of chosen heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

from mechmem.data.bounds import Count, Seed
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, batches
from mechmem.data.token_counts import as_counts
from mechmem.localize.head_scores import SCORES, pattern_scores
from mechmem.localize.rarity import (
    kendall,
    pearson,
    rarest_weight,
    rarity_counts,
    rarity_weights,
    shuffled_p_value,
    spearman,
)
from mechmem.model.batch_size import chosen_batch_size
from mechmem.model.forward import check_fit, residual_before
from mechmem.model.head_names import heads_of
from mechmem.model.hooks import recording
from mechmem.model.lean.patterns import pattern_reader
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public
from mechmem.model.vocabulary import vocabulary

RAREST = 0.1
TENTHS = 10


@public("run", renamed={"paras": "paragraphs"})
def rare_token_attention(
    model: HookedTransformer,
    paragraphs: Paragraphs,
    unigram_counts: Any,
    *,
    permutations: Count = 1000,
    seed: Seed = 0,
    batch_size: Count | None = None,
    dtype: torch.dtype | None = None,
    progress: ProgressLike = None,
) -> xr.Dataset:
    """How much each head attends to the rare tokens of the prefix when the continuation begins.

    The query is position prefix_len, the first continuation token (paper: query 50, keys 0..49; Stoehr et al. 2024,
    arXiv 2403.19851, section 5): it reads the true first token and predicts the second. Keys are positions 0 ...
    prefix_len - 1. Frequencies are corpus counts of the key tokens.

    The excess compares like with like: attention depends on the position of a key, so from the mass on a paragraph's
    rarest 10 % of prefix tokens (5 of 50, at least one; tokens tied at the border share what is left) the mass that
    the *other* paragraphs put on the same positions is taken off. Paragraphs that are near-duplicates of each other
    hide it: keep one of each cluster.

    The p-value tests the excess. Counts are shuffled over the token types of the prefixes (not over places: a head
    that likes one frequent or rare word does so in every paragraph, which is one observation and not many); each
    head's excess is divided by its spread over the shuffles, and compared with the largest value among *all* heads in
    each shuffle (max-statistic). So it is one-sided and corrected over heads: if counts had nothing to do with
    attention, the chance that any p-value is below 0.05 would be at most 5 %. It is 5 % where all types stand in about
    as many places, and 0 to 2 % with counts of real text: there rare types stand in few places, and a shuffle that
    calls a frequent one rare moves more attention than the true counts can. Shuffling only among types that stand in
    about as many places was no more powerful (65 against 70 % of weak preferences found on the bundled paragraphs).

    Args:
        model: left as it is.
        paragraphs: at least two.
        unigram_counts: how often each token id occurs in the corpus, [d_vocab]: any array-like.
        permutations: shuffles; the smallest p-value is 1 / (permutations + 1).
        seed: of the shuffles.
        batch_size: paragraphs of one forward; None: chosen for the machine.
        dtype: of the forward; torch.bfloat16 is faster on CPUs that know it, and reorders keys whose attention is
            nearly equal: the excess hardly moves, a rank correlation may by 0.1. None, and with hooks on the model: the
            model's own.
        progress: called with (paragraphs done, paragraphs).

    Returns:
        Dataset [layer, head]:
        spearman, kendall (tau-b): rank correlation of attention and frequency over a paragraph's keys, pearson:
        correlation of attention with log(1 + frequency); mean over paragraphs, -1 to 1; *lower* (negative): attends to
        rare tokens; NaN where attention or frequency is constant in every paragraph;
        excess: attention mass on the rarest tokens minus the position-matched expectation; higher: attends to rare
        tokens;
        mass_over_uniform: the same mass minus that of attention spread evenly over the prefix_len + 1 visible keys;
        higher: attends to the rarest tokens, or to where they stand;
        p_value: of the excess, 0 to 1; lower: less likely by chance;
        tenth_mass and tenth_expected [tenth, layer, head]: attention mass on each tenth of a paragraph's prefix
        tokens, from the rarest (0) to the most frequent (9), and the mass that the other paragraphs put on the same
        positions; their difference at tenth 0 is the excess. The coordinate `tenth_count` is the median corpus count
        of a tenth's tokens;
        previous_token, duplicate_token, induction (attention mass, 0 to 1) and entropy (nats): what else the head
        attends to, over all queries up to prefix_len, see `pattern_scores`; NaN without a repeated token.

    Raises:
        InputError: fewer than two paragraphs, counts of another length or below zero, or paragraphs that do not fit.
    """
    check_fit(model, paragraphs)
    counts = as_counts(unigram_counts, model.cfg.d_vocab, vocabulary(model))
    if len(paragraphs) < 2:
        raise InputError(
            f"got {len(paragraphs)} paragraph; need at least 2: the expectation comes from the others' attention"
        )
    attention, looks = _attention(model, paragraphs, batch_size, dtype, progress)
    tokens = paragraphs.prefix.cpu().numpy()
    frequency = counts[tokens]
    weight = rarest_weight(frequency, RAREST)
    # With n paragraphs, own minus mean of the others = n / (n - 1) times own minus mean of all.
    matched = (attention - attention.mean(0)) * len(paragraphs) / (len(paragraphs) - 1)
    excess = einsum(matched, weight, "paragraph head key_pos, paragraph key_pos -> head") / len(paragraphs)
    mass = einsum(attention, weight, "paragraph head key_pos, paragraph key_pos -> head") / len(paragraphs)
    values = {
        **_by_tenth(attention, matched, frequency),
        "spearman": spearman(attention, frequency),
        "kendall": kendall(attention, frequency),
        # A token of the paragraphs that the corpus lacks has no logarithm; one more of each changes no other by much.
        "pearson": pearson(attention, np.log1p(frequency)),
        "excess": excess,
        "mass_over_uniform": mass - weight[0].sum() / (paragraphs.prefix_len + 1),
        "p_value": shuffled_p_value(matched, tokens, counts, fraction=RAREST, permutations=permutations, seed=seed),
        **looks,
    }
    result = _dataset(model, values, {"query_pos": paragraphs.prefix_len, "paragraphs": len(paragraphs), "seed": seed})
    return result.assign_coords(tenth=np.arange(TENTHS), tenth_count=("tenth", rarity_counts(frequency, TENTHS)))


def head_patterns(
    model: HookedTransformer, tokens: Int[Tensor, "paragraph pos"], heads: Sequence[tuple[int, int] | str]
) -> Float[Tensor, "paragraph head_slot query_pos key_pos"]:
    """Attention patterns of chosen heads, for views.

    Args:
        model: left as it is.
        tokens: ids; all of them run in one forward.
        heads: (layer, head) pairs, zero-based, or names like "L1H2"; one slot each, in this order.

    Returns:
        Attention from query to key, 0 to 1, rows summing to 1, on the CPU.

    Raises:
        InputError: no pair, or one that the model does not have.
    """
    pairs = heads_of(model, heads)
    names = {layer: f"blocks.{layer}.attn.hook_pattern" for layer, _ in pairs}
    with torch.no_grad(), recording(model, names.values()) as recorded:
        residual_before(model, tokens.to(model.cfg.device), max(names) + 1)
    return torch.stack([recorded[names[layer]][:, head] for layer, head in pairs], dim=1).cpu()


def _attention(
    model: HookedTransformer,
    paragraphs: Paragraphs,
    batch_size: int | None,
    dtype: torch.dtype | None,
    progress: ProgressLike,
) -> tuple[Float[np.ndarray, "paragraph layer_head key_pos"], dict[str, Float[np.ndarray, " layer_head"]]]:
    """Attention from position prefix_len to the prefix, and what the patterns look like; all heads of layer 0 first."""
    query = paragraphs.prefix_len
    # Later tokens cannot change what a causal model does here.
    tokens = paragraphs.tokens[:, : query + 1].to(model.cfg.device)
    read = pattern_reader(model, dtype)
    parts = []
    sums = torch.zeros(len(SCORES), model.cfg.n_layers, model.cfg.n_heads, dtype=torch.float64)
    counted = torch.zeros(len(SCORES), dtype=torch.float64)
    size = chosen_batch_size(batch_size, model.W_E.device, 32)
    for part in batches(len(paragraphs), size, progress):
        batch = tokens[part]
        rows = []
        number = torch.zeros(len(SCORES), dtype=torch.float64)
        for layer, pattern in enumerate(read(batch)):
            rows.append(pattern[:, :, query, :query].cpu())
            found, number = pattern_scores(pattern, batch)
            sums[:, layer] += found.cpu()
        counted += number
        parts.append(torch.stack(rows))
    joined = rearrange(torch.cat(parts, 1), "layer paragraph head key_pos -> paragraph (layer head) key_pos")
    # Without any repeated token nothing is known of duplicates and induction.
    means = (sums / torch.where(counted == 0, torch.nan, counted)[:, None, None]).flatten(1).numpy()
    return joined.double().numpy(), dict(zip(SCORES, means, strict=True))


def _by_tenth(
    attention: Float[np.ndarray, "paragraph layer_head key_pos"],
    matched: Float[np.ndarray, "paragraph layer_head key_pos"],
    frequency: Float[np.ndarray, "paragraph key_pos"],
) -> dict[str, Float[np.ndarray, "tenth layer_head"]]:
    """Mass on each tenth of the keys, from the rarest on, and what is expected at the same positions."""
    weights = rarity_weights(frequency, TENTHS)
    mass, over = (
        einsum(x, weights, "paragraph head key_pos, tenth paragraph key_pos -> tenth head") / len(frequency)
        for x in (attention, matched)
    )
    return {"tenth_mass": mass, "tenth_expected": mass - over}


def _dataset(model: HookedTransformer, values: dict[str, np.ndarray], attrs: dict[str, int]) -> xr.Dataset:
    layers, heads = model.cfg.n_layers, model.cfg.n_heads
    more, mass = "attends more to rare tokens", "attention mass, 0 to 1"
    words = {
        "spearman": {"units": "rank correlation", "higher": "attends more to frequent tokens"},
        "kendall": {"units": "rank correlation, tau-b", "higher": "attends more to frequent tokens"},
        "pearson": {"units": "correlation with log(1 + count)", "higher": "attends more to frequent tokens"},
        "excess": {"units": mass, "higher": more, "expectation": "other paragraphs' attention to the same positions"},
        "mass_over_uniform": {"units": mass, "higher": more, "expectation": "attention spread evenly"},
        "tenth_mass": {"units": mass, "higher": "attends more to tokens of this rarity"},
        "tenth_expected": {"units": mass, "higher": "other paragraphs attend more to the same positions"},
        "p_value": {"units": "1", "higher": "more likely by chance", "correction": "max-statistic over heads"},
        **{name: {"units": unit, "higher": higher} for name, (unit, higher) in SCORES.items()},
    }
    data = {
        name: (
            ("tenth", "layer", "head")[-value.ndim - 1 :],
            rearrange(value, "... (layer head) -> ... layer head", layer=layers),
            words[name],
        )
        for name, value in values.items()
    }
    return xr.Dataset(data, {"layer": np.arange(layers), "head": np.arange(heads)}, attrs)
