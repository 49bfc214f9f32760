"""How well a model reproduces paragraphs: exact match, NLL, and KL between two models."""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from mechmem.data.errors import InputError
from mechmem.data.paragraph_ids import aligned
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, batches
from mechmem.model.forward import check_fit, continuation_logits
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public

ATTRIBUTES = {
    "em": {"units": "tokens", "long_name": "leading continuation tokens that greedy decoding reproduces"},
    "nll": {"units": "nats per token", "long_name": "mean negative log-likelihood of the continuation"},
    "match": {"units": "1", "long_name": "teacher-forced argmax equals the token"},
    "token_nll": {"units": "nats", "long_name": "negative log-likelihood of the token given the true ones before it"},
    "greedy": {
        "units": "token id",
        "long_name": "teacher-forced argmax; greedy text up to and including the first mismatch only",
    },
}
HIGHER = {"em": "more memorized", "nll": "less memorized", "match": "more memorized", "token_nll": "less memorized"}


@public("run", renamed={"paras": "paragraphs"})
def score(
    model: HookedTransformer,
    paragraphs: Paragraphs,
    *,
    batch_size: int = 32,
    progress: ProgressLike = None,
) -> xr.Dataset:
    """Exact match and NLL of every paragraph's continuation, from one forward pass.

    Exact match (EM) and NLL are those of Stoehr et al. 2024 (arXiv 2403.19851, section 3). Until the first mismatch
    the model that decodes greedily sees exactly the true tokens, so the leading matches of the teacher-forced argmax
    are the leading matches of greedy decoding, without a decoding step. Of equal logits the lowest id is taken;
    logits that are nearly equal may change places between batch sizes, devices and precisions.

    Args:
        model: any HookedTransformer; hooks on it act as usual.
        paragraphs: those whose ids the model knows; logit columns prefix_len - 1 ... n - 2 score their continuation.
        batch_size: paragraphs of one forward.
        progress: called with (paragraphs done, paragraphs).

    Returns:
        Dataset with coordinates `paragraph` (the paragraphs' ids) and `pos` (token position prefix_len ... n - 1):
        em[paragraph] (int, 0 to continuation length, higher: more memorized), nll[paragraph] (mean over the
        continuation of -log p(token | true tokens before it), nats; lower: more memorized), match[paragraph, pos],
        token_nll[paragraph, pos] (nats), greedy[paragraph, pos] (the argmax ids; they are the greedily decoded text
        only up to and including the first mismatch, later ones continue the true text).

    Raises:
        InputError: no paragraph, an id beyond the vocabulary, or paragraphs longer than the model's context.
    """
    check_fit(model, paragraphs)
    parts: dict[str, list[Tensor]] = {}
    with torch.no_grad():
        for batch in batches(len(paragraphs), batch_size, progress):
            logits = continuation_logits(model, paragraphs.tokens[batch], paragraphs.prefix_len)
            for name, values in score_logits(logits, paragraphs.continuation[batch]).items():
                parts.setdefault(name, []).append(values.cpu())
            # Freed before the next batch's logits come, or two batches' would stand in memory together.
            del logits
    positions = np.arange(paragraphs.prefix_len, paragraphs.tokens.shape[1])
    data = {}
    for name, values in parts.items():
        dims = ("paragraph", "pos")[: values[0].ndim]
        higher = {"higher": HIGHER[name]} if name in HIGHER else {}
        data[name] = (dims, torch.cat(values).numpy(), ATTRIBUTES[name] | higher)
    coords = {"paragraph": paragraphs.ids, "pos": positions}
    return xr.Dataset(data, coords, {"prefix_len": paragraphs.prefix_len, "ties": "lowest id"})


def score_logits(
    logits: Float[Tensor, "paragraph pos d_vocab"], continuation: Int[Tensor, "paragraph pos"]
) -> dict[str, Tensor]:
    """`em`, `nll`, `match`, `token_nll` and `greedy` of a batch, as `score` describes them, on the logits' device."""
    continuation = continuation.to(logits.device)
    # Sixteen-bit logits are summed in 32 bits: an NLL of three digits could not be averaged.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    greedy = logits.argmax(-1)
    match = greedy == continuation
    token_nll = functional.cross_entropy(logits.flatten(0, 1), continuation.flatten(), reduction="none")
    token_nll = token_nll.view_as(continuation)
    return {
        "em": leading_matches(match),
        "nll": token_nll.mean(-1),
        "match": match,
        "token_nll": token_nll,
        "greedy": greedy,
    }


def leading_matches(match: Bool[Tensor, "*batch pos"]) -> Int[Tensor, "*batch"]:
    """How many positions match before the first that does not."""
    return match.long().cumprod(-1).sum(-1)


def memorized_other(
    em: Int[np.ndarray, " paragraph"], length: int
) -> tuple[Bool[np.ndarray, " paragraph"], Bool[np.ndarray, " paragraph"]]:
    """Which paragraphs are memorized (EM == length) and which are other (EM <= a fifth of the continuation, 10 of 50).

    Paragraphs in between are in neither; a fifth is rounded down.
    """
    return em == length, em <= length // 5


def split(paragraphs: Paragraphs, scores: xr.Dataset) -> tuple[Paragraphs, Paragraphs]:
    """The memorized paragraphs and the others, by EM (Stoehr et al. 2024, section 3).

    Args:
        paragraphs: the paragraphs that were scored, or some of them, in any order.
        scores: what `score` returned for them; rows are found by the paragraphs' ids.

    Returns:
        `memorized`: EM == all, and `other`: EM <= 10 of 50 (for other lengths a fifth of the continuation, rounded
        down); paragraphs in between are in neither. Both have the columns `em` and `nll`.

    Raises:
        InputError: the scores do not know a paragraph, or are of another continuation length.
    """
    if scores.sizes["pos"] != paragraphs.continuation_len:
        raise InputError(
            f"got scores of {scores.sizes['pos']} continuation tokens for paragraphs with "
            f"{paragraphs.continuation_len}; need the scores of these paragraphs: score them"
        )
    own = aligned(scores, paragraphs)
    memorized, other = memorized_other(own.em.values, paragraphs.continuation_len)
    scored = paragraphs.with_columns(em=own.em.values, nll=own.nll.values)
    return scored.select(memorized), scored.select(other)


@public("run", renamed={"before": "original", "after": "edited", "paras": "paragraphs"})
def kl(
    original: HookedTransformer,
    edited: HookedTransformer,
    paragraphs: Paragraphs,
    *,
    batch_size: int = 32,
    progress: ProgressLike = None,
) -> xr.DataArray:
    """KL(p_0 || p) of two models' next-token distributions, mean over each continuation.

    Args:
        original: the model of p_0.
        edited: the model of p, of the same vocabulary.
        paragraphs: both models see the true tokens; columns prefix_len - 1 ... n - 2 are compared.
        batch_size: paragraphs of one forward.
        progress: called with (paragraphs done, paragraphs).

    Returns:
        DataArray [paragraph] in nats per token; higher: the models differ more; 0: they agree.

    Raises:
        InputError: the vocabularies differ, or the paragraphs do not fit one of the models.
    """
    check_fit(original, paragraphs)
    check_fit(edited, paragraphs)
    if original.cfg.d_vocab_out != edited.cfg.d_vocab_out:
        raise InputError(
            f"the models have {original.cfg.d_vocab_out} and {edited.cfg.d_vocab_out} output tokens; need one "
            "vocabulary: compare a model with an edited copy of it"
        )
    values = []
    with torch.no_grad():
        for batch in batches(len(paragraphs), batch_size, progress):
            values.append(_batch_kl(original, edited, paragraphs.tokens[batch], paragraphs.prefix_len).cpu())
    attrs = {"units": "nats per token", "higher": "the models differ more", "long_name": "KL(original || edited)"}
    return xr.DataArray(torch.cat(values).numpy(), {"paragraph": paragraphs.ids}, ("paragraph",), "kl", attrs)


def _batch_kl(
    before: HookedTransformer, after: HookedTransformer, tokens: Int[Tensor, "paragraph pos"], prefix_len: int
) -> Float[Tensor, " paragraph"]:
    first = continuation_logits(before, tokens, prefix_len)
    second = continuation_logits(after, tokens, prefix_len).to(first.device)
    wide = torch.promote_types(first.dtype, torch.float32)
    reference, other = first.to(wide).log_softmax(-1), second.to(wide).log_softmax(-1)
    return functional.kl_div(other, reference, reduction="none", log_target=True).sum(-1).mean(-1)
