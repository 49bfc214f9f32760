"""How well a model reproduces paragraphs: exact match, NLL, and KL between two models."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from mechmem.data.argument_checks import check_paragraphs, check_results
from mechmem.data.bounds import Count
from mechmem.data.errors import InputError
from mechmem.data.paragraph_ids import aligned
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, batches
from mechmem.measure.exact import ExactScorer
from mechmem.measure.margins import NOT_FINITE, leading_matches
from mechmem.measure.tolerance import calibration_sample
from mechmem.model.forward import check_fit, continuation_logits, continuation_reader, paragraphs_at_once, token_nll
from mechmem.model.lean.model import runs_lean
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


# Called with tokens [paragraph, pos]; gives what `score` describes, [paragraph] or [paragraph, continuation_pos].
Reader = Callable[[Int[Tensor, "paragraph pos"]], dict[str, Tensor]]


@public("run", renamed={"paras": "paragraphs"})
def score(
    model: HookedTransformer,
    paragraphs: Paragraphs,
    *,
    batch_size: Count | None = None,
    progress: ProgressLike = None,
) -> xr.Dataset:
    """Exact match and NLL of every paragraph's continuation, from one forward pass.

    Exact match (EM) and NLL are those of Stoehr et al. 2024 (arXiv 2403.19851, section 3). Until the first mismatch
    the model that decodes greedily sees exactly the true tokens, so the leading matches of the teacher-forced argmax
    are the leading matches of greedy decoding, without a decoding step. Of equal logits the lowest id is taken.

    GPT-Neo, GPT-2 and GPT-NeoX without hooks are scored by `ExactScorer`: EM is what the weights give in float64,
    whatever the batch size, device and number of threads. Other architectures, and models with hooks on them, run as
    they are; there, logits that are nearly equal may change places between batch sizes, devices and precisions.

    Args:
        model: any HookedTransformer; hooks on it act as usual.
        paragraphs: those whose ids the model knows; logit columns prefix_len - 1 ... n - 2 score their continuation.
        batch_size: paragraphs of one forward; None: chosen for the machine.
        progress: called with (paragraphs done, paragraphs).

    Returns:
        Dataset with coordinates `paragraph` (the paragraphs' ids) and `pos` (token position prefix_len ... n - 1):
        em[paragraph] (int, 0 to continuation length, higher: more memorized), nll[paragraph] (mean over the
        continuation of -log p(token | true tokens before it), nats; lower: more memorized), match[paragraph, pos],
        token_nll[paragraph, pos] (nats), greedy[paragraph, pos] (the argmax ids; they are the greedily decoded text
        only up to and including the first mismatch, later ones continue the true text).

    Raises:
        InputError: no paragraph, an id beyond the vocabulary, paragraphs longer than the model's context, or a model
            that gives NaN or infinite values.
    """
    check_fit(model, paragraphs)
    parts: dict[str, list[Tensor]] = {}
    with torch.no_grad():
        reader, size = _reader(model, paragraphs, batch_size)
        for batch in batches(len(paragraphs), size, progress):
            for name, values in reader(paragraphs.tokens[batch]).items():
                parts.setdefault(name, []).append(values.cpu())
    positions = np.arange(paragraphs.prefix_len, paragraphs.tokens.shape[1])
    data = {}
    for name, values in parts.items():
        dims = ("paragraph", "pos")[: values[0].ndim]
        higher = {"higher": HIGHER[name]} if name in HIGHER else {}
        data[name] = (dims, torch.cat(values).numpy(), ATTRIBUTES[name] | higher)
    coords = {"paragraph": paragraphs.ids, "pos": positions}
    return xr.Dataset(data, coords, {"prefix_len": paragraphs.prefix_len, "ties": "lowest id"})


def _reader(model: HookedTransformer, paragraphs: Paragraphs, batch_size: int | None) -> tuple[Reader, int]:
    """How a batch is scored, and paragraphs of one."""
    prefix_len = paragraphs.prefix_len
    if runs_lean(model):
        scorer = ExactScorer(model, calibration_sample(paragraphs), batch_size=batch_size)

        def lean(tokens: Tensor) -> dict[str, Tensor]:
            found = scorer.tokens(tokens, prefix_len)
            return _summary(found.match, found.token_nll, found.greedy)

        return lean, scorer.batch_size(paragraphs)
    size = paragraphs_at_once(model, paragraphs, batch_size)
    return lambda tokens: score_logits(continuation_logits(model, tokens, prefix_len), tokens[:, prefix_len:]), size


def score_logits(
    logits: Float[Tensor, "paragraph pos d_vocab"], continuation: Int[Tensor, "paragraph pos"]
) -> dict[str, Tensor]:
    """`em`, `nll`, `match`, `token_nll` and `greedy` of a batch, as `score` describes them, on the logits' device."""
    continuation = continuation.to(logits.device)
    greedy, nll = logits.argmax(-1), token_nll(logits, continuation)
    if not bool(nll.isfinite().all()):
        raise InputError(NOT_FINITE)
    return _summary(greedy == continuation, nll, greedy)


def _summary(
    match: Bool[Tensor, "paragraph pos"],
    nll: Float[Tensor, "paragraph pos"],
    greedy: Int[Tensor, "paragraph pos"],
) -> dict[str, Tensor]:
    return {
        "em": leading_matches(match),
        "nll": nll.mean(-1),
        "match": match,
        "token_nll": nll,
        "greedy": greedy,
    }


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
        InputError: other kinds of arguments, scores that do not know a paragraph, or scores of another continuation
            length.
    """
    check_paragraphs("paragraphs", paragraphs)
    check_results("scores", scores, ("em", "nll"), "score")
    if scores.sizes.get("pos", 0) != paragraphs.continuation_len:
        raise InputError(
            f"got scores of {scores.sizes.get('pos', 0)} continuation tokens for paragraphs with "
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
    batch_size: Count | None = None,
    progress: ProgressLike = None,
) -> xr.DataArray:
    """KL divergence KL(p_original || p_edited) of two models' next-token distributions, mean over each continuation.

    Args:
        original: the reference model; hooks on it and on `edited` act as usual.
        edited: the model that is compared with it, of the same vocabulary.
        paragraphs: both models see the true tokens; columns prefix_len - 1 ... n - 2 are compared.
        batch_size: paragraphs of one forward; None: chosen for the machine.
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
    size = paragraphs_at_once(original, paragraphs, batch_size)
    values = []
    with torch.no_grad():
        readers = [continuation_reader(model, paragraphs.prefix_len) for model in (original, edited)]
        for batch in batches(len(paragraphs), size, progress):
            first, second = (reader(paragraphs.tokens[batch]) for reader in readers)
            values.append(kl_of_logits(first, second.to(first.device)).cpu())
    attrs = {"units": "nats per token", "higher": "the models differ more", "long_name": "KL(original || edited)"}
    return xr.DataArray(torch.cat(values).numpy(), {"paragraph": paragraphs.ids}, ("paragraph",), "kl", attrs)


def kl_of_logits(
    first: Float[Tensor, "paragraph pos d_vocab"], second: Float[Tensor, "paragraph pos d_vocab"]
) -> Float[Tensor, " paragraph"]:
    """KL(p_first || p_second) of each paragraph, mean over its columns, nats per token; at least in float32."""
    wide = torch.promote_types(first.dtype, torch.float32)
    reference, other = first.to(wide).log_softmax(-1), second.to(wide).log_softmax(-1)
    return functional.kl_div(other, reference, reduction="none", log_target=True).sum(-1).mean(-1)
