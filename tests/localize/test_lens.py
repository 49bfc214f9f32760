import numpy as np
import pytest
import torch
from transformer_lens import ActivationCache

from mechmem.data.errors import InputError
from mechmem.localize.lens import logit_lens
from mechmem.measure.scores import score
from mechmem.truth.planted import planted


@torch.no_grad()
def test_every_depth_equals_the_whole_forwards_stream_through_the_end(tiny_model, tiny_paragraphs):
    result = logit_lens(tiny_model, tiny_paragraphs, batch_size=4)
    _, cache = tiny_model.run_with_cache(tiny_paragraphs.tokens)
    assert isinstance(cache, ActivationCache)
    for depth in range(5):
        name = f"blocks.{depth}.hook_resid_pre" if depth < 4 else "blocks.3.hook_resid_post"
        log_probs = tiny_model.unembed(tiny_model.ln_final(cache[name]))[:, 12:-1].log_softmax(-1)
        nll = -log_probs.gather(-1, tiny_paragraphs.continuation[..., None])[..., 0]
        np.testing.assert_allclose(result.nll.sel(depth=depth), nll, atol=1e-4)
        top = log_probs.argmax(-1) == tiny_paragraphs.continuation
        np.testing.assert_array_equal(result.top.sel(depth=depth), top)
    assert result.paragraph.values.tolist() == tiny_paragraphs.ids.tolist()
    np.testing.assert_allclose(result.nll.isel(depth=-1).mean("pos"), score(tiny_model, tiny_paragraphs).nll, atol=1e-4)


def test_first_is_the_depth_from_which_on_the_token_stays_on_top(small_model, tiny_paragraphs):
    model = small_model(d_vocab=61, n_ctx=32, n_layers=5, d_mlp=12)
    result = logit_lens(model, tiny_paragraphs)
    for paragraph in range(len(tiny_paragraphs)):
        for pos in range(result.sizes["pos"]):
            row = result.top.values[paragraph, :, pos].tolist()
            need = next((d for d in range(6) if all(row[d:])), 6)
            assert int(result["first"][paragraph, pos]) == need
    assert result.pos.values.tolist() == list(range(13, 23))


def test_memories_are_read_above_the_planted_head_and_not_without_it():
    truth = planted()
    layers = truth.model.cfg.n_layers
    whole = logit_lens(truth.model, truth.memorized)
    assert int(whole["first"].max()) <= layers
    # Nothing can be known before the head has run.
    assert int(whole["first"].min()) > truth.head[0]
    assert int(logit_lens(truth.model, truth.other)["first"].min()) == layers + 1
    gone = logit_lens(truth.model, truth.memorized, without=[truth.head])
    assert float((gone["first"] == layers + 1).mean()) > 0.8
    # A decoy makes no difference.
    decoy = logit_lens(truth.model, truth.memorized, without=[truth.silent, *truth.loud])
    np.testing.assert_array_equal(decoy["first"], whole["first"])


def test_heads_that_are_not_there_are_refused(tiny_model, tiny_paragraphs):
    with pytest.raises(InputError, match=r"got heads \[\(4, 0\)\]; need .*layer below 4 and head below 3"):
        logit_lens(tiny_model, tiny_paragraphs, without=[(1, 1), (4, 0)])
