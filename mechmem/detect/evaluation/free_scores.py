"""Scores that need no detector: what logits and tokens say of whether a text is recited. The baselines to beat."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import xarray as xr
from jaxtyping import Float, Int, Num

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.token_counts import as_counts
from mechmem.detect.evaluation.ngram_counts import NgramCounts

# MinK% and MinK%++ average this share of the tokens.
SHARE = 0.2
# What each score is, in the order of the answer. The sign makes the higher score that of the more expected text.
MEANING = {
    "top_1": "probability of the first choice for the next token",
    "margin": "logit of the first choice minus that of the second",
    "entropy": "entropy of the next token's distribution, negative",
    "nll": "mean log p of the tokens said (running NLL, negative)",
    "mink": "mean log p of the fifth of the tokens said with the lowest (MinK%)",
    "minkpp": "the same of log p in standard deviations above its mean (MinK%++)",
    "zlib": "bits that zlib takes for the text said, for each nat of its NLL",
    "distinct": "share of different tokens among those said (no repetition)",
    "rarity": "mean of -log of the corpus frequency of the tokens said",
    "ngrams": "mean log(1 + count in the corpus) of the n-grams that end in the tokens said",
    "prefix_nll": "mean log p of the prefix, the same at every step",
    "prefix_mink": "MinK% of the prefix",
    "prefix_minkpp": "MinK%++ of the prefix",
    "prefix_rarity": "mean of -log of the corpus frequency of the prefix's tokens",
}
HIGHER = "the text is more likely recited"


def free_scores(
    features: xr.Dataset,
    paragraphs: Paragraphs,
    *,
    counts: Any = None,
    ngrams: NgramCounts | None = None,
    tokenizer: Any = None,
) -> xr.DataArray:
    """The baselines at every step, from the whole text said so far.

    Args:
        features: what `detection_features` returned, with "output"; with "prefix" the prefix's scores are added.
        paragraphs: those that it was given.
        counts: how often each token id occurs in the corpus, [d_vocab]: adds the rarities.
        ngrams: of the corpus: adds "ngrams".
        tokenizer: turns tokens into the text that zlib compresses; None: the ids are compressed.

    Returns:
        DataArray [baseline, paragraph, k], higher: more likely recited (`MEANING` says what each is). Scores of the
        text said are 0 at k = 0, where there is none. Of greedy text some signs are open: MinK%++ goes to 0 from above
        where a first choice becomes certain, and rarity depends on the corpus. Choose their signs on other clusters.

    Raises:
        InputError: features without "output", or of other paragraphs.
    """
    if "output" not in features:
        raise InputError('got features without output; need it: detection_features(..., features=("output", ...))')
    if not np.array_equal(features.paragraph.values, paragraphs.ids):
        raise InputError("got features of other paragraphs; need those that detection_features was given, in its order")
    ks = features.k.values.tolist()
    output, said = features.output, features.said.values
    found = {
        "top_1": np.exp(output.sel(statistic="top_logprob").values),
        "margin": output.sel(statistic="margin").values,
        "entropy": -output.sel(statistic="entropy").values,
        "nll": _means(-features.said_nll.values, ks),
        "mink": np.stack([lowest_mean(-features.said_nll.values[:, :k]) for k in ks], 1),
        "minkpp": np.stack([lowest_mean(features.said_z.values[:, :k]) for k in ks], 1),
        "zlib": _zlib_ratio(said, features.said_nll.values, ks, tokenizer),
        "distinct": np.stack([distinct_share(said[:, :k]) for k in ks], 1),
    }
    prefix = paragraphs.prefix.cpu().numpy()
    if counts is not None:
        rare = _surprise(counts, max(int(said.max()), int(prefix.max())))
        found["rarity"] = _means(rare[said], ks)
        found["prefix_rarity"] = _constant(rare[prefix].mean(1), ks)
    if ngrams is not None:
        occurrences = ngrams.ending_at(np.concatenate([prefix, said], 1))[:, prefix.shape[1] :]
        found["ngrams"] = _means(np.log1p(occurrences), ks)
    if "prefix" in features:
        of_prefix = features.prefix.to_dataset("prefix_statistic")
        for name, sign in (("nll", -1), ("mink", 1), ("minkpp", 1)):
            statistic = "mean_nll" if name == "nll" else name
            found[f"prefix_{name}"] = _constant(sign * of_prefix[statistic].values, ks)
    names = [name for name in MEANING if name in found]
    coords = {"baseline": names, "paragraph": paragraphs.ids, "k": ks}
    coords["meaning"] = ("baseline", [MEANING[name] for name in names])
    values = np.stack([found[name] for name in names]).astype(np.float64)
    return xr.DataArray(values, coords, ("baseline", "paragraph", "k"), "score", {"higher": HIGHER})


def lowest_mean(values: Float[np.ndarray, "row token"], share: float = SHARE) -> Float[np.ndarray, " row"]:
    """Mean of the lowest share of each row's values, at least one; 0 without any."""
    count = values.shape[1]
    if count == 0:
        return np.zeros(len(values))
    kept = max(1, round(share * count))
    return np.partition(values, kept - 1, axis=1)[:, :kept].mean(1)


def distinct_share(tokens: Int[np.ndarray, "row token"]) -> Float[np.ndarray, " row"]:
    """Share of different tokens in each row; 0 without any."""
    if tokens.shape[1] == 0:
        return np.zeros(len(tokens))
    ordered = np.sort(tokens, 1)
    return (1 + (ordered[:, 1:] != ordered[:, :-1]).sum(1)) / tokens.shape[1]


def _means(values: Num[np.ndarray, "row token"], ks: list[int]) -> Float[np.ndarray, "row k"]:
    """Means of the first k values of each row; 0 for k = 0."""
    sums = np.concatenate([np.zeros((len(values), 1)), np.cumsum(values, 1, dtype=np.float64)], 1)
    return sums[:, ks] / np.maximum(ks, 1)


def _constant(values: Num[np.ndarray, " row"], ks: list[int]) -> Float[np.ndarray, "row k"]:
    return np.repeat(values[:, None].astype(np.float64), len(ks), 1)


def _surprise(counts: Any, largest: int) -> Float[np.ndarray, " d_vocab"]:
    """-log of each token's frequency in the corpus; one is added to every count."""
    known = as_counts(counts, len(counts) if hasattr(counts, "__len__") else 1)
    if largest >= len(known):
        raise InputError(f"got the token id {largest} and {len(known)} counts; need a count for each id")
    return -np.log((known + 1) / (known.sum() + len(known)))


def _zlib_ratio(
    said: Int[np.ndarray, "row token"], nll: Float[np.ndarray, "row token"], ks: list[int], tokenizer: Any
) -> Float[np.ndarray, "row k"]:
    """Carlini et al. 2021: bits of the compressed text over the model's NLL of it; 0 before anything is said."""
    found = np.zeros((len(said), len(ks)))
    for row, ids in enumerate(said):
        for column, k in enumerate(ks):
            if k:
                text = ids[:k].astype("<u4").tobytes() if tokenizer is None else tokenizer.decode(ids[:k]).encode()
                found[row, column] = 8 * len(zlib.compress(text)) / max(nll[row, :k].sum(), 1e-9)
    return found
