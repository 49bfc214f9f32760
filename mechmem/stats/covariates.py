"""What makes a paragraph easy to continue besides memorization, as columns of its table."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechmem.data.bounds import Count
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, batches
from mechmem.data.token_counts import as_counts
from mechmem.model.forward import check_fit, residual_before, token_nll, unembed_continuation
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public

# Unit of each column that `with_covariates` adds; higher `prefix_nll` and `rarity`: more surprising, rarer tokens.
UNITS = {"prefix_nll": "nats per token", "rarity": "nats per token", "repeated_run": "tokens"}
# Logits held at once, 4 bytes each in float32.
_LOGITS = 2**24
# Paragraphs of one forward, and those whose repeated runs are sought together.
BATCH, _ROWS = 32, 2048


@public("run", renamed={"paras": "paragraphs"})
def with_covariates(
    paragraphs: Paragraphs,
    *,
    model: HookedTransformer | None = None,
    unigram_counts: Any = None,
    batch_size: Count | None = None,
    progress: ProgressLike = None,
) -> Paragraphs:
    """The same paragraphs with what might explain their scores instead of memorization, for `match`.

    A model that memorized a paragraph knows its prefix, too: `prefix_nll` of the model under study is partly memory,
    and matching on it takes a part of what is sought away (or finds no partner). A second model of like skill that
    never saw these paragraphs measures their ease alone.

    Args:
        paragraphs: the table's other columns stay; these are replaced where they are there.
        model: adds `prefix_nll`, mean NLL of the prefix in nats per token; higher: a harder text.
        unigram_counts: corpus count of every token id, any array-like; adds `rarity`, mean of -log p over the prefix's
            tokens in nats per token; higher: rarer tokens.
        batch_size: paragraphs of one forward; None: 32.
        progress: called with (paragraphs done, paragraphs) by the model's part.

    Returns:
        Paragraphs with `repeated_run` (tokens; higher: the paragraph repeats itself more) and what could be computed.

    Raises:
        InputError: neither a model nor counts, no paragraph, or one that does not fit them.
    """
    if model is None and unigram_counts is None:
        raise InputError(
            "got neither a model nor unigram counts; need model= for the column 'prefix_nll', unigram_counts= for "
            "'rarity', or both; for 'repeated_run' alone: paragraphs.with_columns(repeated_run=repeated_run(tokens))"
        )
    columns: dict[str, np.ndarray] = {"repeated_run": repeated_run(paragraphs.tokens.cpu().numpy())}
    if unigram_counts is not None:
        columns["rarity"] = rarity(paragraphs, unigram_counts)
    if model is not None:
        columns["prefix_nll"] = prefix_nll(model, paragraphs, batch_size=batch_size, progress=progress)
    return paragraphs.with_columns(**columns)


def prefix_nll(
    model: HookedTransformer, paragraphs: Paragraphs, *, batch_size: int | None = None, progress: ProgressLike = None
) -> Float[np.ndarray, " paragraph"]:
    """Mean over the prefix of -log p(token | tokens before it), nats per token; higher: a harder text.

    Tokens 1 ... prefix_len - 1 are scored, by logit columns 0 ... prefix_len - 2: the first has nothing before it. The
    unembedding runs on a few columns at a time, so the logits of a whole batch are never held.

    Args:
        model: left as it is.
        paragraphs: with a prefix of at least two tokens; continuations are not read.
        batch_size: paragraphs of one forward; None: 32.
        progress: called with (paragraphs done, paragraphs).

    Raises:
        InputError: no paragraph, a prefix of one token, an id beyond the vocabulary or rows beyond the context.
    """
    check_fit(model, paragraphs)
    if paragraphs.prefix_len < 2:
        raise InputError("got prefix_len 1, whose token has nothing before it; need 2 or more: split the rows later")
    parts = []
    with torch.no_grad():
        for rows in batches(len(paragraphs), batch_size or BATCH, progress):
            parts.append(_mean_nll(model, paragraphs.prefix[rows].to(model.cfg.device)).cpu())
    return torch.cat(parts).double().numpy()


def _mean_nll(model: HookedTransformer, tokens: Int[Tensor, "paragraph prefix_pos"]) -> Float[Tensor, " paragraph"]:
    residual = residual_before(model, tokens, model.cfg.n_layers)
    columns = tokens.shape[1] - 1
    step = max(1, _LOGITS // (len(tokens) * model.cfg.d_vocab_out))
    total = torch.zeros(len(tokens), device=residual.device)
    for start in range(0, columns, step):
        stop = min(start + step, columns)
        # A prefix of one token makes "the continuation's columns" all of those given but the last.
        logits = unembed_continuation(model, residual[:, start : stop + 1], 1)
        total += token_nll(logits, tokens[:, start + 1 : stop + 1]).sum(1)
    return total / columns


def rarity(paragraphs: Paragraphs, unigram_counts: Any) -> Float[np.ndarray, " paragraph"]:
    """Mean over the prefix's tokens of -log((count + 1) / (total + d_vocab)), nats per token; higher: rarer tokens.

    The one added to every count keeps tokens that the corpus does not hold finite.

    Raises:
        InputError: counts that are negative, not finite or all zero, or a prefix token without a count.
    """
    counts = as_counts(unigram_counts, len(unigram_counts) if hasattr(unigram_counts, "__len__") else 1)
    tokens = paragraphs.prefix.cpu().numpy()
    if not counts.any():
        raise InputError("got counts that are all zero; need how often each token id occurs in the corpus")
    if tokens.size and tokens.max() >= len(counts):
        raise InputError(
            f"got the token id {tokens.max()} and {len(counts)} counts; need a count for each id: count with the "
            "tokenizer that encoded these paragraphs, with minlength equal to its vocabulary"
        )
    surprise = -np.log((counts + 1) / (counts.sum() + len(counts)))
    return surprise[tokens].mean(1)


def repeated_run(tokens: Int[np.ndarray, "paragraph pos"]) -> Int[np.ndarray, " paragraph"]:
    """Length of the longest run of tokens that occurs at least twice in a row of ids; higher: repeats itself more.

    The two places may overlap: a token that is repeated n times in a row is a run of n - 1. No repeated token: 0.

    1. For every lag, keep how many tokens up to this position equal those `lag` before them, one after the other.
    2. Go to the next position: a token equal to the one `lag` before adds one, any other sets the lag back to 0.
    3. The longest that any lag ever reached is the answer.
    """
    longest = np.zeros(len(tokens), dtype=np.int64)
    for chosen in batches(len(tokens), _ROWS):
        rows = tokens[chosen]
        running = np.zeros(rows.shape, dtype=np.int32)
        best = np.zeros(len(rows), dtype=np.int32)
        for position in range(1, rows.shape[1]):
            # Lags 1 ... position look back to position - 1 ... 0.
            equal = rows[:, position, None] == rows[:, position - 1 :: -1]
            running[:, 1 : position + 1] = (running[:, 1 : position + 1] + 1) * equal
            best = np.maximum(best, running.max(1))
        longest[chosen] = best
    return longest
