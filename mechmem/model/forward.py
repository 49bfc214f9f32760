"""The logits of the continuation and nothing else: the body runs once, the unembedding on the columns that count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from transformer_lens import HookedTransformer
from transformer_lens.utilities.activation_functions import apply_softcap

from mechmem.data.errors import InputError
from mechmem.data.fingerprint import fingerprint, vocabulary_size
from mechmem.data.paragraphs import Paragraphs
from mechmem.model.attention_scores import ADVICE, NonfiniteScores, wide_scores
from mechmem.model.hooks import recording
from mechmem.model.lean.model import LeanModel, fast_float32, runs_lean
from mechmem.model.tokenizer import MOST_PADDING
from mechmem.model.vocabulary import vocabulary

# Paragraphs of one forward where the caller names no number, and the logits that may be held for them.
BATCH = {"cpu": 32, "cuda": 128}
LOGITS_BYTES = 2**29


def check_fit(model: HookedTransformer, paragraphs: Paragraphs) -> None:
    """Refuse paragraphs that this model cannot read.

    Raises:
        InputError: no paragraph, ids of another tokenizer or beyond the vocabulary, or more tokens than the model's
            context.
    """
    if len(paragraphs) == 0:
        raise InputError("got 0 paragraphs; need at least 1: check the mask or filter that selected them")
    _check_tokenizer(model, paragraphs)
    largest, known = int(paragraphs.tokens.max()), vocabulary(model)
    if largest >= known:
        raise InputError(
            f"got the token id {largest} for a model with a vocabulary of {known} tokens; need ids below "
            f"{known}: encode the text with this model's tokenizer"
        )
    if paragraphs.tokens.shape[1] > model.cfg.n_ctx:
        raise InputError(
            f"got paragraphs of {paragraphs.tokens.shape[1]} tokens for a model with a context of {model.cfg.n_ctx}; "
            "need at most the context: cut the paragraphs"
        )


def paragraphs_at_once(model: HookedTransformer, paragraphs: Paragraphs, batch_size: int | None = None) -> int:
    """Paragraphs of one forward whose continuation logits are held: what the caller asked for, or what fits."""
    if batch_size is not None:
        return batch_size
    one = paragraphs.continuation_len * model.cfg.d_vocab * 4
    return max(1, min(BATCH.get(model.W_E.device.type, 32), LOGITS_BYTES // one))


def _check_tokenizer(model: HookedTransformer, paragraphs: Paragraphs) -> None:
    """Refuse ids of another tokenizer, where both are known: scores of such ids would mean nothing."""
    if paragraphs.tokenizer is None:
        return
    size, known = vocabulary_size(paragraphs.tokenizer), model.cfg.d_vocab
    if model.tokenizer is not None:
        fits = fingerprint(model.tokenizer) == paragraphs.tokenizer
    else:
        # Without a tokenizer only the size tells, and models may be padded beyond it.
        fits = size <= known < size + MOST_PADDING
    if not fits:
        raise InputError(
            f"the paragraphs' ids belong to another tokenizer ({size:,} tokens) than the model's ({known:,}); "
            "need text encoded by the model's own: mechmem.read_corpus(file, model.tokenizer)"
        )


def residual_before(model: HookedTransformer, tokens: Int[Tensor, "paragraph pos"], layer: int) -> Tensor:
    """The residual stream as it enters a layer, [paragraph, pos, d_model]; layer n_layers is the end of the body.

    Every token counts as text: nothing is padded, so no position is masked although its token may be the tokenizer's
    padding token.

    Raises:
        InputError: the result has NaN or infinite values; the sentence names the layer where the first appears.
    """
    # With left padding a tokenizer would make the model mask leading <|endoftext|> tokens; here they are text.
    options = {"padding_side": "right", "return_type": None, "stop_at_layer": layer}
    return _checked(model, tokens, options, 0, layer)


def advance(
    model: HookedTransformer, residual: Float[Tensor, "paragraph pos d_model"], start: int, stop: int
) -> Float[Tensor, "paragraph pos d_model"]:
    """Run layers `start` to `stop` (excluded) from the residual stream that enters layer `start`.

    Raises:
        InputError: the model adds its position embedding inside each layer (shortformer), so the residual stream alone
            does not say how to go on; or the result has NaN or infinite values.
    """
    if model.cfg.positional_embedding_type == "shortformer":
        raise InputError(
            "the model has shortformer position embeddings, which every layer needs beside its residual stream; need "
            "another kind of model here: run it whole, with hooks"
        )
    if start == stop:
        return residual
    options = {"start_at_layer": start, "stop_at_layer": stop, "return_type": None}
    return _checked(model, residual, options, start, stop)


def _checked(model: HookedTransformer, given: Tensor, options: dict[str, Any], first: int, stop: int) -> Tensor:
    """Run layers of the model, scores in float32; refuse NaN and infinite results, and only then find their layer."""
    with wide_scores(model):
        try:
            result = model(given, **options)
            assert isinstance(result, Tensor)
            if bool(result.isfinite().all()):
                return result
            scores = None
        except NonfiniteScores as error:
            scores = error.layer
        names = {f"blocks.{layer}.hook_resid_post": layer for layer in range(first, stop if scores is None else scores)}
        recorded: dict[str, Tensor] = {}
        if names:
            with torch.no_grad(), recording(model, names) as recorded:
                model(given, **options | {"stop_at_layer": first + len(names)})
    entered = not given.is_floating_point() or bool(given.isfinite().all())
    bad = [layer for name, layer in names.items() if not bool(recorded[name].isfinite().all())]
    found = bad[0] if bad else scores
    where = f"layer {found} gives" if entered and found is not None else f"what enters layer {first} has"
    raise InputError(f"{where} NaN or infinite values; need finite ones: {ADVICE}")


def unembed_continuation(
    model: HookedTransformer, residual: Float[Tensor, "paragraph pos d_model"], prefix_len: int
) -> Float[Tensor, "paragraph continuation_pos d_vocab"]:
    """Final normalization, unembedding and output soft cap, of columns prefix_len - 1 ... n - 2 alone.

    Hooks on `ln_final` and `unembed` see these columns instead of all positions.
    """
    return unembed_columns(model, residual[:, prefix_len - 1 : -1])


def unembed_columns(
    model: HookedTransformer, columns: Float[Tensor, "paragraph column d_model"]
) -> Float[Tensor, "paragraph column d_vocab"]:
    """Final normalization, unembedding and output soft cap, of some columns at the end of the body."""
    if model.cfg.normalization_type is not None:
        columns = model.ln_final(columns)
    return apply_softcap(model.unembed(columns), model.cfg.output_logits_soft_cap)


def continuation_logits(
    model: HookedTransformer, tokens: Int[Tensor, "paragraph pos"], prefix_len: int
) -> Float[Tensor, "paragraph continuation_pos d_vocab"]:
    """Logits that score the continuation, from one run of the body.

    Column j scores token j + 1, so the continuation tokens[:, prefix_len:] is scored by columns prefix_len - 1 ...
    n - 2; the result's entry i scores tokens[:, prefix_len + i]. Equal to the full forward's columns for raw and
    folded weights; gradients flow.

    Args:
        model: any HookedTransformer.
        tokens: ids, on any device.
        prefix_len: how many tokens are given.

    Returns:
        Logits on the model's device; 50 columns of GPT-Neo's vocabulary take 10 MB a paragraph.
    """
    residual = residual_before(model, tokens.to(model.cfg.device), model.cfg.n_layers)
    return unembed_continuation(model, residual, prefix_len)


def continuation_reader(model: HookedTransformer, prefix_len: int) -> Callable[[Tensor], Tensor]:
    """The fastest way from tokens [paragraph, pos] to what `continuation_logits` gives, without gradients.

    It takes the weights as they are now; a model with hooks, or of an architecture that the forward without hooks does
    not know, runs as it is.
    """
    if not runs_lean(model):
        return torch.no_grad()(lambda tokens: continuation_logits(model, tokens, prefix_len))
    lean = LeanModel(model)

    def read(tokens: Tensor) -> Tensor:
        with fast_float32(lean.device):
            return lean.unembed(lean.forward(tokens[:, :-1], needed=prefix_len - 1))

    return read


def token_nll(
    logits: Float[Tensor, "paragraph pos d_vocab"], true: Int[Tensor, "paragraph pos"]
) -> Float[Tensor, "paragraph pos"]:
    """-log p of each true token, nats, from the logits that score it; gradients flow.

    Sixteen-bit logits are summed in 32 bits: an NLL of three digits could not be averaged.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    true = true.to(logits.device)
    return functional.cross_entropy(wide.flatten(0, 1), true.flatten(), reduction="none").view(true.shape)
