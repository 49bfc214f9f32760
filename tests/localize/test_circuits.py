from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from scipy.stats import spearmanr

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.localize.circuits import head_circuits
from mechmem.localize.rarity import rarest_weight
from mechmem.truth.planted import planted


@torch.no_grad()
def test_every_number_equals_a_slow_oracle_from_a_cache(tiny_model, tiny_paragraphs):
    model, paras = tiny_model, tiny_paragraphs
    counts = torch.randperm(61, generator=torch.Generator().manual_seed(2)).double()
    result = head_circuits(model, paras, counts, batch_size=4)
    _, cache = model.run_with_cache(paras.tokens)
    weight = torch.from_numpy(rarest_weight(counts[paras.prefix].numpy(), 0.1)).float()
    scale = cache["ln_final.hook_scale"][:, 12:-1, 0]
    toward = (model.W_U - model.W_U.mean(-1, keepdim=True)).T[paras.continuation] * model.ln_final.w
    known = np.flatnonzero(counts.numpy())
    for layer in range(4):
        block = model.blocks[layer]
        entry = block.ln1(model.W_E[known][:, None] + model.W_pos[:13].mean(0))
        for head in range(3):
            ours = result.sel(layer=layer, head=head)
            query = cache[f"blocks.{layer}.attn.hook_q"][:, 13, head].mean(0)
            keys = entry[:, 0] @ block.attn.W_K[head] + block.attn.b_K[head]
            scores = (keys @ query / block.attn.attn_scale).numpy()
            expected: Any = spearmanr(scores, counts.numpy()[known])
            assert float(ours.qk_spearman) == pytest.approx(expected.statistic, abs=1e-3)
            rarest = np.argsort(counts.numpy()[known])[:6]
            assert float(ours.qk_rare) == pytest.approx(scores[rarest].mean() - scores.mean(), abs=1e-4)
            z = cache[f"blocks.{layer}.attn.hook_z"][:, 12:-1, head]
            pattern = cache[f"blocks.{layer}.attn.hook_pattern"][:, head, 12:-1, :13] * weight[:, None]
            read = pattern @ cache[f"blocks.{layer}.attn.hook_v"][:, :13, head]
            for name, part in (("", z), ("_rare", read)):
                written = part @ block.attn.W_O[head]
                assert float(ours[f"written{name}"]) == pytest.approx(float(written.norm(dim=-1).mean()), rel=1e-4)
                centred = written - written.mean(-1, keepdim=True)
                direct = ((centred * toward).sum(-1) / scale).mean()
                assert float(ours[f"direct{name}"]) == pytest.approx(float(direct), abs=1e-5)
            value, output = block.attn.W_V[head], block.attn.W_O[head]
            norms = [float(ours[name]) for name in ("v_norm", "o_norm", "ov_norm")]
            assert norms == pytest.approx([float(m.norm()) for m in (value, output, value @ output)], rel=1e-4)


@torch.no_grad()
def test_all_heads_and_the_rest_add_up_to_the_logit(tiny_model, tiny_paragraphs):
    """Direct contributions of every head, MLP, bias and the embeddings are the logit above the mean."""
    model, paras = tiny_model, tiny_paragraphs
    found = float(head_circuits(model, paras, torch.ones(61)).direct.sum())
    logits, cache = model.run_with_cache(paras.tokens)
    logits = logits[:, 12:-1]
    above = logits.gather(-1, paras.continuation[..., None])[..., 0] - logits.mean(-1)
    rest = model.W_E[paras.tokens] + model.W_pos[: paras.tokens.shape[1]]
    for layer in range(4):
        rest = rest + cache[f"blocks.{layer}.hook_mlp_out"] + model.blocks[layer].attn.b_O
    rest, scale = rest[:, 12:-1], cache["ln_final.hook_scale"][:, 12:-1]
    through = (rest - rest.mean(-1, keepdim=True)) / scale * model.ln_final.w + model.ln_final.b
    other = through @ (model.W_U - model.W_U.mean(-1, keepdim=True))
    expected = above - other.gather(-1, paras.continuation[..., None])[..., 0]
    assert found == pytest.approx(float(expected.mean()), abs=1e-4)


def test_the_planted_head_is_named_and_the_silent_one_only_by_its_attention():
    truth = planted()
    result = head_circuits(truth.model, truth.memorized, truth.unigram_counts)
    assert result.written_rare.argmax(...)["layer"] == truth.head[0]
    assert result.written_rare.argmax(...)["head"] == truth.head[1]
    head, silent = (result.sel(layer=layer, head=head) for layer, head in (truth.head, truth.silent))
    for one in (head, silent):
        assert float(one.qk_spearman) < -0.99 and float(one.qk_rare) > 5
    assert float(silent.written_rare) == 0
    rest = result.qk_rare.stack(place=("layer", "head")).drop_sel(place=[truth.head, truth.silent])
    assert float(abs(rest).max()) < 0.1
    # Size alone would name a decoy.
    largest = result.written.argmax(...)
    assert (int(largest["layer"]), int(largest["head"])) in truth.loud


def test_counts_are_any_array(tiny_model, tiny_paragraphs):
    counts = np.arange(1, 62)
    expected = head_circuits(tiny_model, tiny_paragraphs, torch.from_numpy(counts))
    for kind in (list, np.asarray, lambda c: torch.from_numpy(c).float(), lambda c: xr.DataArray(c, dims="token")):
        xr.testing.assert_identical(head_circuits(tiny_model, tiny_paragraphs, kind(counts)), expected)


def test_counts_that_do_not_fit_are_refused(tiny_model, tiny_paragraphs):
    with pytest.raises(InputError, match=r"got counts of shape \[60\] for a vocabulary of 61"):
        head_circuits(tiny_model, tiny_paragraphs, torch.ones(60))
    with pytest.raises(InputError, match="got counts above zero for 0 tokens; need at least 2"):
        head_circuits(tiny_model, tiny_paragraphs, torch.zeros(61))
    beyond = Paragraphs(tiny_paragraphs.tokens + 50, 13)
    with pytest.raises(InputError, match="got the token id .* for a model with a vocabulary of 61 tokens"):
        head_circuits(tiny_model, beyond, torch.ones(61))
