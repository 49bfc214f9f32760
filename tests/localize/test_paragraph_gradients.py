import inspect

import numpy as np
import pytest
import torch

from mechmem.data.errors import InputError
from mechmem.localize.gradients import parameter_gradients, weight_gradients
from mechmem.localize.paragraph_gradients import TILE, contrastive_gradients, paragraph_gradients, squared_gradients
from mechmem.truth.planted import planted
from mechmem.weights.masks import Mask


@pytest.fixture(scope="module", params=["neo", "rotary", "folded"])
def model(request, tiny_model, small_model):
    if request.param == "neo":
        return tiny_model
    settings = {"init_mode": "gpt2", "initializer_range": 0.3, "d_vocab": 61, "n_ctx": 32}
    if request.param == "folded":
        return small_model(**settings, normalization_type="LNPre")
    rotary = {"positional_embedding_type": "rotary", "rotary_dim": 4, "parallel_attn_mlp": True, "d_head": 6}
    return small_model(**settings, **rotary)


@pytest.mark.parametrize("reduction", ["max", "sum", "norm"])
def test_every_paragraph_is_as_if_it_were_alone(model, tiny_paragraphs, reduction):
    paras = tiny_paragraphs.select(np.arange(5))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen = []
    found = paragraph_gradients(
        model, paras, reduction=reduction, batch_size=2, progress=lambda *done: seen.append(done)
    )
    for row in range(5):
        alone = parameter_gradients(model, paras.select(np.array([row])), reduction=reduction)
        np.testing.assert_allclose(found.isel(paragraph=row).values, alone.values, rtol=2e-4, atol=1e-7)
        assert found.component.values.tolist() == alone.component.values.tolist()
    assert found.paragraph.values.tolist() == paras.ids.tolist()
    assert found.dims == ("paragraph", "layer", "component") and seen == [(2, 5), (4, 5), (5, 5)]
    assert not any(point.fwd_hooks for point in model.hook_dict.values())
    assert not any(parameter.grad is not None for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_squares_are_the_mean_of_single_squares(model, tiny_paragraphs):
    paras = tiny_paragraphs.select(np.arange(4))
    found = squared_gradients(model, paras, batch_size=3)
    singles = [weight_gradients(model, paras.select(np.array([row]))) for row in range(4)]
    for name, value in found.items():
        expected = sum(single[name].square() for single in singles) / 4
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-9)


def test_contrasts_are_what_they_say(tiny_model, tiny_paragraphs):
    first, second = tiny_paragraphs.select(np.arange(4)), tiny_paragraphs.select(np.arange(4, 9))
    ours, theirs = weight_gradients(tiny_model, first), weight_gradients(tiny_model, second)
    roots = {name: value.sqrt() for name, value in squared_gradients(tiny_model, second).items()}
    mean = torch.cat([root.flatten() for root in roots.values()]).double().mean().item()
    for name, gradient in contrastive_gradients(tiny_model, first, second, method="plain").items():
        torch.testing.assert_close(gradient, ours[name].abs())
    for name, gradient in contrastive_gradients(tiny_model, first, second, method="difference").items():
        torch.testing.assert_close(gradient, (ours[name] - theirs[name]).abs(), rtol=1e-3, atol=1e-7)
    for name, gradient in contrastive_gradients(tiny_model, first, second).items():
        torch.testing.assert_close(gradient, ours[name].abs() / (roots[name] + mean), rtol=1e-3, atol=1e-5)
    with pytest.raises(InputError, match="got reduction 'median'"):
        inspect.unwrap(paragraph_gradients)(tiny_model, first, reduction="median")
    with pytest.raises(InputError, match="got method 'ratio'; need one of plain, fisher, difference"):
        inspect.unwrap(contrastive_gradients)(tiny_model, first, second, method="ratio")


def test_on_a_planted_model_gradients_fall_for_loud_decoys_and_fisher_less():
    truth = planted()
    model, keep = truth.model, truth.other
    own = Mask.neurons(model, truth.neurons).union(Mask.heads(model, [truth.head]))
    decoys = Mask.heads(model, [*truth.loud, truth.silent]).union(Mask.neurons(model, [truth.shared]))
    shares = {}
    for contrast in ("plain", "fisher", "difference"):
        scores = contrastive_gradients(model, truth.memorized, keep, method=contrast)
        top = Mask.top(scores, fraction=0.001)
        shares[contrast] = [top.intersection(mask).count / top.count for mask in (own, decoys)]
    chance = own.count / own.total
    # Heads that write much have large gradients although nobody reads them: size is not importance. The keep set's
    # curvature helps, for it leans on them too; the difference of two gradients is the larger one, the keep set's.
    assert shares["fisher"][0] > chance > shares["plain"][0] > shares["difference"][0]
    assert shares["fisher"][1] < shares["plain"][1] < shares["difference"][1]


@pytest.mark.parametrize("reduction", ["max", "sum", "norm"])
@pytest.mark.parametrize("tile", [1, 100])
def test_sizes_do_not_depend_on_the_tiles(tile, reduction, tiny_model, tiny_paragraphs, monkeypatch):
    whole = paragraph_gradients(tiny_model, tiny_paragraphs[:3], reduction=reduction)
    monkeypatch.setitem(TILE, "cpu", tile)
    found = paragraph_gradients(tiny_model, tiny_paragraphs[:3], reduction=reduction)
    np.testing.assert_allclose(found, whole, rtol=1e-5)
