"""What docs/transformer-lens.md warns of, shown: a test that fails here says that a release has mended it."""

import ast
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import mechmem as mm

HOUSE = Path(mm.__file__).parent
GREEDY = {"do_sample": False, "stop_at_eos": False, "prepend_bos": False, "verbose": False}
PREFIX, NEW, END = 20, 10, 60


@pytest.fixture
def with_tokenizer(tiny_pair, monkeypatch):
    """The tiny model with a tokenizer that pads with its end of text, as GPT-2's does."""
    words = {f"w{number}": number for number in range(END)} | {"<|endoftext|>": END}
    inner = Tokenizer(models.WordLevel(words, unk_token="<|endoftext|>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    tokenizer.padding_side = "right"
    monkeypatch.setattr(tiny_pair.hooked, "tokenizer", tokenizer)
    return tiny_pair


def prefixes() -> torch.Tensor:
    return torch.randint(1, END, (4, PREFIX), generator=torch.Generator().manual_seed(2))


def matches(said: torch.Tensor, true: torch.Tensor) -> list[int]:
    return (said[:, PREFIX:] == true[:, PREFIX:]).long().cumprod(-1).sum(-1).tolist()


@torch.no_grad()
def decoded(pair, tokens: torch.Tensor) -> torch.Tensor:
    """transformers' greedy text, everything attended to."""
    kept = torch.ones_like(tokens)
    return pair.reference.generate(tokens, attention_mask=kept, max_new_tokens=NEW, do_sample=False, eos_token_id=None)


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize(("side", "place"), [("right", slice(-3, None)), ("left", slice(3))])
def test_generate_takes_end_of_text_at_the_edge_for_padding(with_tokenizer, cache, side, place):
    model, tokens = with_tokenizer.hooked, prefixes()
    model.tokenizer.padding_side = side
    plain, own = decoded(with_tokenizer, tokens), {**GREEDY, "max_new_tokens": NEW, "use_past_kv_cache": cache}
    # Control: without such tokens, and with some in the middle, it is right.
    assert matches(model.generate(tokens, padding_side=side, **own), plain) == [NEW] * 4
    middle = tokens.clone()
    middle[:, 8:11] = END
    assert matches(model.generate(middle, padding_side=side, **own), decoded(with_tokenizer, middle)) == [NEW] * 4
    tokens[:, place] = END
    true = decoded(with_tokenizer, tokens)
    found = matches(model.generate(tokens, padding_side=side, **own), true)
    assert sum(found) < 2 * NEW, "TransformerLens decodes such prefixes now: correct docs/transformer-lens.md"
    # What mechmem says of the same text, from one forward.
    assert (mm.score(model, mm.Paragraphs(true, PREFIX)).em == NEW).all()


def test_generate_with_its_cache_and_no_tokenizer_counts_positions_twice():
    truth = mm.planted(mm.PlantedSettings(n_layers=2, n_ctx=256, memories=4))
    prefix, full = truth.memorized.prefix, truth.memorized.continuation_len
    own = {**GREEDY, "max_new_tokens": full}
    found = {}
    for cache in (True, False):
        said = truth.model.generate(prefix, use_past_kv_cache=cache, **own)
        assert isinstance(said, torch.Tensor)
        found[cache] = (said[:, 50:] == truth.memorized.continuation).long().cumprod(-1).sum(-1).tolist()
    assert found[False] == [full] * 4 == mm.score(truth.model, truth.memorized).em.values.tolist()
    assert sum(found[True]) < 4 * full, "TransformerLens counts positions now: correct docs/transformer-lens.md"


def test_writing_to_stacked_weights_changes_a_copy(tiny_model):
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    with torch.no_grad():
        tiny_model.W_V[1, 2] = 0
    assert all(torch.equal(value, before[name]) for name, value in tiny_model.state_dict().items())
    # The way that works, on a copy of the model.
    edited, _ = mm.edit_weights(tiny_model, {"W_V": 0.0}, heads=["L1H2"])
    assert not edited.blocks[1].attn.W_V[2].any() and tiny_model.blocks[1].attn.W_V[2].any()


def test_no_function_of_mechmem_decodes_with_generate():
    for path in HOUSE.rglob("*.py"):
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert not [each for each in calls if isinstance(each, ast.Attribute) and each.attr == "generate"], path
