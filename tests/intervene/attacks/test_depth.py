import copy

import numpy as np
import pytest
import torch

from mechmem.data.errors import InputError
from mechmem.intervene.attacks.depth import depth_score
from mechmem.measure.scores import score
from mechmem.model.hooks import with_hooks

LAYERS = 4


def edit(model, *names: str, size: float = 1.0):
    """A copy with noise on some parameters."""
    edited = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name in names:
            parameter = edited.get_parameter(name)
            parameter += size * torch.randn(parameter.shape, generator=generator)
    return edited


@pytest.fixture(scope="module")
def memorized(tiny_model, tiny_paragraphs):
    """Text that the model says by itself, so that an edit does damage."""
    tokens = tiny_paragraphs.tokens.clone()
    for pos in range(13, tokens.shape[1]):
        tokens[:, pos] = tiny_model(tokens[:, :pos])[:, -1].argmax(-1)
    return type(tiny_paragraphs)(tokens, 13)


def test_boundaries_are_the_original_with_the_edited_stream_put_in(tiny_model, memorized):
    """Slow oracle: whole forwards of the original, its stream replaced by a hook."""
    edited = edit(tiny_model, *(f"blocks.{layer}.mlp.W_out" for layer in range(LAYERS)), size=0.1)
    found = depth_score(tiny_model, edited, memorized, batch_size=4)
    _, cache = edited.run_with_cache(memorized.tokens)
    for boundary in range(LAYERS + 1):
        name = f"blocks.{boundary}.hook_resid_pre" if boundary < LAYERS else f"blocks.{LAYERS - 1}.hook_resid_post"
        with with_hooks(tiny_model, {name: lambda x, hook, name=name: cache[name]}):  # noqa: ARG005
            expected = score(tiny_model, memorized)
        assert found.em[boundary].values.tolist() == expected.em.values.tolist()
        assert np.allclose(found.nll[boundary], expected.nll, atol=1e-5)
    own = score(edited, memorized)
    assert found.em_edited.values.tolist() == own.em.values.tolist() and np.allclose(found.nll_edited, own.nll)
    # The edit is spread, so what is computed is not one of the two models throughout.
    assert ((found.depth > 0.1) & (found.depth < 2.9)).any()


def test_no_edit_does_no_damage(tiny_model, memorized):
    found = depth_score(tiny_model, copy.deepcopy(tiny_model), memorized)
    clean = score(tiny_model, memorized)
    assert (found.em == clean.em).all() and (found.em == 10).all() and np.allclose(found.nll, clean.nll, atol=1e-5)
    assert np.isnan(found.depth).all() and np.isnan(found.hidden_until).all() and np.isnan(found.damage_share).all()


@pytest.mark.parametrize("layer", range(LAYERS))
def test_an_edit_of_one_layer_is_found_there(tiny_model, memorized, layer):
    edited = edit(tiny_model, f"blocks.{layer}.mlp.W_out")
    found = depth_score(tiny_model, edited, memorized)
    clean, after = score(tiny_model, memorized), score(edited, memorized)
    assert (after.nll > clean.nll + 0.5).all()
    assert np.allclose(found.nll[: layer + 1], clean.nll, atol=1e-5)
    assert np.allclose(found.nll[layer + 1 :], after.nll, atol=1e-5)
    assert np.allclose(found.depth, layer, atol=1e-4) and (found.hidden_until == layer).all()


def test_the_embedding_counts_to_the_first_layer_and_the_unembedding_comes_last(tiny_model, memorized):
    first = depth_score(tiny_model, edit(tiny_model, "embed.W_E"), memorized)
    assert np.allclose(first.nll[0], score(tiny_model, memorized).nll, atol=1e-5)
    assert np.allclose(first.depth, 0, atol=1e-4)
    last = depth_score(tiny_model, edit(tiny_model, "unembed.W_U"), memorized)
    assert (last.em == 10).all() and np.allclose(last.depth, LAYERS, atol=1e-4) and (last.hidden_until == LAYERS).all()
    assert (last.nll_edited > last.nll[-1] + 0.5).all()


def test_two_equal_halves_of_the_damage_give_the_layer_between():
    from mechmem.intervene.attacks.depth import _dataset

    em = np.zeros((4, 1), dtype=np.int64)  # boundaries 0, 1, 2 and the edited model, of two layers
    for nll, depth, until in (
        ([0.0, 1.0, 2.0, 2.0], 0.5, 1),
        ([0.0, 0.0, 1.0, 2.0], 1.5, 2),
        ([0.0, 3.0, -3.0, 2.0], 1.0, 2),
        ([0.0, 0.0, 0.0, 5e-4], np.nan, np.nan),
    ):
        found = _dataset(em, np.array(nll)[:, None])
        assert [found.depth.item(), found.hidden_until.item()] == pytest.approx([depth, until], nan_ok=True)


def test_both_models_are_left_alone_and_others_are_refused(tiny_model, small_model, memorized):
    edited = edit(tiny_model, "blocks.2.mlp.W_in")
    before = [{n: v.clone() for n, v in m.state_dict().items()} for m in (tiny_model, edited)]
    seen = []
    depth_score(tiny_model, edited, memorized, batch_size=5, progress=lambda *done: seen.append(done))
    assert seen == [(5, 11), (10, 11), (11, 11)]
    for model, state in zip((tiny_model, edited), before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    with pytest.raises(InputError, match="need a model and an edit of it"):
        depth_score(tiny_model, small_model(d_vocab=61, n_ctx=128), memorized)
