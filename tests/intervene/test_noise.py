import copy

import numpy as np
import pytest
import torch

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.intervene.noise import add_noise, noise_by_size, noise_curve
from mechmem.localize.gradients import weight_gradients
from mechmem.measure.scores import score
from mechmem.model.sites import editable_parameters
from mechmem.truth.planted import planted
from mechmem.weights.masks import Mask
from mechmem.weights.support import SupportError, changed_weights, verify_support


@pytest.fixture(scope="module")
def uneven(tiny_model):
    """The tiny model with every head's weights of another size, so that heads cannot be confused."""
    model = copy.deepcopy(tiny_model)
    with torch.no_grad():
        for name, parameter in editable_parameters(model).items():
            if ".attn." in name:
                parameter.mul_(torch.tensor([1.0, 5.0, 25.0])[:, None, None])
    return model


@pytest.fixture(scope="module")
def sets(tiny_paragraphs):
    return {"one": tiny_paragraphs.select(np.arange(4)), "two": tiny_paragraphs.select(np.arange(4, 11))}


def test_noise_on_a_head_lands_on_that_head_with_its_own_standard_deviation(uneven):
    before = {name: value.clone() for name, value in uneven.state_dict().items()}
    mask = Mask.heads(uneven, [(1, 2)])
    noisy = add_noise(uneven, mask, scale=0.5, seed=3)
    for name, value in editable_parameters(uneven).items():
        assert torch.equal(value, before[name]), f"the caller's {name} moved"
        change = (editable_parameters(noisy)[name] - value).detach()
        if not name.startswith("blocks.1.attn"):
            assert not change.any()
            continue
        assert not change[:2].any() and change[2].ne(0).float().mean() > 0.99
        # 147 weights: their standard deviation is known to 6 %; that of another head is 5 or 25 times smaller.
        assert change[2].std().item() == pytest.approx(0.5 * value[2].std().item(), rel=0.25)
    verify_support(uneven, noisy, mask)
    # Control: the same noise laid on head 0 is not inside this mask.
    with pytest.raises(SupportError):
        verify_support(uneven, add_noise(uneven, Mask.heads(uneven, [(1, 0)]), scale=0.5, seed=3), mask)


def test_every_weight_gets_its_own_share_of_noise(uneven):
    """Slow oracle: one weight at a time, its component looked up by name and index."""
    mask = Mask.top(weight_gradients(uneven, Paragraphs(torch.arange(20).view(2, 10), 5)), fraction=0.02, per="tensor")
    noisy = editable_parameters(add_noise(uneven, mask, scale=2.0, seed=7))
    generator = torch.Generator().manual_seed(7)
    for name, chosen in mask.indices.items():
        original = editable_parameters(uneven)[name].detach()
        for index, drawn in zip(chosen.tolist(), torch.randn(len(chosen), generator=generator).tolist(), strict=True):
            place = np.unravel_index(index, original.shape)
            component = (original[place[0]] if ".attn." in name else original).numpy().astype(float)
            need = original[tuple(place)].item() + 2.0 * component.std() * drawn
            assert noisy[name][tuple(place)].item() == pytest.approx(need, rel=1e-5, abs=1e-6)
    assert any(".mlp." in name for name in mask.indices) and any(".attn." in name for name in mask.indices)


def test_scale_0_gives_the_same_bits_and_noise_grows_with_the_scale(tiny_model):
    model = copy.deepcopy(tiny_model)
    with torch.no_grad():
        model.blocks[0].mlp.W_in[:, 0] = -0.0
    everything = Mask.heads(model, [(0, 0)]).union(Mask.heads(model, [(0, 0)]).complement())
    assert everything.count == everything.total
    assert changed_weights(model, add_noise(model, everything, scale=0.0, seed=1)) == 0
    once, twice, other = (
        editable_parameters(add_noise(model, everything, scale=scale, seed=seed))
        for scale, seed in ((0.5, 1), (1.0, 1), (0.5, 2))
    )
    for name, value in editable_parameters(model).items():
        assert torch.allclose(2 * (once[name] - value), twice[name] - value, atol=1e-6)
        assert not torch.allclose(once[name], other[name], atol=1e-3)
    again = add_noise(model, everything, scale=0.5, seed=1)
    assert all(torch.equal(once[name], value) for name, value in editable_parameters(again).items())


def test_sixteen_bit_weights_get_noise_in_thirty_two(tiny_model):
    half = copy.deepcopy(tiny_model).to(torch.bfloat16)
    mask = Mask.heads(half, [(0, 1)])
    noisy = add_noise(half, mask, scale=1.0, seed=0)
    verify_support(half, noisy, mask)
    wide = add_noise(copy.deepcopy(half).to(torch.float32), mask, scale=1.0, seed=0)
    for name, value in editable_parameters(noisy).items():
        assert value.dtype == torch.bfloat16 and torch.equal(value, editable_parameters(wide)[name].to(torch.bfloat16))


def test_the_curve_is_what_single_draws_give(tiny_model, sets):
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    mask, seen = Mask.heads(tiny_model, [(0, 1), (2, 2)]), []
    curve = noise_curve(
        tiny_model, sets, mask, scales=(0.0, 0.7, 2.0), draws=2, progress=lambda *done: seen.append(done)
    )
    assert all(torch.equal(value, before[name]) for name, value in tiny_model.state_dict().items())
    assert seen == [(done, 12) for done in range(1, 13)]
    assert curve.em.dims == ("mask", "scale", "draw", "set") and curve.mask.values.tolist() == ["chosen", "random"]
    for draw in range(2):
        random = Mask.random_like(mask, seed=int(curve.mask_seed[draw]))
        for name, here in (("chosen", mask), ("random", random)):
            for scale in (0.7, 2.0):
                noisy = add_noise(tiny_model, here, scale=scale, seed=int(curve.noise_seed[draw]))
                for label, paras in sets.items():
                    scored, found = score(noisy, paras), curve.sel(mask=name, scale=scale, draw=draw, set=label)
                    assert float(found.em) == pytest.approx(float(scored.em.mean()), abs=1e-6)
                    assert float(found.nll) == pytest.approx(float(scored.nll.mean()), abs=1e-5)
    for name in ("em", "nll"):
        assert bool((curve[name].sel(scale=0.0) == curve[f"{name}_before"]).all())
    # Draws, and the two masks, differ.
    at_two = curve.nll.sel(scale=2.0, set="two").values.ravel()
    assert len(set(at_two.tolist())) == 4 and curve.weights == mask.count
    alone = noise_curve(tiny_model, sets, mask, scales=(0.7,), draws=2, control=False)
    assert alone.mask.values.tolist() == ["chosen"]
    assert alone.nll.values[0, 0].tolist() == curve.nll.sel(mask="chosen", scale=0.7).values.tolist()


def test_noise_finds_where_a_planted_memory_sits():
    """Every memory goes through one head; a head of the same size writes nothing, and as many random weights do."""
    truth = planted()
    em = {}
    for name, head in (("through", truth.head), ("silent", truth.silent)):
        mask = Mask.heads(truth.model, [head])
        curve = noise_curve(truth.model, {"memorized": truth.memorized}, mask, scales=(3.0,), draws=2)
        em[name] = curve.em.isel(set=0, scale=0)
    length = truth.memorized.continuation_len
    assert em["through"].sel(mask="chosen").max() < 0.1 * length
    assert em["silent"].sel(mask="chosen").min() == length > 2 * em["silent"].sel(mask="random").max()


def test_noise_by_size_is_the_curve_of_each_mask(tiny_model, sets):
    weights, seen = {n: p.detach() for n, p in editable_parameters(tiny_model).items()}, []
    result = noise_by_size(
        tiny_model, sets, weights, fractions=(0.01, 0.2), scale=1.5, draws=2, progress=lambda *done: seen.append(done)
    )
    assert result.em.dims == ("mask", "fraction", "draw", "set") and seen == [(done, 8) for done in range(1, 9)]
    for fraction in (0.01, 0.2):
        mask = Mask.top(weights, fraction=fraction)
        curve = noise_curve(tiny_model, sets, mask, scales=(1.5,), draws=2)
        assert result.nll.sel(fraction=fraction).values.tolist() == curve.nll.isel(scale=0).values.tolist()
        assert int(result.weights.sel(fraction=fraction)) == mask.count
    assert result.nll_before.values.tolist() == curve.nll_before.values.tolist() and float(result.scale) == 1.5
    assert result.nll.attrs["units"] == "nats per token" and "weights" not in result.attrs


def test_noise_that_breaks_the_forward_is_an_error_that_names_the_layer(tiny_model, sets):
    with pytest.raises(InputError, match="layer 0 gives NaN or infinite values"):
        noise_curve(tiny_model, sets, Mask.heads(tiny_model, [(0, 0)]), scales=(1e38,), draws=1, control=False)


def test_bad_input_is_refused(tiny_model, small_model, sets):
    mask = Mask.heads(tiny_model, [(0, 0)])
    with pytest.raises(InputError, match="the mask is empty"):
        add_noise(tiny_model, Mask({}, mask.shapes), scale=1.0, seed=0)
    with pytest.raises(InputError, match="the mask is of another model"):
        add_noise(tiny_model, Mask.heads(small_model(), [(0, 0)]), scale=1.0, seed=0)
    for scale in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="as scale; need a finite number of at least 0"):
            add_noise(tiny_model, mask, scale=scale, seed=0)
    with pytest.raises(InputError, match="got no scale; need at least one"):
        noise_curve(tiny_model, sets, mask, scales=())
    with pytest.raises(InputError, match="got 0 as draws; need a whole number of at least 1"):
        noise_curve(tiny_model, sets, mask, draws=0)
    with pytest.raises(InputError, match="got no set of paragraphs"):
        noise_curve(tiny_model, {}, mask)
    with pytest.raises(InputError, match="the set 'none' is empty"):
        noise_curve(tiny_model, {"none": sets["one"].select(np.zeros(4, dtype=bool))}, mask)
    with pytest.raises(InputError, match="got no fraction"):
        noise_by_size(tiny_model, sets, {}, fractions=())
