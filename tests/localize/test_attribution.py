"""Attributions are first-order patches: exact where the model is linear, close where the difference is small."""

import copy
from typing import Any

import numpy as np
import pytest
import torch

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.localize.attribution import attribute, rank_correlation, top_cells
from mechmem.localize.metrics import em, logit_difference, nll
from mechmem.localize.patching import patch
from mechmem.model.hooks import recording
from mechmem.model.lean.trace import HOOKS, SITES
from mechmem.truth.planted import planted


@pytest.fixture(scope="module")
def pairs() -> tuple[Paragraphs, Paragraphs]:
    generator = torch.Generator().manual_seed(16)
    clean = torch.randint(0, 61, (3, 14), generator=generator)
    corrupt = clean.clone()
    corrupt[torch.arange(3), torch.tensor([3, 0, 6])] += 1
    corrupt[:, 9:] = torch.randint(0, 61, (3, 5), generator=generator)
    corrupt[:, 9] = (clean[:, 9] + 1) % 61
    return Paragraphs(clean, 8), Paragraphs(corrupt % 61, 8)


@pytest.mark.parametrize("direction", ["noising", "denoising"])
@pytest.mark.parametrize("site", SITES)
def test_it_is_the_slope_of_a_small_patch(tiny_model, pairs, site, direction):
    """The slow way: move one cell a thousandth of the way to the other run, one forward a cell."""
    base, source = (pairs[0], pairs[1]) if direction == "noising" else (pairs[1], pairs[0])
    groups = 4 if site == "mlp_post" else None
    options: dict[str, Any] = {"site": site, "direction": direction, "groups": groups}
    found = attribute(tiny_model, *pairs, method="gradient", average=False, batch_size=2, **options)
    rng = np.random.default_rng(0)
    cells = rng.integers(0, found.shape[1:], (6, found.ndim - 1))

    def value(logits):
        columns = logits[:, 7:-1].double().log_softmax(-1)
        return -columns.gather(-1, pairs[0].continuation[..., None])[..., 0].mean(-1)

    for cell in cells.tolist():
        layer, pos = cell[0], cell[-1]
        name = f"blocks.{layer}.{HOOKS[site]}"
        with torch.no_grad(), recording(tiny_model, [name]) as recorded:
            tiny_model(source.tokens)
        other = recorded[name]

        def move(value, hook, cell=cell, pos=pos, other=other, step=0.02):  # noqa: ARG001
            chosen = torch.zeros_like(value)
            if site == "pattern":
                chosen[:, cell[1], pos] = 1
            elif site == "mlp_post":
                chosen[:, pos, torch.arange(44) * 4 // 44 == cell[1]] = 1
            elif len(cell) == 3:
                chosen[:, pos, cell[1]] = 1
            else:
                chosen[:, pos] = 1
            return value + step * chosen * (other - value)

        def back(value, hook, move=move):
            return move(value, hook, step=-0.02)

        with torch.no_grad():
            ends = [value(tiny_model.run_with_hooks(base.tokens, fwd_hooks=[(name, hook)])) for hook in (move, back)]
        slope = ((ends[0] - ends[1]) / 0.04).numpy()
        np.testing.assert_allclose(found.values[(slice(None), *cell)], slope, atol=3e-3, rtol=0.03)
    assert not any(parameter.grad is not None for parameter in tiny_model.parameters())
    assert not any(point.fwd_hooks or point.bwd_hooks for point in tiny_model.hook_dict.values())


@pytest.mark.parametrize("site", ["z", "resid_pre", "mlp_post"])
def test_one_position_of_a_pair_and_all_together(tiny_model, site):
    clean = Paragraphs(torch.randint(0, 61, (2, 14), generator=torch.Generator().manual_seed(17)), 8)
    changed = clean.tokens.clone()
    changed[[0, 1], [3, 6]] += 1
    changed[:, 9] += 2
    corrupt = Paragraphs(changed % 61, 8)
    whole = attribute(tiny_model, clean, corrupt, site=site, average=False)
    one = attribute(tiny_model, clean, corrupt, site=site, average=False, pos="perturbed", batch_size=1)
    np.testing.assert_allclose(one, np.stack([whole.values[0, ..., 3], whole.values[1, ..., 6]]), atol=1e-6)
    together = attribute(tiny_model, clean, corrupt, site=site, average=False, pos="all")
    np.testing.assert_allclose(together, whole.sum("pos"), atol=1e-5)
    assert "pos" not in together.dims and (one.attrs["pos"], together.attrs["pos"]) == ("perturbed", "all")
    # What it gives is what `patch` takes.
    patch(tiny_model, clean, corrupt, site=site, pos="perturbed", cells=top_cells(one, 0.1))
    with pytest.raises(InputError, match="got pair 0 with 0 prefix tokens that differ"):
        attribute(
            tiny_model, clean, clean.replace_tokens((clean.tokens + torch.eye(14).long()[9]) % 61), pos="perturbed"
        )


def squared_distance(scored):
    """Of the logits from those of the unpatched run: quadratic in them, and flat there."""
    return (scored.logits - scored.reference()).square().mean((-1, -2))


@pytest.mark.parametrize("metric", ["kl", squared_distance])
def test_a_distance_from_the_unpatched_run_has_no_slope_there(tiny_model, pairs, metric: Any):
    name = getattr(metric, "__name__", metric)
    said = f"the gradient of {name} is zero at the unpatched run, whatever is patched; use method='both_ends'"
    for direction in ("noising", "denoising"):
        with pytest.raises(InputError, match=said):
            attribute(tiny_model, *pairs, metric=metric, method="gradient", direction=direction)
    for method in ("both_ends", "integrated"):
        found = attribute(tiny_model, *pairs, metric=metric, method=method, site="resid_post")
        exact = patch(tiny_model, *pairs, metric=metric, site="resid_post")
        assert rank_correlation(found, exact) > 0.6
    if metric == "kl":
        # Its own choice is one that works.
        assert attribute(tiny_model, *pairs, metric="kl", site="z").attrs["approximation"] == "both_ends"
    # A slope that is small is a slope.
    attribute(tiny_model, *pairs, metric=lambda s: 1e-6 * nll(s), method="gradient")


@pytest.mark.parametrize("site", ["z", "pattern", "mlp_post", "resid_pre"])
def test_both_ends_is_the_mean_of_two_gradients_by_hand(tiny_model, pairs, site):
    """Autograd at each end, cell by cell; and minus the same in the other direction."""
    groups = 4 if site == "mlp_post" else None
    found = attribute(tiny_model, *pairs, site=site, method="both_ends", groups=groups, average=False, batch_size=2)
    names = [f"blocks.{layer}.{HOOKS[site]}" for layer in range(4)]
    gradients, values = [], []
    for side in pairs:
        with torch.enable_grad(), recording(tiny_model, names) as recorded:
            logits = tiny_model(side.tokens)
        columns = logits[:, 7:-1].log_softmax(-1)
        loss = -columns.gather(-1, pairs[0].continuation[..., None])[..., 0].mean(-1).sum()
        gradients.append(torch.autograd.grad(loss, [recorded[name] for name in names]))
        values.append([recorded[name].detach() for name in names])
    for layer in range(4):
        product = (gradients[0][layer] + gradients[1][layer]) / 2 * (values[1][layer] - values[0][layer])
        if site == "z":
            cells = product.sum(-1).transpose(1, 2)
        elif site == "pattern":
            cells = product.sum(-1)
        elif site == "mlp_post":
            group = torch.arange(44) * 4 // 44
            cells = torch.stack([product[..., group == k].sum(-1) for k in range(4)], 1)
        else:
            cells = product.sum(-1)
        np.testing.assert_allclose(found.isel(layer=layer), cells, atol=2e-6)
    options: dict[str, Any] = {"site": site, "groups": groups, "average": False}
    back = attribute(tiny_model, *pairs, method="both_ends", direction="denoising", **options)
    np.testing.assert_allclose(back, -found, atol=2e-6)
    # The mean of what one gradient says in each direction, for "gradient" and for "both_ends".
    halves = [
        attribute(tiny_model, *pairs, method="gradient", direction=way, **options) for way in ("noising", "denoising")
    ]
    for method in ("gradient", "both_ends"):
        mean = attribute(tiny_model, *pairs, method=method, direction="mean", **options)
        np.testing.assert_allclose(mean, found, atol=2e-6)
        np.testing.assert_allclose(mean, (halves[0] - halves[1]) / 2, atol=2e-6)
        assert mean.attrs["direction"] == "mean" and "on average over both runs" in mean.attrs["higher"]


def test_both_ends_is_exact_where_the_metric_is_quadratic(tiny_model, pairs):
    """A trapezium under a slope that is a straight line, as from the last stream through a norm that is linear."""
    linear = copy.deepcopy(tiny_model)
    # The variance is nothing beside eps, and the weight makes up for it.
    linear.ln_final.eps = 1e8
    linear.ln_final.w.data *= 1e4

    def quadratic(scored):
        return (scored.logits[..., :7].square().sum(-1) + scored.logits[..., 8]).mean(-1)

    ways: list[Any] = [("noising", "both_ends"), ("denoising", "both_ends"), ("mean", "gradient")]
    for direction, method in ways:
        found = attribute(linear, *pairs, site="resid_post", metric=quadratic, direction=direction, method=method)
        whole = found.attrs["source"] - found.attrs["base"]
        assert float(found.isel(layer=-1).sum()) == pytest.approx(whole, rel=1e-3) and abs(whole) > 0.1
    plain = attribute(linear, *pairs, site="resid_post", metric=quadratic, method="gradient")
    assert abs(float(plain.isel(layer=-1).sum()) - (plain.attrs["source"] - plain.attrs["base"])) > 0.1


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(("site", "pos"), [("z", "each"), ("resid_mid", "perturbed"), ("mlp_post", "all")])
def test_the_mean_of_both_directions_is_half_of_one_minus_the_other(tiny_model, site, pos, normalize):
    generator = torch.Generator().manual_seed(17)
    clean = Paragraphs(torch.randint(0, 61, (3, 14), generator=generator), 8)
    changed = clean.tokens.clone()
    changed[torch.arange(3), torch.tensor([3, 6, 0])] += 1
    changed[:, 9:] += 2
    corrupt = Paragraphs(changed % 61, 8)
    options: dict[str, Any] = {"site": site, "pos": pos, "average": False}
    ends = {way: patch(tiny_model, clean, corrupt, direction=way, **options) for way in ("noising", "denoising")}
    half = (ends["noising"] - ends["denoising"]) / 2
    whole = ends["noising"].attrs["source"] - ends["noising"].attrs["base"]
    for method in (patch, attribute):
        found = method(tiny_model, clean, corrupt, direction="mean", normalize=normalize, **options)
        assert found.attrs["direction"] == "mean" and found.dims == half.dims
        assert (found.attrs["base"], found.attrs["source"]) == pytest.approx(
            (ends["noising"].attrs["base"], ends["noising"].attrs["source"]), abs=1e-5
        )
        if method is patch:
            np.testing.assert_allclose(found, half / whole if normalize else half, atol=1e-5)
    for method in (patch, attribute):
        for metric in ("kl", squared_distance):
            with pytest.raises(InputError, match="compares with the unpatched run, which is another one in each"):
                method(tiny_model, clean, corrupt, direction="mean", metric=metric, **options)
        with pytest.raises(InputError, match="need one of noising, denoising, mean"):
            method(tiny_model, clean, corrupt, direction="both", **options)  # pyright: ignore[reportArgumentType]


def test_integrated_gradients_of_the_first_stream_add_up_to_the_whole_difference(tiny_model, pairs):
    """Completeness: along the embeddings' path, the parts sum to what replacing everything does."""
    for row in range(3):
        # The same continuation in both, so that the source run is the base run with other embeddings.
        alike = Paragraphs(torch.cat([pairs[1].prefix, pairs[0].continuation], 1), 8)
        single = pairs[0].select(np.array([row])), alike.select(np.array([row]))
        first = attribute(tiny_model, *single, site="resid_pre", method="integrated", steps=200)
        total = float(first.isel(layer=0).sum())
        assert total == pytest.approx(first.attrs["source"] - first.attrs["base"], rel=0.03, abs=2e-3)
        plain = float(attribute(tiny_model, *single, site="resid_pre", method="gradient").isel(layer=0).sum())
        assert abs(plain - total) > 1e-3
    assert first.attrs["approximation"] == "integrated" and first.attrs["steps"] == 200


def test_on_a_planted_model_integrated_gradients_find_what_plain_ones_do_not():
    truth = planted()
    swapped = truth.memorized.tokens.clone()
    swapped[torch.arange(8), torch.from_numpy(truth.triggers)] = truth.other.prefix[:8].amax(-1)
    corrupt = Paragraphs(swapped, 50)
    exact = patch(truth.model, truth.memorized, corrupt, site="v", normalize=True)
    good = attribute(truth.model, truth.memorized, corrupt, site="v", direction="denoising", metric=nll)
    size = abs(good).sum("pos").values
    assert np.unravel_index(size.argmax(), size.shape) == truth.head
    assert (abs(exact).sum("pos").values.argmax()) == size.argmax()
    # At the clean run the memory is certain: the slope is flat and says nothing of what its loss would cost.
    flat = attribute(truth.model, truth.memorized, corrupt, site="v", normalize=True)
    assert abs(flat.sel(layer=truth.head[0], head=truth.head[1])).sum().item() < 0.01
    assert abs(exact.sel(layer=truth.head[0], head=truth.head[1])).sum().item() > 0.9


def test_top_cells_and_rank_correlation(tiny_model, pairs):
    approximate = attribute(tiny_model, *pairs, site="z", metric=logit_difference, scored="impact")
    need = top_cells(approximate, 0.1)
    assert int(need.sum()) == round(0.1 * approximate.size) == need.attrs["chosen"]
    assert abs(approximate.values[need.values]).min() >= abs(approximate.values[~need.values]).max()
    some = patch(tiny_model, *pairs, site="z", metric=logit_difference, scored="impact", cells=need)
    whole = patch(tiny_model, *pairs, site="z", metric=logit_difference, scored="impact")
    assert rank_correlation(whole, some) == pytest.approx(1)
    assert rank_correlation(approximate, whole) > 0.5
    assert rank_correlation(-approximate, whole) < -0.5
    with pytest.raises(InputError, match="got 0.0 as fraction"):
        top_cells(approximate, 0.0)
    with pytest.raises(InputError, match="need those of one site"):
        rank_correlation(approximate, whole.isel(head=[0, 1]))
    with pytest.raises(InputError, match="0 cells can be compared"):
        rank_correlation(approximate * 0, whole * 0)


def test_what_gives_no_gradient_is_refused(tiny_model, pairs):
    cases: list[tuple[dict[str, Any], str]] = [
        ({"metric": em}, "em has no gradient"),
        ({"method": "integrated", "steps": 0}, "got 0 as steps; need a whole number of at least 1"),
        ({"metric": lambda s: s.clean[:, 0].float()}, "has no gradient; need a smooth function"),
        ({"site": "nowhere"}, "got site 'nowhere'"),
        ({"steps": 3}, "method 'gradient' does not use steps"),
        ({"method": "both_ends", "steps": 3}, "method 'both_ends' does not use steps"),
        ({"method": "relp"}, "need one of gradient, both_ends, integrated"),
        ({"site": "mlp_post", "groups": 0}, "got 0 as groups"),
    ]
    for arguments, sentence in cases:
        with pytest.raises(InputError, match=sentence):
            attribute(tiny_model, *pairs, **arguments)
