import copy

import pytest
import torch

from mechmem.model.lean.patterns import pattern_reader


def cached(model, tokens):
    _, cache = model.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_pattern"))
    return [cache[f"blocks.{layer}.attn.hook_pattern"] for layer in range(model.cfg.n_layers)]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["neo", "rotary", "attention only", "hooked"])
def test_patterns_are_the_models_own(tiny_model, small_model, kind):
    if kind == "neo":
        model = tiny_model
    elif kind == "rotary":
        settings = {"positional_embedding_type": "rotary", "rotary_dim": 4, "parallel_attn_mlp": True}
        model = small_model(d_model=12, d_head=6, d_mlp=20, n_ctx=32, d_vocab=61, **settings)
    else:
        model = copy.deepcopy(tiny_model) if kind == "hooked" else small_model(attn_only=True, n_ctx=32, d_vocab=61)
    if kind == "hooked":
        model.add_hook("blocks.1.hook_resid_pre", lambda value, hook: value.roll(1, -1))  # noqa: ARG005
    tokens = torch.randint(0, 61, (5, 25), generator=torch.Generator().manual_seed(1))
    found = pattern_reader(model)(tokens)
    assert len(found) == model.cfg.n_layers
    for ours, theirs in zip(found, cached(model, tokens), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5) and not ours.requires_grad
    if kind == "hooked":
        assert not torch.allclose(found[1], cached(tiny_model, tokens)[1], atol=1e-3)
