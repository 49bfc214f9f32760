"""Patched runs packed together are those of one forward a cell with hooks."""

import inspect
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from jaxtyping import TypeCheckError

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.localize import patching
from mechmem.localize.metrics import em, kl, logit_difference, metric_of, nll
from mechmem.localize.patching import patch
from mechmem.model.hooks import with_hooks
from mechmem.model.lean.trace import HEAD_SITES, HOOKS, SITES
from mechmem.truth.planted import planted
from mechmem.truth.planted_settings import PlantedSettings


@pytest.fixture(scope="module")
def pairs() -> tuple[Paragraphs, Paragraphs]:
    """Three pairs of 24 tokens: two differ in one prefix token and late in the continuation, one everywhere."""
    generator = torch.Generator().manual_seed(6)
    clean = torch.randint(0, 17, (3, 14), generator=generator)
    corrupt = clean.clone()
    corrupt[0, 3], corrupt[1, 5] = (clean[0, 3] + 1) % 17, (clean[1, 5] + 4) % 17
    corrupt[:2, 11:] = torch.randint(0, 17, (2, 3), generator=generator)
    corrupt[:2, 11] = (clean[:2, 11] + 1) % 17
    corrupt[2] = (clean[2] + 3) % 17
    return Paragraphs(clean, 8), Paragraphs(corrupt, 8)


def hooked_logits(model, base, source, site, layer, part, pos, groups=4):
    """One forward of one cell, all pairs, with a hook."""
    name = f"blocks.{layer}.{HOOKS[site]}"
    _, cache = model.run_with_cache(source, names_filter=[name])

    def replace(value, hook):  # noqa: ARG001
        value = value.clone()
        if site == "pattern":
            value[:, part, pos] = cache[name][:, part, pos]
        elif site in HEAD_SITES:
            value[:, pos, part] = cache[name][:, pos, part]
        elif site == "mlp_post":
            mine = torch.arange(value.shape[-1]) * groups // value.shape[-1] == part
            value[:, pos, mine] = cache[name][:, pos, mine]
        else:
            value[:, pos] = cache[name][:, pos]
        return value

    with torch.no_grad():
        return model.run_with_hooks(base, fwd_hooks=[(name, replace)])


def slow(model, clean, corrupt, site, direction, groups=4):
    """Every cell alone: change of the NLL of the clean continuation, [pair, layer, part, pos]."""
    base, source = (clean, corrupt) if direction == "noising" else (corrupt, clean)

    def nlls(logits):
        columns = logits[:, clean.prefix_len - 1 : -1].double().log_softmax(-1)
        return -columns.gather(-1, clean.continuation[..., None])[..., 0].mean(-1)

    with torch.no_grad():
        unpatched = nlls(model(base.tokens))
    parts = model.cfg.n_heads if site in HEAD_SITES else groups if site == "mlp_post" else 1
    effects = np.zeros((len(clean), model.cfg.n_layers, parts, clean.tokens.shape[1]))
    for layer, part, pos in np.ndindex(*effects.shape[1:]):
        logits = hooked_logits(model, base.tokens, source.tokens, site, layer, part, pos, groups)
        effects[:, layer, part, pos] = nlls(logits) - unpatched
    return effects


@pytest.fixture(scope="module", params=["neo", "gpt2", "neox"])
def model(request, small_model):
    settings = {"original_architecture": "test", "init_mode": "gpt2", "initializer_range": 0.4}
    if request.param == "neo":
        local = {"use_local_attn": True, "attn_types": ["global", "local"], "window_size": 4, "use_attn_scale": False}
        return small_model(**settings, **local, d_mlp=13)
    if request.param == "gpt2":
        return small_model(**settings, d_mlp=13)
    rotary = {"positional_embedding_type": "rotary", "rotary_dim": 4, "parallel_attn_mlp": True, "d_head": 6}
    return small_model(**settings, **rotary, d_mlp=13, n_layers=3)


@pytest.mark.parametrize("direction", ["noising", "denoising"])
@pytest.mark.parametrize("site", SITES)
def test_every_cell_of_every_site_is_that_of_one_forward_with_a_hook(model, pairs, site, direction, monkeypatch):
    if site == "resid_mid" and model.cfg.parallel_attn_mlp:
        with pytest.raises(InputError, match="side by side, so it has no 'resid_mid'"):
            patch(model, *pairs, site=site)
        return
    expected = slow(model, pairs[0], pairs[1], site, direction)
    groups = 4 if site == "mlp_post" else None
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for at_once in (1, 90, 10**6):
        monkeypatch.setitem(patching.AT_ONCE, "cpu", at_once)
        found = patch(model, *pairs, site=site, direction=direction, groups=groups, average=False)
        values = found.values if found.ndim == 4 else found.values[:, :, None]
        np.testing.assert_allclose(values, expected, rtol=0, atol=2e-5)
        assert np.abs(expected).max() > 1e-3 and (found.values[..., -1] == 0).all()
        assert found.paragraph.values.tolist() == pairs[0].ids.tolist()
    whole = patch(model, *pairs, site=site, direction=direction, groups=groups)
    np.testing.assert_allclose(whole.values, found.values.mean(0), atol=1e-6)
    assert whole.dims == found.dims[1:] and whole.attrs["pairs"] == 3
    assert not any(point.fwd_hooks for point in model.hook_dict.values())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("direction", ["noising", "denoising"])
@pytest.mark.parametrize("site", SITES)
def test_all_positions_together_are_one_forward_with_a_hook(model, pairs, site, direction, monkeypatch):
    if site == "resid_mid" and model.cfg.parallel_attn_mlp:
        return
    groups = 4 if site == "mlp_post" else None
    parts = model.cfg.n_heads if site in HEAD_SITES else groups or 1
    base, source = pairs if direction == "noising" else (pairs[1], pairs[0])

    def nlls(logits):
        columns = logits[:, 7:-1].double().log_softmax(-1)
        return -columns.gather(-1, pairs[0].continuation[..., None])[..., 0].mean(-1)

    with torch.no_grad():
        unpatched = nlls(model(base.tokens))
    expected = np.zeros((3, model.cfg.n_layers, parts))
    for layer, part in np.ndindex(*expected.shape[1:]):
        logits = hooked_logits(model, base.tokens, source.tokens, site, layer, part, slice(None))
        expected[:, layer, part] = nlls(logits) - unpatched
    for at_once in (1, 10**6):
        monkeypatch.setitem(patching.AT_ONCE, "cpu", at_once)
        seen = []
        found = patch(
            model,
            *pairs,
            site=site,
            pos="all",
            direction=direction,
            groups=groups,
            average=False,
            progress=lambda *state, seen=seen: seen.append(state),
        )
        np.testing.assert_allclose(found.values.reshape(expected.shape), expected, rtol=0, atol=2e-5)
        assert "pos" not in found.dims and np.abs(expected).max() > 1e-3
        assert seen[-1] == (expected.size, expected.size)


def test_cells_without_positions_choose_heads(tiny_model, pairs):
    whole = patch(tiny_model, *pairs, pos="all")
    need = whole == whole.max()
    some = patch(tiny_model, *pairs, pos="all", cells=need)
    np.testing.assert_allclose(some.values[need.values], whole.values[need.values], atol=1e-6)
    assert np.isnan(some.values[~need.values]).all() and some.dims == ("layer", "head")
    with pytest.raises(InputError, match="need bool with {'layer': 4, 'head': 3, 'pos': 14}"):
        patch(tiny_model, *pairs, cells=need)


@pytest.mark.parametrize("site", ["k", "z", "mlp_post", "resid_pre"])
def test_the_perturbed_token_is_one_of_all_positions(tiny_model, pairs, site, monkeypatch):
    clean, corrupt = (side.select(np.arange(2)) for side in pairs)
    options: dict[str, Any] = {"site": site, "average": False, "direction": "denoising"}
    whole = patch(tiny_model, clean, corrupt, **options)
    expected = np.stack([whole.values[0, ..., 3], whole.values[1, ..., 5]])
    for at_once in (1, 10**6):
        monkeypatch.setitem(patching.AT_ONCE, "cpu", at_once)
        seen = []
        found = patch(
            tiny_model,
            clean,
            corrupt,
            pos="perturbed",
            progress=lambda *state, seen=seen: seen.append(state),
            **options,
        )
        np.testing.assert_allclose(found.values, expected, atol=2e-5)
        assert seen[-1] == (expected.size, expected.size) and "pos" not in found.dims
    assert found.attrs["pos"] == "perturbed" and np.abs(expected).max() > 1e-3
    with pytest.raises(InputError, match="got pair 2 with 8 prefix tokens that differ; need exactly 1"):
        patch(tiny_model, *pairs, pos="perturbed")


def test_what_normalized_effects_say_of_themselves_holds(tiny_model, pairs):
    alike = Paragraphs(torch.cat([pairs[1].prefix, pairs[0].continuation], 1), 8)
    options: dict[str, Any] = {"site": "resid_post", "pos": "all", "normalize": True}
    back = patch(tiny_model, pairs[0], alike, direction="denoising", **options)
    # Everything replaced in the last layer is the clean run.
    assert back.isel(layer=-1).item() == pytest.approx(1, abs=1e-4)
    assert back.attrs["higher"].startswith("more of the clean run is restored: 1.0") and back.attrs["units"] == "1"
    forth = patch(tiny_model, pairs[0], alike, direction="noising", **options)
    assert forth.isel(layer=-1).item() == pytest.approx(1, abs=1e-4)
    assert "closer to the corrupt run" in forth.attrs["higher"]
    plain = patch(tiny_model, pairs[0], alike, site="resid_post", pos="all")
    assert plain.attrs["higher"] == "the patched run's metric is higher than the unpatched run's"
    assert plain.attrs["units"] == "nats per token"


@pytest.mark.parametrize("metric", [nll, logit_difference, kl])
def test_names_and_hook_names_stand_for_metrics_and_sites(tiny_model, pairs, metric):
    function = patch(tiny_model, *pairs, site="z", metric=metric)
    for site in ("hook_z", "attn.hook_z"):
        xr.testing.assert_identical(patch(tiny_model, *pairs, site=site, metric=metric.__name__), function)
    assert metric_of("em") is em


def test_all_cells_of_the_first_stream_together_are_the_other_run(tiny_model, pairs):
    clean, corrupt = pairs
    # One position differs in the first two pairs: patching it at the first layer is the whole difference before the
    # continuation's own.
    single = clean.select(np.array([0])), corrupt.select(np.array([0]))
    found = patch(tiny_model, *single, site="resid_pre", scored=[11], normalize=True)
    assert found.sel(layer=0, pos=3).item() == pytest.approx(1, abs=1e-4)
    others = found.sel(layer=0).drop_sel(pos=3)
    assert np.abs(others.values).max() == pytest.approx(0, abs=1e-5)
    last = patch(tiny_model, *single, site="resid_post", scored=[11], normalize=True)
    assert last.isel(layer=-1).sel(pos=10).item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("metric", [nll, logit_difference, kl, em])
def test_metrics_are_those_of_the_whole_logits(tiny_model, pairs, metric):
    corrupt = pairs[1]
    with torch.no_grad():
        said = tiny_model(pairs[0].tokens)[:, 10].argmax(-1)
    # The first pair's clean token is what the model says there, so that EM can fall.
    tokens = pairs[0].tokens.clone()
    tokens[0, 11] = said[0]
    clean = Paragraphs(tokens, 8)
    assert tokens[0, 11] != corrupt.tokens[0, 11]
    found = patch(tiny_model, clean, corrupt, site="z", metric=metric, scored="impact", average=False)
    rows = torch.arange(3)
    impact = torch.tensor([11, 11, 8])
    true, wrong = clean.tokens[rows, impact], corrupt.tokens[rows, impact]
    with torch.no_grad():
        unpatched = tiny_model(clean.tokens)[rows, impact - 1]

    def value(logits):
        log_probs, reference = logits.log_softmax(-1), unpatched.log_softmax(-1)
        return {
            "nll": -log_probs[rows, true],
            "logit_difference": logits[rows, true] - logits[rows, wrong],
            "kl": (reference.exp() * (reference - log_probs)).sum(-1),
            "em": (logits.argmax(-1) == true).float(),
        }[metric.__name__]

    for layer, head, pos in ((0, 1, 3), (2, 2, 5), (3, 0, 10), (1, 1, 0)):
        logits = hooked_logits(tiny_model, clean.tokens, corrupt.tokens, "z", layer, head, pos)[rows, impact - 1]
        expected = (value(logits) - value(unpatched)).numpy()
        np.testing.assert_allclose(found.sel(layer=layer, head=head, pos=pos).values, expected, atol=2e-5)
    assert found.attrs["metric"] == metric.__name__ and found.attrs["scored"] == "impact"


def test_only_the_cells_asked_for_are_computed(tiny_model, pairs):
    whole = patch(tiny_model, *pairs, site="v")
    size = abs(whole)
    need = size > float(size.quantile(0.8))
    seen = []
    some = patch(tiny_model, *pairs, site="v", cells=need, progress=lambda *state: seen.append(state))
    np.testing.assert_allclose(some.values[need.values], whole.values[need.values], atol=1e-6)
    assert np.isnan(some.values[~need.values]).all()
    # Before the first different token and after the last scored column there is nothing to run.
    ran = sum(int(need.sel(pos=slice(first, 12)).sum()) for first in (3, 5, 0))
    assert seen[-1] == (ran, ran) and (some.sel(pos=13).values[need.sel(pos=13).values] == 0).all()
    with pytest.raises(InputError, match="need bool with {'layer': 4, 'head': 3, 'pos': 14}"):
        patch(tiny_model, *pairs, site="v", cells=need.astype(float))


def test_the_planted_head_is_found_at_the_trigger_and_no_decoy_is():
    truth = planted(PlantedSettings(prefix_len=20, continuation_len=10))
    clean = truth.memorized
    swapped = clean.tokens.clone()
    rows = torch.arange(len(clean))
    # Each paragraph gets a rare token that stands for nothing.
    swapped[rows, torch.from_numpy(truth.triggers)] = truth.other.prefix[: len(clean)].amax(-1)
    corrupt = Paragraphs(swapped, clean.prefix_len)
    effect = patch(truth.model, clean, corrupt, site="z", normalize=True)
    # From the last prefix token on every query reads the trigger; one patched position costs one token of ten.
    found = effect.sel(pos=slice(19, 28)).mean("pos")
    assert found.sel(layer=truth.head[0], head=truth.head[1]).item() == pytest.approx(1 / 10, rel=0.05)
    assert np.abs(found.values).argmax() == truth.head[0] * 4 + truth.head[1]
    others = np.delete(np.abs(found.values).ravel(), truth.head[0] * 4 + truth.head[1])
    assert others.max() < 1e-4
    values = patch(truth.model, clean, corrupt, site="v", normalize=True, average=False)
    at_trigger = values.values[np.arange(8), truth.head[0], truth.head[1], truth.triggers]
    np.testing.assert_allclose(at_trigger, 1, atol=0.1)
    values.values[np.arange(8), truth.head[0], truth.head[1], truth.triggers] = 0
    assert np.abs(values.values).max() < 0.01
    back = patch(truth.model, clean, corrupt, site="v", direction="denoising", normalize=True, average=False)
    np.testing.assert_allclose(back.values[np.arange(8), *truth.head, truth.triggers], 1, atol=0.1)


def test_bad_input_is_refused_in_words(tiny_model, small_model, pairs):
    clean, corrupt = pairs
    short = Paragraphs(corrupt.tokens[:, :-1], 8)
    same = Paragraphs(torch.cat([corrupt.tokens[:2], clean.tokens[2:]]), 8)
    prefix_only = Paragraphs(torch.cat([corrupt.prefix, clean.continuation], 1), 8)
    cases: list[tuple[Any, str]] = [
        (((clean, short), {}), "need pairs of one length"),
        (((clean, corrupt.select(np.arange(2))), {}), "need pairs of one length"),
        (((clean, same), {}), "the two paragraphs of pair 2 are equal"),
        (((clean, prefix_only), {"scored": "impact"}), "the two continuations of pair 0 are equal, so no position"),
        (((clean, corrupt), {"site": "logits"}), "got site 'logits'; need one of resid_pre"),
        (((clean, corrupt), {"scored": [0]}), "need token positions from 1 to 13"),
        (((clean, corrupt), {"scored": []}), "need token positions from 1 to 13"),
        (((clean, corrupt), {"metric": lambda s: s.logits[:, 0, 0] * 0}), "does not depend on what is patched"),
        (((clean, corrupt), {"metric": lambda s: s.logits[:, :, 0]}), "need one number per row"),
        (((clean, corrupt), {"site": "z", "groups": 4}), "got groups 4 for the site 'z', which has none"),
        (
            ((clean, corrupt), {"metric": "accuracy"}),
            "got metric 'accuracy'; need one of nll, logit_diff",
        ),
        (((clean, corrupt), {"site": "mlp_post", "groups": 45}), "got groups 45; need 1 to 44"),
    ]
    for arguments, sentence in cases:
        with pytest.raises(InputError, match=sentence):
            inspect.unwrap(patch)(tiny_model, *arguments[0], **arguments[1])
    with pytest.raises(TypeError, match="unexpected keyword argument 'scores'; options are scored, groups, average"):
        patch(tiny_model, clean, corrupt, scores="impact")  # pyright: ignore[reportCallIssue]
    with pytest.raises((InputError, TypeCheckError)):
        patch(tiny_model, clean, corrupt, direction="sideways")  # pyright: ignore[reportArgumentType]
    with (
        with_hooks(tiny_model, {"hook_embed": lambda value, hook: None}),  # noqa: ARG005
        pytest.raises(InputError, match="the model has hooks on hook_embed, and patch would not run them"),
    ):
        patch(tiny_model, clean, corrupt)
    with pytest.raises(InputError, match="need a GPT-Neo, GPT-2 or GPT-NeoX"):
        patch(small_model(attn_only=True), clean, corrupt)
    broken = small_model()
    broken.unembed.W_U.data[0, 0] = torch.nan
    with pytest.raises(InputError, match="is not a number on an unpatched run"):
        patch(broken, clean, corrupt)


def test_results_are_labelled(tiny_model, pairs):
    found = patch(tiny_model, *pairs, site="mlp_post", groups=5, direction="denoising")
    assert isinstance(found, xr.DataArray) and dict(found.sizes) == {"layer": 4, "group": 5, "pos": 14}
    assert found.attrs["units"] == "nats per token" and found.attrs["direction"] == "denoising"
    assert found.attrs["base"] > 0 and found.attrs["source"] > 0
    assert patch(tiny_model, *pairs, site="attn_out").dims == ("layer", "pos")
