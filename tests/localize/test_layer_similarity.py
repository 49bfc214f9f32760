"""CKA against its definition, on models whose difference is known."""

import copy

import numpy as np
import pytest
import torch

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.localize.layer_similarity import cka, layer_similarity
from mechmem.model.hooks import with_hooks


def slow_cka(first: np.ndarray, second: np.ndarray) -> float:
    """From the matrices of all pairs, as Song et al. write it."""

    def hsic(one: np.ndarray, other: np.ndarray) -> float:
        n, left, right = len(one), one @ one.T, other @ other.T
        np.fill_diagonal(left, 0)
        np.fill_diagonal(right, 0)
        ones = np.ones(n)
        pairs = (ones @ left @ ones) * (ones @ right @ ones) / (n - 1) / (n - 2)
        return (np.trace(left @ right) + pairs - 2 / (n - 2) * (ones @ left @ right @ ones)) / n / (n - 3)

    return hsic(first, second) / np.sqrt(hsic(first, first) * hsic(second, second))


def plain_cka(first: np.ndarray, second: np.ndarray) -> float:
    """The biased estimate of Kornblith et al."""
    one, other = first - first.mean(0), second - second.mean(0)
    own = [np.linalg.norm(each.T @ each) for each in (one, other)]
    return float(np.linalg.norm(one.T @ other) ** 2 / (own[0] * own[1]))


def test_it_is_its_definition_and_no_rotation_changes_it():
    rng = np.random.default_rng(0)
    first = rng.normal(size=(40, 5)) + 3
    second = first[:, :3] @ rng.normal(size=(3, 7)) + 0.3 * rng.normal(size=(40, 7))
    assert cka(first, second) == pytest.approx(slow_cka(first, second), rel=1e-9)
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    assert cka(first, -4 * first @ rotation + 2) == pytest.approx(1)
    assert cka(first, second) == pytest.approx(cka(first @ rotation, second)) and 0.2 < cka(first, second) < 0.99
    # More columns than dimensions are not needed, and many columns agree with the plain estimate.
    many = rng.normal(size=(4000, 4))
    mixed = many @ rng.normal(size=(4, 4)) + rng.normal(size=(4000, 4))
    assert cka(many, mixed) == pytest.approx(plain_cka(many, mixed), abs=2e-3)
    assert np.isnan(cka(many, np.ones((4000, 2))))


def test_unrelated_activations_are_not_alike():
    """Control: the plain estimate finds a likeness between random numbers."""
    rng = np.random.default_rng(1)
    pairs = [(rng.normal(size=(60, 40)), rng.normal(size=(60, 40))) for _ in range(20)]
    assert abs(np.mean([cka(*pair) for pair in pairs])) < 0.02
    assert np.mean([plain_cka(*pair) for pair in pairs]) > 0.3
    assert 0.45 < plain_cka(rng.normal(size=(800, 768)), rng.normal(size=(800, 768)))


@pytest.fixture(scope="module")
def edited(tiny_model):
    changed = copy.deepcopy(tiny_model)
    with torch.no_grad():
        weight = changed.blocks[2].mlp.get_parameter("W_out")
        weight.copy_(3 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    return changed


@pytest.mark.parametrize("batch_size", [None, 4])
def test_what_is_before_an_edit_is_the_same(tiny_model, edited, tiny_paragraphs, batch_size):
    seen = []
    found = layer_similarity(
        tiny_model, edited, tiny_paragraphs, batch_size=batch_size, progress=lambda *done: seen.append(done)
    )
    assert found.dims == ("boundary",) and found.boundary.values.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(found[:3], 1, atol=1e-9)
    assert (found[3:] < 0.95).all() and seen[-1] == (5, 5)
    _, cache = tiny_model.run_with_cache(tiny_paragraphs.tokens)
    _, other = edited.run_with_cache(tiny_paragraphs.tokens)
    start = tiny_paragraphs.prefix_len - 1
    for boundary in (2, 3):
        name = f"blocks.{boundary}.hook_resid_post"
        pair = [each[name][:, start:-1].flatten(0, 1).double().numpy() for each in (cache, other)]
        assert found[boundary + 1].item() == pytest.approx(slow_cka(*pair), abs=1e-6)


def test_hooks_are_run(tiny_model, tiny_paragraphs):
    moved = copy.deepcopy(tiny_model)
    with with_hooks(moved, {"blocks.1.hook_mlp_out": lambda x, hook: x * 30}):  # noqa: ARG005
        found = layer_similarity(tiny_model, moved, tiny_paragraphs)
    np.testing.assert_allclose(found[:2], 1, atol=1e-9)
    assert (found[2:] < 0.99).all()


def test_models_that_cannot_be_compared_are_refused(tiny_model, tiny_paragraphs, small_model):
    other = small_model(d_vocab=61, n_ctx=32)
    with pytest.raises(InputError, match="got models of 4 and 2 layers; need as many in both"):
        layer_similarity(tiny_model, other, tiny_paragraphs)
    folded = small_model(n_layers=4, d_vocab=61, n_ctx=32, normalization_type="LNPre")
    with pytest.raises(InputError, match="got models with LN and LNPre normalization, one raw and one folded"):
        layer_similarity(tiny_model, folded, tiny_paragraphs)
    with pytest.raises(InputError, match="got 3 columns of text; need at least 4"):
        layer_similarity(tiny_model, tiny_model, Paragraphs(tiny_paragraphs.tokens[:3, :14], 13))
