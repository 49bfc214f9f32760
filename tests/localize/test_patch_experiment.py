"""An experiment is its patches, labelled: cells, intervals and texts are those that one looks up by hand."""

from typing import Any

import numpy as np
import pytest
import torch

import mechmem as mm
from mechmem.data.errors import InputError
from mechmem.data.netcdf import load_netcdf, save_netcdf
from mechmem.localize.patch_experiment import patch_experiment, strongest_cells


@pytest.fixture(scope="module")
def sides():
    """Four pairs of three clusters that differ in one prefix token and in the continuation from its second token on."""
    generator = torch.Generator().manual_seed(36)
    clean = torch.randint(0, 61, (4, 11), generator=generator)
    corrupt = clean.clone()
    corrupt[torch.arange(4), torch.tensor([3, 0, 5, 4])] += 1
    corrupt[:, 8:] = torch.randint(0, 61, (4, 3), generator=generator)
    corrupt[:, 7] = clean[:, 7] + 1
    columns: dict[str, Any] = {"cluster": [5, 5, 6, 7], "perturbed_pos": [3, 0, 5, 4], "impact_pos": [7] * 4}
    columns |= {"id": ["a", "b", "c", "d"]}
    return tuple(mm.Paragraphs(side % 61, 6).with_columns(**columns) for side in (clean, corrupt))


@pytest.fixture(scope="module")
def whole(tiny_model, sides):
    return patch_experiment(tiny_model, *sides)


def test_it_holds_both_directions_their_intervals_and_both_texts(tiny_model, sides, whole):
    clean, corrupt = sides
    assert whole.effect.dims == ("direction", "paragraph", "layer", "head", "pos")
    for direction in ("noising", "denoising"):
        plain = mm.patch(tiny_model, *sides, direction=direction, scored="impact", average=False)
        here = whole.sel(direction=direction)
        np.testing.assert_allclose(here.effect, plain, atol=1e-6)
        assert (float(here.base), float(here.source)) == (plain.attrs["base"], plain.attrs["source"])
        cell = {"layer": 2, "head": 1, "pos": 7}
        np.testing.assert_allclose(here.effect_mean, plain.mean("paragraph"), atol=1e-6)
        ends = mm.cluster_bootstrap(plain.sel(cell).values, clean.clusters)
        np.testing.assert_allclose([here.effect_low.sel(cell), here.effect_high.sel(cell)], ends, atol=1e-9)
    np.testing.assert_array_equal(whole.clean_token, clean.tokens)
    np.testing.assert_array_equal(whole.corrupt_token, corrupt.tokens)
    assert whole.clean_text.values[1, 2] == str(int(clean.tokens[1, 2])), "without a tokenizer, ids"
    assert whole.paragraph.values.tolist() == ["a", "b", "c", "d"] == whole.corrupt_id.values.tolist()
    assert whole.perturbed_pos.values.tolist() == [3, 0, 5, 4] and whole.cluster.values.tolist() == [5, 5, 6, 7]
    for name, variable in whole.data_vars.items():
        assert set(variable.dims) <= set(whole.indexes), f"{name} has an axis without labels"


def test_the_mean_of_both_directions_is_one_effect(tiny_model, sides, whole):
    found = patch_experiment(tiny_model, *sides, direction="mean", attribute_first=0.1, attribute_method="integrated")
    assert found.direction.values.tolist() == ["mean"] and found.attrs["approximation"] == "integrated"
    half = (whole.effect.sel(direction="noising") - whole.effect.sel(direction="denoising")) / 2
    patched = np.isfinite(found.effect.values[0])
    assert patched.sum() == 4 * round(0.1 * half[0].size)
    np.testing.assert_allclose(found.effect.values[0][patched], half.values[patched], atol=1e-6)


def test_it_opens_as_it_was_written(whole, tmp_path):
    save_netcdf(whole, tmp_path / "x.nc")
    assert load_netcdf(tmp_path / "x.nc").identical(whole)


@pytest.mark.parametrize("options", [{"layers": [1, 3]}, {"heads": ["L1H2", (3, 0)]}])
@pytest.mark.parametrize("pos", ["each", "all", "perturbed"])
def test_some_cells_are_those_of_all(tiny_model, sides, options, pos):
    everything = patch_experiment(tiny_model, *sides, pos=pos, direction="noising", site="v")
    some = patch_experiment(tiny_model, *sides, pos=pos, direction="noising", site="v", **options)
    assert some.direction.values.tolist() == ["noising"]
    patched = np.isfinite(some.effect_mean.sel(direction="noising").values)
    expected = np.zeros_like(patched)
    for layer, head in [(1, 2), (3, 0)] if "heads" in options else [(row, slice(None)) for row in (1, 3)]:
        expected[layer, head] = True
    np.testing.assert_array_equal(patched, expected)
    np.testing.assert_allclose(
        some.effect_mean.values[0][patched], everything.effect_mean.values[0][patched], atol=1e-6
    )
    assert (np.isfinite(some.effect_low.values[0]) == patched).all()


def test_attribution_chooses_among_the_cells_that_are_allowed(tiny_model, sides):
    options: dict[str, Any] = {"site": "z", "direction": "denoising", "metric": "logit_difference"}
    found = patch_experiment(tiny_model, *sides, layers=[2], attribute_first=0.25, **options)
    estimate = mm.attribute(tiny_model, *sides, scored="impact", **options)
    np.testing.assert_allclose(found.estimate.sel(direction="denoising"), estimate, atol=1e-6)
    patched = np.isfinite(found.effect_mean.values[0])
    assert patched.sum() == round(0.25 * 3 * 11) and patched[2].sum() == patched.sum()
    size = abs(estimate.values[2])
    assert size[patched[2]].min() >= size[~patched[2]].max()
    assert found.attrs["attribute_first"] == 0.25 and found.effect.attrs["units"] == "logits"


def test_normalized_it_is_a_share_of_everything(tiny_model, sides):
    alike = sides[1].replace_tokens(torch.cat([sides[1].prefix, sides[0].continuation], 1))
    found = patch_experiment(
        tiny_model, sides[0], alike, site="resid_post", pos="all", scored="continuation", normalize=True
    )
    np.testing.assert_allclose(found.effect_mean.isel(layer=-1), 1.0, atol=1e-4)
    assert found.effect.attrs["units"] == "1" and found.base.attrs["units"] == "nats per token"
    assert found.effect.attrs["higher"].endswith("1.0 is as that run, 0.0 as without a patch")
    # The same text after both prefixes: nothing else would make the last layer's stream all there is.
    plain = patch_experiment(tiny_model, sides[0], alike, site="resid_post", pos="all", scored="continuation")
    assert not np.allclose(plain.effect_mean.isel(layer=-1), 1.0, atol=1e-2)


def test_the_strongest_cells_are_named_with_their_intervals(tiny_model, sides, whole):
    rows = strongest_cells(whole, "denoising", 3)
    mean = whole.effect_mean.sel(direction="denoising")
    layer, head, pos = np.unravel_index(np.abs(mean.values).argmax(), mean.shape)
    assert rows[0][0] == f"L{layer}H{head} at {pos}" and rows[0][1] == mean.values[layer, head, pos]
    assert all(low <= value <= high for _, value, low, high in rows)
    few = patch_experiment(tiny_model, *sides, site="mlp_post", pos="perturbed", layers=[1], direction="noising")
    assert strongest_cells(few, "noising", 1)[0][0].startswith("L1 group ")
    assert len(strongest_cells(few, "noising", 100)) == few.sizes["group"], "what was not patched is not listed"
    with pytest.raises(InputError, match="got direction 'denoising'; need one of noising"):
        strongest_cells(few, "denoising")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"heads": ["L9H0"]}, "got heads .'L9H0'.; need .layer, head. pairs or names"),
        ({"heads": ["1,2"]}, "need .layer, head. pairs or names"),
        ({"layers": [4]}, "got layers .4.; need at least one, from 0 to 3"),
        ({"layers": []}, "need at least one, from 0 to 3"),
        ({"layers": [1], "heads": ["L1H1"]}, "need one of them: a head names its layer"),
        ({"site": "resid_pre", "heads": ["L1H1"]}, "got heads for the site 'resid_pre', which has none"),
        ({"metric": "em", "attribute_first": 0.1}, "the metric em has no gradient"),
        (
            {"metric": "kl", "attribute_first": 0.1, "attribute_method": "gradient"},
            "the gradient of kl is zero at the unpatched run",
        ),
        ({"attribute_method": "both_ends"}, "got attribute_method 'both_ends' without attribute_first"),
        ({"metric": "kl", "direction": "mean"}, "the metric kl compares with the unpatched run, which is another one"),
        ({"attribute_first": 0.0}, "attribute_first"),
    ],
)
def test_what_cannot_be_patched_is_refused(tiny_model, sides, options, said):
    with pytest.raises(InputError, match=said):
        patch_experiment(tiny_model, *sides, **options)
    with pytest.raises(
        TypeError, match="unexpected keyword argument 'head'; options are layers, heads, attribute_first"
    ):
        patch_experiment(tiny_model, *sides, head="L1H1")  # pyright: ignore[reportCallIssue]
