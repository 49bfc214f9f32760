"""Projected updates: what they leave alone, through whole matrices and through masks."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.intervene.loop import Stop
from mechmem.intervene.unlearn import unlearn
from mechmem.localize.gradients import weight_gradients
from mechmem.localize.paragraph_gradients import norm_output
from mechmem.measure.scores import kl, score
from mechmem.model.lean.input_moments import input_moments
from mechmem.model.sites import editable_parameters
from mechmem.weights.masks import Mask
from mechmem.weights.null_space import NullSpace, used_directions
from mechmem.weights.support import verify_support
from mechmem.weights.training import Training

NAMES = ["blocks.1.attn.W_Q", "blocks.1.attn.W_O", "blocks.1.mlp.W_in", "blocks.1.mlp.W_out"]


@pytest.fixture(scope="module")
def keep(tiny_model):
    """Fewer tokens than a matrix has inputs, so that directions are free."""
    return Paragraphs(torch.randint(0, tiny_model.cfg.d_vocab, (1, 10), generator=torch.Generator().manual_seed(7)), 4)


@pytest.fixture(scope="module")
def memorized(tiny_model):
    tokens = torch.randint(0, tiny_model.cfg.d_vocab, (4, 10), generator=torch.Generator().manual_seed(1))
    for pos in range(4, 10):
        with torch.no_grad():
            tokens[:, pos] = tiny_model(tokens[:, :pos])[:, -1].argmax(-1)
    return Paragraphs(tokens, 4)


def inputs(model, tokens: Tensor) -> dict[str, Tensor]:
    """What goes into each matrix of layer 1, [token, d_in], by the hooked model."""
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
    normed = {n: norm_output(model, point := f"blocks.1.{n}.hook_normalized", cache[point]) for n in ("ln1", "ln2")}
    return {
        "blocks.1.attn.W_Q": normed["ln1"].flatten(0, 1),
        "blocks.1.attn.W_O": cache["blocks.1.attn.hook_z"].flatten(2).flatten(0, 1),
        "blocks.1.mlp.W_in": normed["ln2"].flatten(0, 1),
        "blocks.1.mlp.W_out": cache["blocks.1.mlp.hook_post"].flatten(0, 1),
    }


def product(name: str, x: Tensor, update: Tensor) -> Tensor:
    """What an update adds to a matrix' outputs, head by head."""
    update = update.detach()
    if name.endswith("W_O"):
        heads = x.view(len(x), update.shape[0], update.shape[1])
        return torch.einsum("t h d, h d m -> t m", heads, update)
    return torch.einsum("t m, h m d -> t h d", x, update) if update.ndim == 3 else x @ update


def noise(model, name: str) -> Tensor:
    return torch.randn(editable_parameters(model)[name].shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", NAMES)
def test_moments_are_those_of_the_inputs(tiny_model, keep, name):
    x = inputs(tiny_model, keep.tokens)[name].double()
    found = input_moments(tiny_model, keep.tokens, NAMES)[name]
    assert torch.allclose(found, x.T @ x / len(x), atol=1e-6 * float(found.abs().max()))


@pytest.mark.parametrize("name", NAMES)
def test_a_projected_update_does_not_move_the_outputs_of_the_keep_set(tiny_model, keep, name):
    x, update = inputs(tiny_model, keep.tokens)[name], noise(tiny_model, name)
    space = NullSpace(tiny_model, keep, NAMES, 1.0)
    projected = space.project(name, update)
    assert projected.shape == update.shape and 0 < space.used[name] <= len(x)
    plain = product(name, x, update).abs().max()
    assert product(name, x, projected).abs().max() < 1e-4 * plain
    # What is free is left as it is: projecting again changes nothing, and most of the update is still there.
    assert torch.allclose(space.project(name, projected), projected, atol=1e-5)
    assert projected.norm() > 0.3 * update.norm()


def test_a_share_leaves_no_more_than_the_rest_of_the_inputs(tiny_model, keep):
    x = inputs(tiny_model, keep.tokens)["blocks.1.mlp.W_out"].double()
    ranks = []
    for share in (0.5, 0.9, 0.99, 1.0):
        basis = used_directions(x.T @ x / len(x), share)
        left = x - x @ basis @ basis.T
        assert float(left.square().sum() / x.square().sum()) <= 1 - share + 1e-9
        ranks.append(basis.shape[1])
    assert ranks == sorted(ranks) and 1 <= ranks[0] < ranks[-1] <= len(x)


@pytest.mark.parametrize("name", NAMES)
def test_the_mask_wins_and_the_outputs_move_no_more_than_without_projection(tiny_model, keep, name):
    x, update = inputs(tiny_model, keep.tokens)[name].detach(), noise(tiny_model, name)
    space, shape = NullSpace(tiny_model, keep, NAMES, 1.0), tuple(update.shape)
    chosen = torch.rand(update.numel(), generator=torch.Generator().manual_seed(5)) < 0.3
    index = chosen.nonzero().flatten()
    sparse = torch.zeros(shape)
    sparse.view(-1)[index] = update.view(-1)[index]
    cut = torch.zeros(shape)
    cut.view(-1)[index] = space.project_chosen(name, update.view(-1)[index], index, shape)
    before, after = (
        float(product(name, x, each).detach().square().sum()) for each in (space.project(name, sparse) - sparse, cut)
    )
    assert 0 < after < before, "before: all that the sparse update moves"
    # All inputs of some outputs: nothing is lost.
    whole = torch.zeros(shape)
    whole[..., ::2] = update[..., ::2]
    index = (torch.ones(shape) * (torch.arange(shape[-1]) % 2 == 0)).flatten().nonzero().flatten()
    cut = torch.zeros(shape)
    cut.view(-1)[index] = space.project_chosen(name, update.reshape(-1)[index], index, shape)
    assert product(name, x, cut).abs().max() < 1e-4 * product(name, x, whole).abs().max()


def test_a_projected_edit_leaves_the_predictions_on_the_keep_set_alone(tiny_model, memorized, keep):
    """Through all weights, without a keep term: nothing but the projection holds the keep set."""
    changes = {}
    for null_space in (None, 1.0):
        training = Training(steps=8, learning_rate=1e-3, keep_weight=0.0, null_space=null_space)
        edited, history = unlearn(tiny_model, memorized, keep, training=training, stop=Stop())
        assert float(score(edited, memorized).nll.mean()) > float(score(tiny_model, memorized).nll.mean()) + 0.1
        changes[null_space] = float(kl(tiny_model, edited, keep).mean())
        assert history.attrs.get("null_space") == null_space
    assert changes[1.0] < 1e-6 < 1e-4 < changes[None]


def test_a_masked_projected_edit_moves_the_mask_alone(tiny_model, memorized, keep):
    mask = Mask.top(weight_gradients(tiny_model, memorized), fraction=0.05)
    training: Any = {"steps": 4, "learning_rate": 3e-3, "weight_decay": 0.1}
    edited, _ = unlearn(
        tiny_model, memorized, keep, mask=mask, training=Training(**training, null_space=0.9), stop=Stop()
    )
    verify_support(tiny_model, edited, mask)
    plain, _ = unlearn(tiny_model, memorized, keep, mask=mask, training=Training(**training), stop=Stop())
    drift = [float(kl(tiny_model, each, keep).mean()) for each in (edited, plain)]
    assert 0 < drift[0] < drift[1]


def test_what_cannot_be_projected_is_refused(tiny_model, memorized, keep):
    tokens = torch.randint(0, tiny_model.cfg.d_vocab, (40, 12), generator=torch.Generator().manual_seed(9))
    sentence = "got null_space 1, and the 480 tokens of the keep set use every input of every matrix"
    before = copy.deepcopy(tiny_model.state_dict())
    with pytest.raises(InputError, match=sentence):
        unlearn(tiny_model, memorized, Paragraphs(tokens, 4), training=Training(null_space=1.0))
    assert all(torch.equal(value, before[name]) for name, value in tiny_model.state_dict().items())
    with pytest.raises(InputError, match="method 'kfac' does not use null_space"):
        unlearn(tiny_model, memorized, keep, method="kfac", training=Training(null_space=0.9))
    with pytest.raises(InputError, match="got 1.5 as null_space; need a finite number above 0 and at most 1"):
        Training(null_space=1.5)
