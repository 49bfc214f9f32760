"""A capture holds what run_with_cache gives, under the right labels, in memory or in a file."""

import copy
from typing import get_args

import h5netcdf
import numpy as np
import psutil
import pytest
import torch
import xarray as xr

import mechmem as mm
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.localize.capture import capture
from mechmem.model.activation_sites import CaptureSite, Site
from mechmem.model.activations import point_of
from mechmem.model.hooks import hooked_points, with_hooks
from mechmem.model.lean.model import runs_lean

PARAGRAPHS = Paragraphs(torch.randint(0, 17, (5, 13), generator=torch.Generator().manual_seed(3)), prefix_len=7)


@pytest.fixture(scope="module", params=["neo", "gpt2", "neox"])
def model(request, small_model):
    settings = {"original_architecture": "test", "init_mode": "gpt2", "initializer_range": 0.4, "d_mlp": 19}
    if request.param == "neo":
        local = {"use_local_attn": True, "attn_types": ["global", "local"], "window_size": 4, "use_attn_scale": False}
        return small_model(**settings, **local)
    if request.param == "gpt2":
        return small_model(**settings)
    rotary = {"positional_embedding_type": "rotary", "rotary_dim": 4, "parallel_attn_mlp": True, "d_head": 6}
    return small_model(**settings, **rotary, n_layers=3)


def run_with_cache(model, paragraphs, site, layer):
    """One site of one layer, by TransformerLens, [paragraph, head, ...] where it has heads."""
    part = {"scores": "attn.hook_attn_scores", "result": "attn.hook_result", "mlp_post": "mlp.hook_post"}
    inside = "attn." if site in ("q", "k", "v", "z", "pattern") else ""
    name = f"blocks.{layer}.{part.get(site, f'{inside}hook_{site}')}"
    kept = model.cfg.use_attn_result
    model.set_use_attn_result(site == "result")
    with torch.no_grad():
        value = model.run_with_cache(paragraphs.tokens, names_filter=[name])[1][name]
    model.set_use_attn_result(kept)
    return (value.transpose(1, 2) if site in ("q", "k", "v", "z", "result") else value).numpy()


def sites_of(model) -> list[str]:
    return [site for site in get_args(CaptureSite) if site != "resid_mid" or not model.cfg.parallel_attn_mlp]


@pytest.mark.parametrize("hooked", [False, True])
def test_every_site_is_that_of_run_with_cache(model, hooked):
    model = copy.deepcopy(model)
    if hooked:  # of a point that changes no number, so that the model itself runs
        model.add_hook("blocks.1.hook_mlp_out", lambda value, hook: value)  # noqa: ARG005
    assert runs_lean(model) != hooked
    found = capture(model, PARAGRAPHS, sites_of(model), batch_size=2)
    for site in sites_of(model):
        for layer in range(model.cfg.n_layers):
            expected = run_with_cache(model, PARAGRAPHS, site, layer)
            np.testing.assert_allclose(found[site].sel(layer=layer), expected, atol=2e-5, err_msg=f"{site} {layer}")


@pytest.mark.parametrize("site", get_args(CaptureSite))
def test_a_site_alone_is_that_site_among_others(model, site):
    if site not in sites_of(model):
        with pytest.raises(InputError, match="no 'resid_mid'"):
            capture(model, PARAGRAPHS, site)
        return
    alone, among = capture(model, PARAGRAPHS, site), capture(model, PARAGRAPHS, sites_of(model))
    np.testing.assert_allclose(alone[site], among[site], atol=2e-5)
    assert list(alone.data_vars) == [site]


def test_what_is_known_before_the_mlps_is_not_written_over_by_them(model):
    early = ("z", "pattern", "resid_pre", "result", "scores")
    together, among = capture(model, PARAGRAPHS, early), capture(model, PARAGRAPHS, sites_of(model))
    for site in early:
        np.testing.assert_allclose(together[site], among[site], atol=2e-5, err_msg=site)


def test_labels_follow_the_numbers(model):
    """Heads, layers, positions and paragraphs in another order: each label still names its own numbers."""
    whole = capture(model, PARAGRAPHS, ("z", "pattern", "resid_post"))
    order = [4, 0, 3]
    part = capture(model, PARAGRAPHS.select(order), ("z", "pattern", "resid_post"), layers=[1, 0], heads=1, pos=[9, 2])
    assert part.z.dims == ("paragraph", "layer", "head", "pos", "d_head") and part.z.shape[:4] == (3, 2, 1, 2)
    assert part.pattern.dims == ("paragraph", "layer", "head", "query_pos", "key_pos") and part.sizes["key_pos"] == 13
    assert part.layer.values.tolist() == [1, 0] and part["head"].values.tolist() == [1]
    assert part.paragraph.values.tolist() == PARAGRAPHS.ids[order].tolist()
    for name in part.data_vars:
        label = {axis: part[axis] for axis in part[name].dims if axis in part.coords}
        np.testing.assert_allclose(part[name], whole[name].sel(label), atol=2e-5)
    np.testing.assert_array_equal(part.token, PARAGRAPHS.tokens[order][:, [9, 2]])
    np.testing.assert_array_equal(part.query_token, part.token.values)
    np.testing.assert_array_equal(part.key_token, PARAGRAPHS.tokens[order])
    assert part.text.values.tolist() == [[str(token) for token in row] for row in part.token.values.tolist()]


def test_heads_that_change_places_change_labels(model):
    swapped = copy.deepcopy(model)
    with torch.no_grad():
        for block in swapped.blocks:
            for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V"):
                tensor = getattr(block.attn, name)
                tensor.copy_(tensor.flip(0))
    before, after = capture(model, PARAGRAPHS, ("z", "pattern")), capture(swapped, PARAGRAPHS, ("z", "pattern"))
    for name in ("z", "pattern"):
        np.testing.assert_allclose(after[name].sel(head=0), before[name].sel(head=1), atol=2e-5)
        assert abs(after[name] - before[name]).max() > 0.01


def test_hooks_act_and_none_is_left(model):
    model = copy.deepcopy(model)

    def silence(z, hook):  # noqa: ARG001
        z[:, :, 1] = 0.0
        return z

    plain = capture(model, PARAGRAPHS, ("z", "resid_post"))
    with with_hooks(model, {"blocks.0.attn.hook_z": silence}):
        before = hooked_points(model)
        hooked = capture(model, PARAGRAPHS, ("z", "resid_post"))
        assert hooked_points(model) == before
    assert not hooked.z.sel(layer=0, head=1).any() and plain.z.sel(layer=0, head=1).any()
    assert abs(hooked.resid_post - plain.resid_post).max() > 0.01
    assert hooked_points(model) == []


@pytest.mark.parametrize("site", get_args(Site))
def test_gradients_are_those_of_a_small_change(model, site):
    if site == "resid_mid" and model.cfg.parallel_attn_mlp:
        return
    model = copy.deepcopy(model).to(torch.float64)
    found = capture(model, PARAGRAPHS, site, gradient_of="nll")
    plain = capture(model, PARAGRAPHS, site)
    np.testing.assert_allclose(found[site], plain[site], atol=1e-6)  # TransformerLens rotates by angles in float32
    gradient = found[f"{site}_gradient"]
    assert gradient.dims == found[site].dims and gradient.attrs["units"] == "nats per token per unit of activation"
    step, row = 1e-5, 2
    place: tuple[int, ...] = (row, 1, 1, 8, 3) if gradient.ndim == 5 else (row, 1, 8, 3)
    name = point_of(site, 1)

    def nll(shift: float) -> float:
        def move(value, hook):  # noqa: ARG001
            value = value.clone()
            # q, k, v and z have the position before the head in TransformerLens.
            at = [0, 3, 2, 4] if gradient.ndim == 5 and site != "pattern" else [0, *range(2, gradient.ndim)]
            value[tuple(place[axis] for axis in at)] += shift
            return value

        with with_hooks(model, {name: move}):
            return float(mm.score(model, PARAGRAPHS).nll[row])

    assert gradient.values[place] != 0
    np.testing.assert_allclose((nll(step) - nll(-step)) / (2 * step), gradient.values[place], rtol=1e-4, atol=1e-7)


def test_a_metric_of_ones_own(tiny_model, tiny_paragraphs):
    def first_logit(scored):
        return scored.logits[:, 0].gather(-1, scored.clean[:, :1]).squeeze(-1)

    found = capture(tiny_model, tiny_paragraphs, "resid_post", gradient_of=first_logit, layers=3)
    gradient = found.resid_post_gradient
    assert gradient.attrs["higher"] == "a larger activation raises first_logit"
    # The logit at the last prefix position depends on no later stream, and on the last layer's at this position alone.
    assert gradient.sel(pos=12).any() and not gradient.sel(pos=[*range(12), *range(13, 23)]).any()
    for wrong in ("kl", "em", lambda scored: scored.logits.argmax(-1).sum(-1).float()):
        with pytest.raises(InputError, match="has no gradient|have no gradient"):
            capture(tiny_model, tiny_paragraphs, "z", gradient_of=wrong)
    with pytest.raises(InputError, match="capture attn_out instead"):
        capture(tiny_model, tiny_paragraphs, "result", gradient_of="nll")


def test_a_file_holds_what_memory_would(tiny_model, tiny_paragraphs, tmp_path):
    tiny_paragraphs = tiny_paragraphs.with_columns(id=[f"\0{number}" for number in range(11)])
    options = {"sites": ("z", "scores", "mlp_post"), "layers": [0, 2], "pos": slice(3, 20, 2), "batch_size": 4}
    expected = capture(tiny_model, tiny_paragraphs, **options)
    with capture(tiny_model, tiny_paragraphs, out=tmp_path / "deep" / "z.nc", **options) as found:
        xr.testing.assert_identical(found.load(), expected)
    half = capture(tiny_model, tiny_paragraphs, "z", dtype=torch.float16)
    assert half.z.dtype == np.float16
    np.testing.assert_allclose(half.z.sel(layer=[0, 2], pos=expected.pos), expected.z, atol=1e-2)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["z.nc"]


def test_a_file_that_cannot_be_finished_is_not_there(tiny_model, tiny_paragraphs, tmp_path):
    (tmp_path / "z.nc").write_text("mine")

    def stop(done, total):  # noqa: ARG001
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        capture(tiny_model, tiny_paragraphs, "z", out=tmp_path / "z.nc", batch_size=2, progress=stop)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("z.nc", "mine")]


def test_only_a_batch_is_held_where_a_file_is_written(tiny_model, monkeypatch, tmp_path):
    """No array of the answer's size is made; each write is one layer of one batch."""
    paragraphs = Paragraphs(torch.randint(0, 61, (60, 23), generator=torch.Generator().manual_seed(1)), 13)
    written = []
    original = h5netcdf.Variable.__setitem__

    def setitem(self, key, value):
        if self.name.endswith("/z"):
            written.append(np.asarray(value).nbytes)
        original(self, key, value)

    monkeypatch.setattr(h5netcdf.Variable, "__setitem__", setitem)
    with capture(tiny_model, paragraphs, "z", out=tmp_path / "z.nc", batch_size=5) as found:
        assert max(written) == found.z.nbytes / 12 / 4


@pytest.mark.parametrize("options", [{"sites": "hook_z"}, {"sites": ["attn.hook_z", "z"]}])
def test_names_of_transformerlens_work(tiny_model, tiny_paragraphs, options):
    found = capture(tiny_model, tiny_paragraphs, **options)
    xr.testing.assert_identical(found, capture(tiny_model, tiny_paragraphs, "z"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sites": "w"}, "got site 'w'; need one of resid_pre"),
        ({"sites": ()}, "got no sites"),
        ({"layers": 4}, "got 4 as layers; need different numbers from 0 to 3"),
        ({"layers": []}, r"got \[\] as layers"),
        ({"heads": [0, 0]}, r"got \[0, 0\] as heads"),
        ({"heads": -1}, "got -1 as heads"),
        ({"heads": "L1H2"}, "got 'L1H2' as heads; need whole numbers from 0 to 2"),
        ({"pos": 1.0}, "got 1.0 as pos; need whole numbers from 0 to 22"),
        ({"pos": True}, "got True as pos"),
        ({"pos": slice(30, 40)}, "as pos; need different numbers"),
        ({"dtype": torch.bfloat16}, "got dtype torch.bfloat16; need one that arrays have"),
        ({"out": "x.zarr"}, "need a file name that ends in .nc"),
        ({"gradient_of": "bleu"}, "got metric 'bleu'"),
    ],
)
def test_what_cannot_be_captured_is_refused(tiny_model, tiny_paragraphs, options, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said):
        capture(tiny_model, tiny_paragraphs, **options)
    assert not list(tmp_path.iterdir())


def test_an_answer_larger_than_what_is_free_is_refused_before_work(tiny_model, tiny_paragraphs, monkeypatch, tmp_path):
    free = psutil.virtual_memory()._replace(available=10_000)
    monkeypatch.setattr("psutil.virtual_memory", lambda: free)
    with pytest.raises(InputError, match=r"the answer takes 0\.1 MB and 0\.0 MB of memory is free; write it to a file"):
        capture(tiny_model, tiny_paragraphs, "z")
    usage = type("Usage", (), {"free": 0})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(InputError, match="of disk space at"):
        capture(tiny_model, tiny_paragraphs, "z", out=tmp_path / "new" / "z.nc")
    assert not list(tmp_path.iterdir())


def test_broken_weights_are_named_by_layer(tiny_model, tiny_paragraphs):
    model = copy.deepcopy(tiny_model)
    with torch.no_grad():
        model.blocks[1].mlp.W_out[0, 0] = torch.nan
    with pytest.raises(InputError, match="layer 1 gives NaN"):
        capture(model, tiny_paragraphs, "z")
    assert np.isfinite(capture(model, tiny_paragraphs, "z", layers=[0, 1]).z).all(), "what is asked for is sound"
