"""The lean forward is transformers' own model, for every family, weights raw and folded, whole and in pieces."""

import copy
import warnings
from typing import Any

import pytest
import torch

from mechmem.data.errors import InputError
from mechmem.model.lean import attention
from mechmem.model.lean import model as lean_model
from mechmem.model.lean.model import KeyValues, LeanModel, fast_float32
from mechmem.model.load import load_model

FAMILIES = ["gpt_neo", "gpt_neox", "gpt2"]


def lean_and_reference(write_checkpoint, family, processing: Any = "raw", **changes):
    folder, reference = write_checkpoint(family, **changes)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*tokenizer")
        model = load_model(folder, processing=processing)
    return LeanModel(model), reference


def tokens_of(reference, rows=5, length=40):
    return torch.randint(0, reference.config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(3))


def log_probabilities(lean, tokens, kept=None, dtype=None):
    return lean.unembed(lean.forward(tokens, kept, dtype=dtype)).log_softmax(-1)


@pytest.mark.parametrize("processing", ["raw", "folded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_equals_transformers_beyond_the_local_window(write_checkpoint, family, processing):
    lean, reference = lean_and_reference(write_checkpoint, family, processing)
    tokens = tokens_of(reference)
    with torch.no_grad():
        expected = reference(tokens).logits
    if processing == "raw":
        assert torch.allclose(lean.unembed(lean.forward(tokens)), expected, atol=2e-5)
        assert torch.allclose(lean.unembed(lean.forward(tokens)[:, 3:-1]), expected[:, 3:-1], atol=2e-5)
    assert torch.allclose(log_probabilities(lean, tokens), expected.log_softmax(-1), atol=2e-5)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("gpt_neox", {"use_parallel_residual": False}),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
        ("gpt2", {"activation_function": "relu"}),
        ("gpt_neo", {"window_size": 300, "max_position_embeddings": 320}),
    ],
)
def test_settings_that_change_the_forward_are_respected(write_checkpoint, family, changes):
    lean, reference = lean_and_reference(write_checkpoint, family, **changes)
    tokens = tokens_of(reference)
    with torch.no_grad():
        assert torch.allclose(lean.unembed(lean.forward(tokens)), reference(tokens).logits, atol=2e-5)


def test_local_layers_forget_what_is_more_than_their_window_ago(write_checkpoint):
    """More than 256 tokens with the published window of 256: the first token must not reach past it in local layers."""
    changes = {"window_size": 256, "max_position_embeddings": 300, "attention_types": [[["local"], 1]], "num_layers": 1}
    lean, reference = lean_and_reference(write_checkpoint, "gpt_neo", **changes)
    tokens = tokens_of(reference, 2, 290)
    with torch.no_grad():
        assert torch.allclose(lean.unembed(lean.forward(tokens)), reference(tokens).logits, atol=2e-5)
    changed = tokens.clone()
    changed[:, 0] = (changed[:, 0] + 1) % 61
    moved = (lean.forward(tokens) - lean.forward(changed)).abs().amax((0, 2)) > 1e-6
    assert moved[:256].any() and moved[255] and not moved[256:].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_pieces_with_kept_keys_and_values_equal_the_whole(write_checkpoint, family):
    lean, reference = lean_and_reference(write_checkpoint, family)
    tokens = tokens_of(reference)
    whole, kept = log_probabilities(lean, tokens), KeyValues(lean, 5, 40)
    pieces = [log_probabilities(lean, tokens[:, start:stop], kept) for start, stop in ((0, 17), (17, 18), (18, 40))]
    assert torch.allclose(torch.cat(pieces, 1), whole, atol=2e-5) and kept.length == 40
    # A shorter length forgets: the same positions can be run again with other tokens.
    kept.length = 20
    other = tokens.flip(1)
    mixed = torch.cat([tokens[:, :20], other[:, 20:]], 1)
    assert torch.allclose(
        log_probabilities(lean, other[:, 20:], kept), log_probabilities(lean, mixed)[:, 20:], atol=2e-5
    )
    rows = torch.tensor([3, 1])
    kept.length = 30
    chosen = log_probabilities(lean, mixed[rows, 30:], kept.select(rows))
    assert torch.allclose(chosen, log_probabilities(lean, mixed)[rows, 30:], atol=2e-5)
    assert kept.length == 30, "a selection is a copy"


def test_types_of_less_and_more_precision(tiny_pair, tiny_paragraphs):
    model, tokens = tiny_pair.hooked, tiny_paragraphs.tokens
    exact = copy.deepcopy(model).to(torch.float64)(tokens).detach()
    lean = LeanModel(model)
    wide = lean.unembed(lean.forward(tokens, dtype=torch.float64))
    assert wide.dtype == torch.float64 and torch.allclose(wide, exact, atol=1e-10, rtol=0)
    narrow = lean.unembed(lean.forward(tokens))
    assert narrow.dtype == torch.float32, "nothing was converted for good"
    assert not torch.allclose(narrow.double(), exact, atol=1e-10, rtol=0)
    half = LeanModel(model, torch.bfloat16)
    error = (half.unembed(half.forward(tokens)).double() - exact).abs()
    assert half.dtype == torch.bfloat16 and 1e-3 < float(error.max()) < 1


def test_weights_are_shared_and_the_model_is_not_changed(tiny_model, tiny_paragraphs):
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    lean = LeanModel(tiny_model)
    lean.forward(tiny_paragraphs.tokens)
    assert lean.layers[0].w_in.data_ptr() == tiny_model.blocks[0].mlp.W_in.data_ptr()
    assert all(torch.equal(value, before[name]) for name, value in tiny_model.state_dict().items())


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"normalization_type": None}, "normalization is None"),
        ({"positional_embedding_type": "shortformer"}, "position embedding is shortformer"),
        ({"attn_only": True}, "MLP"),
        ({"output_logits_soft_cap": 1.0}, "caps its logits"),
        ({"attention_dir": "bidirectional"}, "attention"),
    ],
)
def test_another_forward_is_refused(small_model, changed, said):
    with pytest.raises(InputError, match=said):
        LeanModel(small_model(**changed))


def test_a_processor_that_would_use_bfloat16_keeps_float32(monkeypatch):
    """A stand-in for Intel's AMX: at "medium" the factors are rounded to bfloat16."""

    def product(left, right):
        rounded = torch.get_float32_matmul_precision() == "medium"
        return left.bfloat16().float() @ right.bfloat16().float() if rounded else left @ right

    monkeypatch.setattr(lean_model, "_product", product)
    lean_model._medium_is_float32.cache_clear()
    before = torch.get_float32_matmul_precision()
    try:
        with fast_float32(torch.device("cpu")):
            assert torch.get_float32_matmul_precision() == before
    finally:
        lean_model._medium_is_float32.cache_clear()
    assert torch.get_float32_matmul_precision() == before


def test_products_in_the_block_are_those_of_float32():
    random = torch.Generator().manual_seed(1)
    left, right = torch.randn(300, 700, generator=random), torch.randn(700, 900, generator=random)
    with fast_float32(torch.device("cpu")):
        fast = left @ right
    assert (fast - left.double() @ right.double()).abs().max() < 1e-3


@pytest.mark.skipif(not lean_model._medium_is_float32(), reason="this processor would use bfloat16")
def test_the_fast_library_is_given_back():
    before = torch.get_float32_matmul_precision()
    with pytest.raises(ZeroDivisionError), fast_float32(torch.device("cpu")):
        assert torch.get_float32_matmul_precision() == "medium"
        _ = 1 / 0
    assert torch.get_float32_matmul_precision() == before
    with fast_float32(torch.device("cuda")):
        assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize("queries", [1, 3, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_attention_in_blocks_is_the_fused_one(monkeypatch, queries, dtype):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(4, 3, queries, 5, generator=generator).to(dtype)
    key, value = torch.randn(2, 4, 3, 9, 5, generator=generator).to(dtype)
    seen = torch.ones(9, 9, dtype=torch.bool).tril()[9 - queries :]
    # Twelve heads in blocks of five, so that the last is smaller.
    monkeypatch.setattr(attention, "SCORES_AT_ONCE", 5 * seen.numel())
    blocks = attention.attend(query, key, value, seen, 0.7)
    monkeypatch.setattr(attention, "LONG", 8)
    fused = attention.attend(query, key, value, seen, 0.7)
    assert blocks.dtype == fused.dtype == dtype
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(blocks, fused, atol=tolerance, rtol=tolerance)
    assert not torch.allclose(blocks, attention.attend(query, key, value, seen, 0.1), atol=tolerance)
