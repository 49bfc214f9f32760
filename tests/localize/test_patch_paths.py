"""Each path is what TransformerLens gives when one head's input alone is changed."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import mechmem as mm
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.localize import patch_paths as module
from mechmem.localize.patch_paths import patch_paths


@pytest.fixture(scope="module")
def pairs() -> tuple[Paragraphs, Paragraphs]:
    generator = torch.Generator().manual_seed(6)
    clean = torch.randint(0, 17, (3, 14), generator=generator)
    corrupt = clean.clone()
    corrupt[0, 3], corrupt[1, 5] = (clean[0, 3] + 1) % 17, (clean[1, 5] + 4) % 17
    corrupt[:2, 11] = (clean[:2, 11] + 1) % 17
    corrupt[2] = (clean[2] + 3) % 17
    return Paragraphs(clean, 8), Paragraphs(corrupt, 8)


@pytest.fixture(scope="module", params=["neo", "gpt2", "neox"])
def model(request, small_model):
    settings = {"original_architecture": "test", "init_mode": "gpt2", "initializer_range": 0.4, "n_layers": 3}
    settings |= {"d_mlp": 13}
    if request.param == "neo":
        local = {"use_local_attn": True, "attn_types": ["global", "local", "global"], "window_size": 4}
        return small_model(**settings, **local, use_attn_scale=False)
    if request.param == "gpt2":
        return small_model(**settings)
    rotary = {"positional_embedding_type": "rotary", "rotary_dim": 4, "parallel_attn_mlp": True, "d_head": 6}
    return small_model(**settings, **rotary)


def sent(cache, model: Any, sender):
    """What a sender adds to the stream, by TransformerLens' cache."""
    if sender == "embed":
        return cache["blocks.0.hook_resid_pre"]
    layer = int(sender[1])
    if sender.endswith("MLP"):
        return cache[f"blocks.{layer}.hook_mlp_out"]
    head = int(sender[3:])
    return cache[f"blocks.{layer}.attn.hook_z"][:, :, head] @ model.blocks[layer].attn.W_O[head]


def surprise(model: Any, tokens, hooks):
    with torch.no_grad():
        log_probs = model.run_with_hooks(tokens, fwd_hooks=hooks)[:, 7:-1].log_softmax(-1)
    return -log_probs


def slow(model: Any, base, source, true, layer, head, into, sender) -> np.ndarray:
    """One path, one forward, by hooks on the inputs that TransformerLens keeps apart for each head."""
    model = copy.deepcopy(model)
    model.set_use_split_qkv_input(True)
    with torch.no_grad():
        caches = [model.run_with_cache(side.tokens)[1] for side in (base, source)]
        if sender == "all":
            change = caches[1][f"blocks.{layer}.hook_resid_pre"] - caches[0][f"blocks.{layer}.hook_resid_pre"]
        else:
            change = sent(caches[1], model, sender) - sent(caches[0], model, sender)

    def feed(value, hook):  # noqa: ARG001
        value[:, :, head] += change
        return value

    point = f"blocks.{layer}.hook_{into}_input"
    patched, plain = (surprise(model, base.tokens, hooks) for hooks in ([(point, feed)], []))
    targets = true.continuation[..., None]
    return (patched - plain).gather(-1, targets)[..., 0].mean(-1).numpy()


@pytest.mark.parametrize("direction", ["noising", "denoising"])
@pytest.mark.parametrize("receiver", ["L1H1", "L2H0"])
def test_every_path_is_that_of_one_forward_with_a_hook(model, pairs, receiver, direction, monkeypatch):
    clean, corrupt = pairs
    base, source = (clean, corrupt) if direction == "noising" else (corrupt, clean)
    layer, head = int(receiver[1]), int(receiver[3])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for at_once in (1, 10**6):
        monkeypatch.setattr(module, "AT_ONCE", at_once)
        found = patch_paths(model, clean, corrupt, receiver, direction=direction, average=False)
        assert found.dims == ("paragraph", "into", "sender") and found.sizes["sender"] == 2 + 3 * layer
        for into in found.into.values:
            for sender in found.sender.values:
                expected = slow(model, base, source, clean, layer, head, into, sender)
                np.testing.assert_allclose(found.sel(into=into, sender=sender), expected, atol=2e-5)
    assert float(abs(found).max()) > 1e-3
    assert found.paragraph.values.tolist() == clean.ids.tolist()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_path_that_is_cut_carries_nothing(model, pairs):
    """A sender whose output matrix is zero sends nothing; the others still do."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.blocks[0].attn.W_O[1] = 0
    found = patch_paths(model, pairs[0], pairs[1], "L2H1")
    size = abs(found).max("into")
    assert size.sel(sender="L0H1") < 1e-6 and size.sel(sender="L0H0") > 1e-4 and size.sel(sender="all") > 1e-4


def test_the_planted_head_is_fed_by_the_embeddings():
    """Its key is the token's rarity and its value the token's code: both are written by the embedding."""
    truth = mm.planted(mm.PlantedSettings(seed=2))
    corrupt = mm.Paragraphs(truth.memorized.tokens.roll(1, 0), truth.memorized.prefix_len)
    found = patch_paths(truth.model, truth.memorized, corrupt, truth.head)
    strongest = found.sel(into="v").drop_sel(sender="all")
    assert strongest.sender.values[np.abs(strongest.values).argmax()] == "embed"
    np.testing.assert_allclose(strongest.sel(sender="embed"), found.sel(into="v", sender="all"), rtol=0.02)
    assert abs(found.sel(into="q")).max() < 0.01 * abs(found.sel(into="v")).max(), "its query is constant"


def test_options_and_the_mean(tiny_model, tiny_paragraphs):
    corrupt = tiny_paragraphs.replace_tokens(tiny_paragraphs.tokens.roll(1, 0))
    seen = []
    each = patch_paths(tiny_model, tiny_paragraphs, corrupt, (1, 2), metric="logit_difference", average=False,
                       progress=lambda done, total: seen.append((done, total)))  # fmt: skip
    mean = patch_paths(tiny_model, tiny_paragraphs, corrupt, "L1H2", metric="logit_difference")
    xr.testing.assert_allclose(each.mean("paragraph"), mean)
    assert seen[-1] == (each.size, each.size) and mean.attrs["receiver"] == "L1H2" and mean.attrs["units"] == "logits"
    with pytest.raises(InputError, match="got a receiver in layer 0"):
        patch_paths(tiny_model, tiny_paragraphs, corrupt, "L0H1")
    with pytest.raises(InputError, match="need .layer, head. pairs or names"):
        patch_paths(tiny_model, tiny_paragraphs, corrupt, "L9H1")
