"""The view of effects: the result's numbers; blue helps or restores in any direction; tokens keep their places."""

from typing import Any

import numpy as np
import plotly.express as px
import pytest
import torch
import xarray as xr

import mechmem as mm
from mechmem.data.errors import InputError
from mechmem.show.maps.effect_signs import blue_end, meaning
from mechmem.show.patterns.packed_patterns import unpacked
from tests.show.maps.heatmap_pages import (
    axis_of,
    number_told,
    numbers_of,
    options,
    page_data,
    shown_maps,
    told_in_svg,
)

OVERVIEW = "layers × positions, layers × heads"


@pytest.fixture(scope="module")
def pairs(tiny_paragraphs):
    """Two pairs whose prefixes differ in one token, and whose continuations differ from the third token on."""
    clean = tiny_paragraphs[:2]
    tokens = clean.tokens.clone()
    tokens[0, 4] = (tokens[0, 4] + 1) % 61
    tokens[1, 7] = (tokens[1, 7] + 1) % 61
    tokens[:, 15:] = (tokens[:, 15:] + 5) % 61
    return clean, clean.replace_tokens(tokens)


@pytest.fixture(scope="module")
def by_pair(tiny_model, pairs):
    return mm.patch(tiny_model, *pairs, site="z", average=False)


def close(found, truth):
    np.testing.assert_allclose(found, truth, rtol=2e-4, atol=1e-9)


def test_layers_by_positions_and_layers_by_heads_are_sums_of_the_cells(by_pair, pairs):
    picture = mm.show.effects(by_pair, pairs[0], corrupt=pairs[1])
    assert options(picture, "paragraph")[0] == "mean of 2" and len(options(picture, "paragraph")) == 3
    positions, heads = shown_maps(picture)
    close(numbers_of(picture, positions), by_pair.mean("paragraph").sum("head").transpose("layer", "pos"))
    close(numbers_of(picture, heads), by_pair.mean("paragraph").sum("pos").transpose("layer", "head"))
    one = shown_maps(picture, paragraph=options(picture, "paragraph")[2])
    close(numbers_of(picture, one[0]), by_pair[1].sum("head"))
    layer = shown_maps(picture, paragraph=options(picture, "paragraph")[1], show="heads of L2 × positions")
    close(numbers_of(picture, layer[0]), by_pair[0].sel(layer=2))
    assert axis_of(picture, layer[0], "rows")["names"] == ["L2H0", "L2H1", "L2H2"]


def test_tokens_are_the_axis_and_what_differs_is_marked(by_pair, pairs, tiny_model):
    clean, corrupt = pairs
    picture = mm.show.effects(by_pair, clean, corrupt=corrupt)
    one = shown_maps(picture, paragraph=options(picture, "paragraph")[2])
    axis = axis_of(picture, one[0], "columns")
    assert axis["labels"] == [f" {token}" for token in clean.tokens[1].tolist()] and axis["begins"] == 13
    assert axis["marks"] == {"7": "changed", "15": "diverges"} and axis["text"]
    assert f"in the corrupt text “ {int(corrupt.tokens[1, 7])}”" in axis["names"][7]
    # The mean over texts of other tokens has positions.
    mean = axis_of(picture, shown_maps(picture)[0], "columns")
    assert mean["labels"][:3] == ["0", "1", "2"] and not mean["text"] and mean["begins"] == 13
    alone = mm.patch(tiny_model, clean[:1], corrupt[:1], site="resid_pre")
    axis = axis_of(alone_picture := mm.show.effects(alone, clean[:1]), shown_maps(alone_picture)[0], "columns")
    assert axis["text"] and axis["marks"] == {}


def test_an_experiment_knows_its_texts_and_intervals(tiny_model, pairs):
    found = mm.patch_experiment(tiny_model, *pairs, site="v", attribute_first=0.3)
    picture = mm.show.effects(found)
    assert options(picture, "reading") == ["exact patch", "estimate by attribution"]
    assert [each["title"].split(",")[0] for each in shown_maps(picture)] == ["noising", "denoising"] * 2
    layer = shown_maps(picture, show="heads of L1 × positions")[1]
    here = found.sel(direction="denoising", layer=1)
    close(numbers_of(picture, layer), here.effect_mean)
    low, high = (numbers_of(picture, {**layer, "packed": end}) for end in layer["interval"])
    close(low, here.effect_low)
    close(high, here.effect_high)
    second = shown_maps(picture, paragraph=options(picture, "paragraph")[2])
    axis = axis_of(picture, second[0], "columns")
    assert axis["marks"] == {"7": "changed", "15": "diverges"} and axis["begins"] == 13
    estimate = shown_maps(picture, reading="estimate by attribution")[0]
    close(numbers_of(picture, estimate), found.estimate.sel(direction="noising").sum("head"))
    data = page_data(picture)
    assert "Seed" not in data["facts"] and "Hatched: not measured." in data["caption"]
    assert "scored on the first token that differs" in data["caption"]


def test_an_experiment_is_shown_from_its_file_whole_or_in_part(tiny_model, pairs, tmp_path):
    found = mm.patch_experiment(tiny_model, *pairs, site="z", layers=[1, 2])
    found.to_netcdf(tmp_path / "patching.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "patching.nc", engine="h5netcdf") as opened:
        whole, again = (mm.show.effects(each, model=tiny_model) for each in (found, opened))
        assert page_data(whole) == page_data(again)
        part = mm.show.effects(opened.isel(paragraph=1).sel(direction="denoising"))
        stored = mm.show.effects(opened.sel(direction="denoising"))
    first, _ = shown_maps(part)
    close(numbers_of(part, first), found.effect.sel(direction="denoising")[1].sum("head", min_count=1))
    assert axis_of(part, first, "columns")["marks"] == {"7": "changed", "15": "diverges"} and first["ends"][1] < 0
    close(numbers_of(stored, shown_maps(stored)[1]), found.effect_mean[1].sum("pos", min_count=1))


def test_paragraphs_are_found_by_their_ids(by_pair, pairs):
    picture = mm.show.effects(by_pair, pairs[0][1:])
    assert len(options(picture, "paragraph")) == 1
    close(numbers_of(picture, shown_maps(picture)[0]), by_pair[1].sum("head"))


@pytest.mark.parametrize("metric", ["nll", "logit_difference"])
@pytest.mark.parametrize("normalize", [False, True])
def test_blue_is_what_helps_or_restores_in_both_directions(tiny_model, pairs, metric, normalize):
    given = {"site": "resid_pre", "pos": "all", "metric": metric, "scored": "impact"}
    for direction in ("noising", "denoising"):
        effect = mm.patch(tiny_model, *pairs, direction=direction, normalize=normalize, **given)
        picture = mm.show.effects(effect)
        (panel,) = shown_maps(picture)
        # Replacing the whole stream makes one run the other.
        everything = numbers_of(picture, panel)[0, 0]
        base, source = effect.attrs["base"], effect.attrs["source"]
        assert everything == pytest.approx(1 if normalize else source - base, rel=1e-3)
        clean, corrupt = (base, source) if direction == "noising" else (source, base)
        helps = clean < corrupt if metric == "nll" else clean > corrupt
        assert (everything * panel["ends"][1] > 0) == (helps or normalize)


def test_signs_of_metrics_that_are_known_and_of_others():
    assert blue_end({"metric": "nll"}, "noising") == "higher" and blue_end({"metric": "nll"}, "denoising") == "lower"
    assert blue_end({"metric": "em"}, "noising") == "lower" and blue_end({"metric": "em"}, "denoising") == "higher"
    assert blue_end({"metric": "kl", "base": 0.0, "source": 3.0}, "denoising") == "higher"
    assert blue_end({"metric": "mine", "base": 2.0, "source": 1.0}, "noising") == "lower"
    assert "replacing it raises NLL" in meaning({"metric": "nll"}, "noising")
    assert "putting it in lowers NLL" in meaning({"metric": "nll"}, "denoising")


def test_panels_at_the_perturbed_token(tiny_model, pairs):
    found = mm.perturbed_token_effects(tiny_model, *pairs)
    picture = mm.show.effects(found)
    assert options(picture, "reading") == ["memorized_own", "perturbed_own", "perturbed_memorized"]
    maps = shown_maps(picture, reading="perturbed_memorized")
    assert [each["title"] for each in maps] == ["q", "k", "v"]
    close(numbers_of(picture, maps[1]), found.effect_mean.sel(reading="perturbed_memorized", site="k"))
    assert maps[0]["ends"][1] < 0 < shown_maps(picture)[0]["ends"][1]
    assert axis_of(picture, maps[0], "columns")["labels"] == ["H0", "H1", "H2"]


def test_paths_stand_by_sender(tiny_model, pairs):
    found = mm.patch_paths(tiny_model, *pairs, receiver="L2H1")
    picture = mm.show.effects(found)
    (panel,) = shown_maps(picture)
    close(numbers_of(picture, panel), found)
    assert axis_of(picture, panel, "columns")["names"] == found.sender.values.tolist()
    assert page_data(picture)["title"] == "Effect of paths into L2H1"


@pytest.mark.parametrize(
    ("site", "pos"), [("mlp_post", "each"), ("z", "all"), ("resid_mid", "all"), ("z", "perturbed")]
)
def test_other_cells_have_maps_too(tiny_model, pairs, site, pos):
    effect = mm.patch(tiny_model, *pairs, site=site, pos=pos, scored="impact")
    picture = mm.show.effects(effect)
    *_, last = shown_maps(picture)
    truth = effect.sum("pos") if "pos" in effect.dims else effect
    close(numbers_of(picture, last), truth.values.reshape(4, -1))


def test_a_head_that_is_clicked_has_its_pattern(tiny_model, pairs, by_pair):
    picture = mm.show.effects(by_pair, pairs[0], corrupt=pairs[1], model=tiny_model)
    beside = page_data(picture)["beside"]
    assert beside["heads"] == [f"L{layer}H{head}" for layer in range(4) for head in range(3)]
    assert beside["of"] == [0, 0, 1] and beside["names"] == ["clean", "corrupt"]
    truth = mm.capture(tiny_model, pairs[1], sites="pattern").pattern.values[1, 2, 1]
    side = beside["paragraphs"][1][1]
    assert np.abs(unpacked(side["packs"][2 * 3 + 1], 1, 23)[0] - truth).max() < 0.004
    captured = mm.show.effects(by_pair, pairs[0], model=mm.capture(tiny_model, pairs[0], sites="pattern"))
    assert page_data(captured)["beside"]["paragraphs"][1][0]["packs"] == beside["paragraphs"][1][0]["packs"]


def test_of_many_heads_and_paragraphs_the_strongest_and_the_first_have_patterns(
    tiny_model, pairs, by_pair, monkeypatch
):
    monkeypatch.setattr("mechmem.show.patterns.head_patterns.MOST_WEIGHTS", 4 * 23 * 12)
    monkeypatch.setattr("mechmem.show.patterns.head_patterns.FEWEST", 4)
    beside = page_data(mm.show.effects(by_pair, pairs[0], model=tiny_model))["beside"]
    size = np.abs(by_pair.mean("paragraph")).sum("pos")
    strongest = {
        f"L{layer}H{head}" for layer, head in (divmod(int(at), 3) for at in np.argsort(-size.values, None)[:4])
    }
    assert set(beside["heads"]) == strongest and beside["of"] == [0, 0, None]
    assert "the 4 heads with the largest values" in beside["missing"]


def test_an_experiment_shows_patterns_of_its_own_texts(tiny_model, pairs):
    found = mm.patch_experiment(tiny_model, *pairs, site="z", direction="noising", layers=[1])
    beside = page_data(mm.show.effects(found, model=tiny_model))["beside"]
    assert len(beside["paragraphs"]) == 2 and beside["paragraphs"][0][1]["text"][4] == f" {int(pairs[1].tokens[0, 4])}"


def test_the_svg_says_the_results_numbers(tiny_model, pairs, tmp_path):
    effect = mm.patch(tiny_model, pairs[0][:1], pairs[1][:1], site="resid_pre")
    told = told_in_svg(mm.show.effects(effect, pairs[0][:1], corrupt=pairs[1][:1]).save(tmp_path / "effect.svg"))
    np.testing.assert_allclose([number_told(text) for text in told], effect.values.ravel(), rtol=6e-3, atol=1e-9)
    assert told[4].startswith(f"L0, position 4 “ {int(pairs[0].tokens[0, 4])}”, in the corrupt text")


def test_arrays_without_a_direction_are_shown_as_they_are():
    effect = xr.DataArray(np.arange(6.0).reshape(2, 3) - 2, dims=("layer", "head"), name="nll_change")
    picture = mm.show.effects(effect.assign_attrs(units="nats per token", higher="more damage"))
    assert page_data(picture)["title"] == "Nll change"
    assert page_data(picture)["caption"] == "Higher: more damage. Blue: above zero; orange: below."
    close(numbers_of(picture, shown_maps(picture)[0]), effect)


def test_px_imshow_draws_the_raw_result(tiny_model, pairs, by_pair):
    """xarray and plotly agree without us: dimensions, coordinates and the unit become axes, ticks and a colour bar."""
    effect = mm.patch(tiny_model, *pairs, site="resid_pre")
    figure: Any = px.imshow(effect)
    assert (figure.layout.yaxis.title.text, figure.layout.xaxis.title.text) == ("layer", "pos")
    heat = figure.data[0]
    np.testing.assert_allclose(heat.z, effect.values)
    assert list(heat.x) == list(range(23)) and list(heat.y) == list(range(4))
    assert "nats per token" in figure.layout.coloraxis.colorbar.title.text
    each: Any = px.imshow(by_pair.mean("paragraph", keep_attrs=True), facet_col="head")
    assert [note.text for note in each.layout.annotations] == ["head=0", "head=1", "head=2"]
    np.testing.assert_allclose(each.data[2].z, by_pair.mean("paragraph")[:, 2])


def test_bad_input_is_a_sentence(tiny_model, pairs, by_pair, tiny_paragraphs):
    mean = by_pair.mean("paragraph", keep_attrs=True)
    cases = [
        (lambda: mm.show.effects(mm.capture(tiny_model, pairs[0], "z")), "got a Dataset of"),
        (lambda: mm.show.effects(mean.expand_dims(step=2)), "select one of the rest, such as effect.sel"),
        (lambda: mm.show.effects(by_pair, tiny_paragraphs[3:5]), "which the effect does not have"),
        (lambda: mm.show.effects(mean, pairs[0][:1]), "got 1 paragraphs for the mean over 2"),
        (lambda: mm.show.effects(mean, corrupt=pairs[1]), "got corrupt and no paragraphs"),
        (lambda: mm.show.effects(by_pair, pairs[0], corrupt=pairs[1][:1]), "need the two sides of the same pairs"),
        (lambda: mm.show.effects(mean, theme="blue"), "theme 'blue'"),
        (
            lambda: mm.show.effects(mean > 0, mm.Paragraphs(torch.zeros(2, 9, dtype=torch.long), 5)),
            "paragraphs of 9 tokens",
        ),
    ]
    for call, sentence in cases:
        with pytest.raises(InputError, match=sentence):
            call()


def test_more_than_a_page_can_hold_is_refused(by_pair, monkeypatch):
    monkeypatch.setattr("mechmem.show.maps.heatmap_page.MOST_BYTES", 1000)
    with pytest.raises(InputError, match="choose fewer paragraphs"):
        mm.show.effects(by_pair)
