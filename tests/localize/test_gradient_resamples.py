"""Gradients by groups of clusters against those of the sets that they stand for."""

import copy

import numpy as np
import pytest
import torch

from mechmem.localize.gradient_resamples import grouped_gradients, ranks, resampled_scores
from mechmem.localize.gradients import kl_gradients, parameter_gradients, weight_gradients
from mechmem.model.sites import editable_parameters, reduce_by_component


@pytest.fixture(scope="module")
def paragraphs(tiny_paragraphs):
    return tiny_paragraphs.with_columns(cluster=[0, 0, 0, 1, 1, 2, 3, 3, 4, 5, 6])


def test_groups_add_up_to_the_set_and_keep_clusters_whole(tiny_model, paragraphs):
    grouped = grouped_gradients(tiny_model, paragraphs, seed=0)
    assert len(grouped.parts) == 7 and sorted(grouped.sizes.tolist()) == [1, 1, 1, 1, 2, 2, 3]
    whole = weight_gradients(tiny_model, paragraphs)
    for name, gradient in grouped.whole().items():
        torch.testing.assert_close(gradient, whole[name], atol=1e-6, rtol=1e-4)


def test_a_draw_has_the_scores_of_the_paragraphs_that_were_drawn(tiny_model, paragraphs):
    grouped = grouped_gradients(tiny_model, paragraphs, seed=3)
    divisor = {name: torch.rand_like(value) + 0.5 for name, value in editable_parameters(tiny_model).items()}
    found = resampled_scores(tiny_model, grouped, draws=5, seed=4)
    divided = resampled_scores(tiny_model, grouped, draws=5, seed=4, over=divisor)
    np.testing.assert_allclose(found[0], parameter_gradients(tiny_model, paragraphs), rtol=1e-4)
    chosen = np.random.default_rng(4).integers(0, 7, (5, 7))
    for draw, groups in enumerate(chosen, start=1):
        total = int(grouped.sizes[groups].sum())
        mean = {n: torch.stack([grouped.parts[g][n] for g in groups]).sum(0) / total for n in grouped.parts[0]}
        np.testing.assert_allclose(found[draw], reduce_by_component(tiny_model, mean, "max"), rtol=1e-4)
        over = {name: value / divisor[name] for name, value in mean.items()}
        np.testing.assert_allclose(divided[draw], reduce_by_component(tiny_model, over, "max"), rtol=1e-4)
    order = np.sort(found[2].values.ravel())[::-1]
    place = np.flatnonzero(order == float(found[2].sel(layer=1, component="V2")))[0] + 1
    assert ranks(found, 1, "V2")[2] == place


def test_kl_has_no_gradient_at_the_weights_it_holds_to_and_has_one_elsewhere(tiny_model, paragraphs):
    size = {name: float(value.norm()) for name, value in weight_gradients(tiny_model, paragraphs).items()}
    own = kl_gradients(tiny_model, tiny_model, paragraphs)
    assert all(float(own[name].norm()) < 1e-5 * size[name] for name in size)
    # Control: of a model whose weights differ a little, the same function gives a gradient, that of finite differences.
    other = copy.deepcopy(tiny_model)
    with torch.no_grad():
        for parameter in editable_parameters(other).values():
            parameter.mul_(1.05)
    found = kl_gradients(other, tiny_model, paragraphs)
    assert any(float(found[name].norm()) > 1e-3 * size[name] for name in size)
    name, place, step = "blocks.1.attn.W_V", (2, 3, 1), 1e-2

    def divergence(change: float) -> float:
        moved = copy.deepcopy(other)
        with torch.no_grad():
            editable_parameters(moved)[name][place] += change
            columns = slice(paragraphs.prefix_len - 1, -1)
            first, second = (m(paragraphs.tokens)[:, columns].double().log_softmax(-1) for m in (tiny_model, moved))
            return float((first.exp() * (first - second)).sum(-1).mean())

    slope = (divergence(step) - divergence(-step)) / (2 * step)
    assert float(found[name][place]) == pytest.approx(slope, rel=0.02, abs=1e-6)
