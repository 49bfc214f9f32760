"""How nearly a model reproduces text: beyond the exact match, what an edit may leave standing."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from rapidfuzz.distance import LCSseq

from mechmem.data.bounds import Count
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, batches
from mechmem.measure.decode import edit_distances
from mechmem.measure.margins import leading_matches
from mechmem.measure.outputs import HookedOutputs, LeanOutputs, outputs_of
from mechmem.model.forward import check_fit, paragraphs_at_once
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public

MORE = "more memorized"
ATTRIBUTES = {
    "edit_similarity": {"units": "1", "higher": MORE, "long_name": "1 - edit distance / length"},
    "longest_common_substring": {"units": "tokens", "higher": MORE},
    "verbatim_memorization": {"units": "1", "higher": MORE, "long_name": "ROUGE-L F1 of the greedy continuation"},
    "shortest_prefix": {"units": "tokens", "higher": "less memorized"},
    "extraction_strength": {"units": "1", "higher": MORE, "long_name": "1 - shortest prefix / length"},
}


@public("run")
def verbatim(
    model: HookedTransformer,
    paragraphs: Paragraphs,
    *,
    batch_size: Count | None = None,
    progress: ProgressLike = None,
) -> xr.Dataset:
    """How near the greedy continuation comes to the text, and how much of the text must be given to get the rest.

    EM ends at the first wrong token. A model that changes one word and goes on has an EM of a few tokens and still
    gives the text away; these measures see that.

    Args:
        model: hooks on it are run.
        paragraphs: with their true text.
        batch_size: paragraphs of one forward; None: chosen for the machine.
        progress: called with (paragraphs done, paragraphs).

    Returns:
        Dataset [paragraph]. Of the greedy continuation and the true one: edit_similarity (1 minus Levenshtein distance
        over the length), longest_common_substring (consecutive tokens, anywhere in both), verbatim_memorization (MUSE's
        VerbMem, Shi et al. 2024, arXiv 2407.06460: ROUGE-L F1, over tokens instead of words). Of the whole paragraph:
        shortest_prefix, the fewest leading tokens, at least one, from which greedy decoding gives all others, and
        extraction_strength, 1 - shortest_prefix / length (after Carlini et al. 2021, arXiv 2012.07805).

    Raises:
        InputError: no paragraph, or paragraphs that do not fit the model.
    """
    check_fit(model, paragraphs)
    outputs, prefix_len = outputs_of(model), paragraphs.prefix_len
    parts: dict[str, list[np.ndarray]] = {}
    size = paragraphs_at_once(model, Paragraphs(paragraphs.tokens, 1), batch_size)
    for rows in batches(len(paragraphs), size, progress):
        tokens = paragraphs.tokens[rows]
        predicted = _predicted(outputs, tokens)
        true = tokens.cpu().numpy()
        match = predicted == true[:, 1:]
        em = leading_matches(torch.from_numpy(match[:, prefix_len - 1 :])).numpy()
        rival = predicted[np.arange(len(true)), prefix_len - 1 + np.minimum(em, paragraphs.continuation_len - 1)]
        said = outputs.greedy(tokens, prefix_len, em, rival)
        for name, values in _values(said, true[:, prefix_len:], match).items():
            parts.setdefault(name, []).append(values)
    data: dict[str, Any] = {
        name: ("paragraph", np.concatenate(values), ATTRIBUTES[name]) for name, values in parts.items()
    }
    return xr.Dataset(data, {"paragraph": paragraphs.ids}, {"prefix_len": paragraphs.prefix_len})


@torch.no_grad()
def _predicted(outputs: LeanOutputs | HookedOutputs, tokens: Int[torch.Tensor, "paragraph pos"]) -> np.ndarray:
    """The top prediction after the true tokens up to each but the last, [paragraph, pos]."""
    return outputs.logits(outputs.columns(tokens, 1)).argmax(-1).cpu().numpy()


def _values(
    said: Int[np.ndarray, "paragraph pos"],
    true: Int[np.ndarray, "paragraph pos"],
    match: Bool[np.ndarray, "paragraph all"],
) -> dict[str, np.ndarray]:
    shortest = shortest_prefixes(match)
    return {
        "edit_similarity": 1 - edit_distances(said, true) / true.shape[1],
        "longest_common_substring": longest_common_substrings(said, true),
        "verbatim_memorization": rouge_l(said, true),
        "shortest_prefix": shortest,
        "extraction_strength": 1 - shortest / (match.shape[1] + 1),
    }


def longest_common_substrings(
    said: Int[np.ndarray, "paragraph pos"], true: Int[np.ndarray, "paragraph pos"]
) -> Int[np.ndarray, " paragraph"]:
    """Most consecutive tokens that stand in both texts, at any place in either."""
    equal = said[:, :, None] == true[:, None, :]
    run = np.zeros((len(said), true.shape[1] + 1), dtype=np.int64)
    longest = np.zeros(len(said), dtype=np.int64)
    for pos in range(said.shape[1]):
        # A common run that ends at (pos, j) continues the one that ends at (pos - 1, j - 1).
        run[:, 1:] = np.where(equal[:, pos], run[:, :-1] + 1, 0)
        longest = np.maximum(longest, run.max(1))
    return longest


def rouge_l(
    said: Int[np.ndarray, "paragraph pos"], true: Int[np.ndarray, "paragraph pos"]
) -> Float[np.ndarray, " paragraph"]:
    """ROUGE-L F1: the longest common subsequence over the length, which both texts share."""
    pairs = zip(said.tolist(), true.tolist(), strict=True)
    return np.array([LCSseq.similarity(*pair) for pair in pairs]) / true.shape[1]


def shortest_prefixes(match: Bool[np.ndarray, "paragraph pos"]) -> Int[np.ndarray, " paragraph"]:
    """Leading tokens that must be given so that greedy decoding says the rest: all up to the last wrong prediction.

    Args:
        match: whether token 1, 2, ... is the top prediction after the true tokens before it.
    """
    # From the last mismatch on, what the decoder has said is the true text, so teacher forcing and decoding agree.
    wrong = ~match[:, ::-1]
    return np.where(wrong.any(1), match.shape[1] - wrong.argmax(1) + 1, 1)
