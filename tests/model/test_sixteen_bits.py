"""Models of sixteen bits give transformers' numbers, and what is no number is an error that names its layer."""

import copy

import numpy as np
import pytest
import torch

from mechmem.data.errors import InputError
from mechmem.localize.heads import rare_token_attention
from mechmem.measure.scores import kl, score
from mechmem.model.forward import continuation_logits, residual_before
from mechmem.model.hooks import with_hooks
from mechmem.model.lean.model import LeanModel
from mechmem.model.lean.patterns import pattern_reader
from mechmem.model.lean.trace import trace
from mechmem.model.lean.trainable import TrainableModel
from mechmem.model.sites import editable_parameters

NOTHING = {"blocks.0.hook_resid_pre": lambda value, hook: None}  # noqa: ARG005


@pytest.fixture(scope="module")
def high_scores(tiny_pair):
    """A GPT-Neo whose attention scores are all about 73,000 higher than they need be: more than float16 holds."""
    reference, hooked = copy.deepcopy(tiny_pair.reference), copy.deepcopy(tiny_pair.hooked)
    with torch.no_grad():
        for block, ours in zip(reference.transformer.h, hooked.blocks, strict=True):
            # A constant in the normalized stream, which gives each head's first query and key dimension the value 270.
            block.ln_1.weight[0], block.ln_1.bias[0] = 0.0, 1.0
            ours.ln1.w[0], ours.ln1.b[0] = 0.0, 1.0
            for linear, weight in (
                (block.attn.attention.q_proj, ours.attn.W_Q),
                (block.attn.attention.k_proj, ours.attn.W_K),
            ):
                linear.weight[::7], linear.weight[::7, 0] = 0.0, 270.0
                weight[:, :, 0], weight[:, 0, 0] = 0.0, 270.0
    return reference, hooked


def reference_nll(reference, paras) -> np.ndarray:
    with torch.no_grad():
        logits = reference(paras.tokens).logits[:, paras.prefix_len - 1 : -1].float()
    return -logits.log_softmax(-1).gather(-1, paras.continuation[..., None])[..., 0].mean(-1).numpy()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("hooked", [False, True])
def test_scores_beyond_float16_are_those_of_transformers(high_scores, tiny_paragraphs, dtype, hooked):
    reference, model = (copy.deepcopy(m).to(dtype) for m in high_scores)
    with with_hooks(model, NOTHING if hooked else {}):
        found = score(model, tiny_paragraphs).nll.values
    close = {torch.float16: 2e-2, torch.bfloat16: 0.3}[dtype]
    np.testing.assert_allclose(found, reference_nll(reference, tiny_paragraphs), atol=close)
    np.testing.assert_allclose(found, reference_nll(copy.deepcopy(reference).float(), tiny_paragraphs), atol=close)
    if dtype == torch.float16:
        # The control: products in float16 itself are infinite, and their softmax is no attention.
        with torch.no_grad():
            plain = model(tiny_paragraphs.tokens)[:, 12:-1].float().log_softmax(-1)
        plain = -plain.gather(-1, tiny_paragraphs.continuation[..., None])[..., 0].mean(-1).numpy()
        assert not np.allclose(plain, found, atol=0.1)


def test_trace_patterns_and_training_use_the_same_attention(high_scores, tiny_paragraphs):
    model = copy.deepcopy(high_scores[1]).half()
    wide, tokens = copy.deepcopy(model).float(), tiny_paragraphs.tokens
    expected = pattern_reader(wide)(tokens)
    for found in (pattern_reader(model)(tokens), list(trace(LeanModel(model), tokens, ["pattern"])["pattern"])):
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.dtype == torch.float32 and torch.allclose(ours, theirs, atol=0.1)
    logits = TrainableModel(model, list(editable_parameters(model)), None).continuation_logits(tokens, 13)
    assert logits.requires_grad
    assert torch.allclose(logits.float(), continuation_logits(wide, tokens, 13), atol=0.2)


def test_the_models_own_attention_is_given_back(tiny_model, tiny_paragraphs):
    before = [dict(vars(block.attn)) for block in tiny_model.blocks]
    residual_before(tiny_model, tiny_paragraphs.tokens, 4)
    assert all(vars(block.attn).keys() == kept.keys() for block, kept in zip(tiny_model.blocks, before, strict=True))


def broken(model, where: str):
    model = copy.deepcopy(model)
    with torch.no_grad():
        if where == "attention":
            model.blocks[2].attn.W_Q[1, 3, 2] = torch.nan
        elif where == "neurons":
            model.blocks[2].mlp.W_out[5, 6] = torch.inf
        else:
            model.embed.W_E[:] = torch.nan
    return model


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize(
    ("where", "said"), [("attention", "layer 2 "), ("neurons", "layer 2 "), ("embedding", "layer")]
)
def test_what_is_no_number_is_refused_with_its_layer(tiny_model, tiny_paragraphs, where, said, hooked):
    model = broken(tiny_model, where)
    calls = [
        lambda: score(model, tiny_paragraphs),
        lambda: kl(model, tiny_model, tiny_paragraphs),
        lambda: rare_token_attention(model, tiny_paragraphs, torch.arange(61) + 1),
    ]
    with with_hooks(model, NOTHING if hooked else {}):
        for call in calls:
            with pytest.raises(InputError, match=f"{said}.*NaN or infinite values|NaN or infinite.*{said}"):
                call()


def test_overflow_in_sixteen_bits_names_the_layer(tiny_model, tiny_paragraphs):
    model = copy.deepcopy(tiny_model).half()
    model.blocks[1].mlp.W_out.data *= 5000
    model.blocks[1].mlp.b_out.data += 60000
    with pytest.raises(InputError, match="layer 1 gives NaN or infinite values.*load it in float32"):
        score(model, tiny_paragraphs)
