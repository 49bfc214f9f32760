import copy

import pytest
import torch
from transformer_lens import HookedTransformer

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.model.forward import advance, check_fit, continuation_logits, residual_before


def folded(model: HookedTransformer) -> HookedTransformer:
    copied = copy.deepcopy(model)
    copied.process_weights_(fold_ln=True, center_writing_weights=True, center_unembed=True)
    return copied


@pytest.mark.parametrize("processing", ["raw", "folded"])
def test_logits_are_the_columns_that_score_the_continuation(tiny_model, tiny_paragraphs, processing):
    model = tiny_model if processing == "raw" else folded(tiny_model)
    assert type(model.ln_final).__name__ == {"raw": "LayerNorm", "folded": "LayerNormPre"}[processing]
    tokens, start = tiny_paragraphs.tokens, tiny_paragraphs.prefix_len
    full = model(tokens)
    logits = continuation_logits(model, tokens, start)
    assert torch.allclose(logits, full[:, start - 1 : -1], atol=1e-5)
    # The columns one later skip the first continuation token: a wrong reading must not pass.
    assert not torch.allclose(logits[:, :-1], full[:, start:-1], atol=0.1)


@pytest.mark.parametrize("changed", [{"output_logits_soft_cap": 0.5}, {"normalization_type": None}])
def test_soft_cap_and_absent_normalization_are_respected(small_model, changed):
    model = small_model(**changed)
    tokens = torch.randint(0, 17, (3, 16))
    logits = continuation_logits(model, tokens, 5)
    assert torch.allclose(logits, model(tokens)[:, 4:-1], atol=1e-6)
    assert (logits.abs() < 0.5).all() or "output_logits_soft_cap" not in changed


def test_tokens_are_text_even_where_a_tokenizer_would_pad(tiny_model, tiny_paragraphs):
    """A tokenizer that pads on the left makes TransformerLens mask leading padding tokens: here none is padding."""

    class LeftPadding:
        padding_side, pad_token_id, bos_token_id = "left", 0, 0

    tokens = tiny_paragraphs.tokens.clone()
    tokens[:, :3] = 0
    plain = continuation_logits(tiny_model, tokens, 13)
    model = copy.deepcopy(tiny_model)
    model.tokenizer = LeftPadding()
    assert not torch.allclose(model(tokens)[:, 12:-1], plain, atol=1e-3), "the trap is gone: drop the argument"
    assert torch.equal(continuation_logits(model, tokens, 13), plain)
    assert model.tokenizer.padding_side == "left"


@pytest.mark.parametrize("layer", range(5))
def test_going_on_from_a_layer_is_the_whole_run(tiny_model, tiny_paragraphs, layer):
    tokens = tiny_paragraphs.tokens
    whole = residual_before(tiny_model, tokens, 4)
    assert torch.equal(advance(tiny_model, residual_before(tiny_model, tokens, layer), layer, 4), whole)


def test_shortformer_cannot_be_gone_on_with(tiny_model):
    model = copy.deepcopy(tiny_model)
    model.cfg.positional_embedding_type = "shortformer"
    with pytest.raises(InputError, match="shortformer position embeddings.*run it whole"):
        advance(model, torch.zeros(1, 5, 21), 1, 2)


def test_gradients_flow_to_the_body(tiny_model, tiny_paragraphs):
    logits = continuation_logits(tiny_model, tiny_paragraphs.tokens, 13)
    (gradient,) = torch.autograd.grad(logits.square().sum(), [tiny_model.blocks[0].attn.W_V])
    assert gradient.abs().max() > 0


@pytest.mark.parametrize(
    ("tokens", "sentence"),
    [
        (torch.zeros(0, 20, dtype=torch.long), "got 0 paragraphs; need at least 1"),
        (torch.full((2, 20), 61), "got the token id 61 for a model with a vocabulary of 61 tokens; need ids below 61"),
        (torch.zeros(2, 129, dtype=torch.long), "got paragraphs of 129 tokens for a model with a context of 128"),
    ],
)
def test_paragraphs_that_do_not_fit_are_refused(tiny_model, tokens, sentence):
    with pytest.raises(InputError, match=sentence):
        check_fit(tiny_model, Paragraphs(tokens, 10))
    check_fit(tiny_model, Paragraphs(torch.full((1, 128), 60), 10))
