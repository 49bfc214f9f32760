"""Effects at the perturbed token are those of patching every position, read off there, in each reading."""

from typing import Any, cast

import numpy as np
import pytest
import torch

import mechmem as mm
from mechmem.data.errors import InputError
from mechmem.localize.perturbed_token import READINGS, perturbed_token_effects
from mechmem.truth.planted import planted


@pytest.fixture(scope="module")
def pairs():
    """Five pairs of two clusters that differ in one prefix token, and in the continuation from token 9 on."""
    generator = torch.Generator().manual_seed(26)
    clean = torch.randint(0, 61, (5, 14), generator=generator)
    corrupt = clean.clone()
    corrupt[torch.arange(5), torch.tensor([3, 0, 6, 5, 3])] += 1
    corrupt[:, 10:] = torch.randint(0, 61, (5, 4), generator=generator)
    corrupt[:, 9] = clean[:, 9] + 1
    clusters = {"cluster": np.array([1, 1, 2, 3, 4])}
    return mm.Paragraphs(clean, 8).with_columns(**clusters), mm.Paragraphs(corrupt % 61, 8).with_columns(**clusters)


def test_each_reading_is_a_plain_patch_read_at_the_perturbed_token(tiny_model, pairs):
    found = perturbed_token_effects(tiny_model, *pairs, sites=("k", "z"))
    plain = {
        "memorized_own": (pairs, "noising"),
        "perturbed_own": (pairs[::-1], "noising"),
        "perturbed_memorized": (pairs, "denoising"),
    }
    rows = np.arange(5)
    for reading, ((clean, corrupt), direction) in plain.items():
        for site in found.site.values.tolist():
            whole = mm.patch(
                tiny_model, clean, corrupt, site=site, direction=cast(Any, direction), scored="impact", average=False
            )
            expected = whole.values[rows, :, :, found.perturbed_pos.values]
            here = found.sel(reading=reading, site=site)
            np.testing.assert_allclose(here.effect, expected, atol=2e-5)
            assert np.abs(expected).max() > 1e-3
            low, high = mm.cluster_bootstrap(here.effect.values[:, 2, 1], clean.clusters)
            np.testing.assert_allclose((here.effect_low[2, 1], here.effect_high[2, 1]), (low, high), atol=1e-12)
        assert float(here.base) == pytest.approx(whole.attrs["base"], abs=1e-5)
        assert float(here.source) == pytest.approx(whole.attrs["source"], abs=1e-5)
    own, restoring = (
        found.effect_mean.sel(reading="perturbed_own"),
        found.effect_mean.sel(reading="perturbed_memorized"),
    )
    assert not np.allclose(own, restoring, atol=1e-2), "whose token is scored matters"
    assert found.perturbed_pos.values.tolist() == [3, 0, 6, 5, 3]
    assert (
        found.paragraph.values.tolist() == pairs[0].ids.tolist()
        and found.meaning.values[1] == READINGS["perturbed_own"]
    )


def test_a_fraction_patches_what_attribution_puts_first(tiny_model, pairs):
    whole = perturbed_token_effects(tiny_model, *pairs, sites=["v"], readings=["perturbed_own"])
    found = perturbed_token_effects(tiny_model, *pairs, sites=["v"], readings=["perturbed_own"], fraction=0.25)
    patched = np.isfinite(found.effect_mean.values)
    assert patched.sum() == 3
    np.testing.assert_allclose(found.effect_mean.values[patched], whole.effect_mean.values[patched], atol=1e-6)
    estimate = abs(found.estimate.mean("paragraph")).values
    assert estimate[patched].min() >= estimate[~patched].max()
    assert (np.isfinite(found.effect_low.values) == patched).all()


def test_the_planted_head_carries_the_memory_in_each_reading():
    truth = planted()
    clean = truth.memorized
    swapped = clean.tokens.clone()
    swapped[torch.arange(len(clean)), torch.from_numpy(truth.triggers)] = truth.other.prefix[: len(clean)].amax(-1)
    said = truth.model(swapped)[:, 49:-1].argmax(-1)
    swapped[:, 50] = torch.where(said[:, 0] == clean.tokens[:, 50], (said[:, 0] + 1) % 50, said[:, 0])
    found = perturbed_token_effects(truth.model, clean, mm.Paragraphs(swapped, 50))
    for reading, sign, end in (("memorized_own", 1, "effect_low"), ("perturbed_memorized", -1, "effect_high")):
        here = found.sel(reading=reading, site="v")
        assert np.unravel_index(np.argmax(sign * here.effect_mean.values), here.effect_mean.shape) == truth.head
        assert sign * here[end].values[truth.head] > 1
    assert abs(found.effect_mean.sel(site="q")).max() < 0.01, "the trigger is read, it does not ask"


def test_other_names_and_pairs_are_refused(tiny_model, pairs):
    with pytest.raises(InputError, match="got readings .*; need at least one, and each once"):
        perturbed_token_effects(tiny_model, *pairs, readings=["perturbed_own", "perturbed_own"])
    with pytest.raises(Exception, match="site"):
        perturbed_token_effects(tiny_model, *pairs, sites=["resid_pre"])  # pyright: ignore[reportArgumentType]
    two = pairs[1].tokens.clone()
    two[2, 1] += 1
    with pytest.raises(InputError, match="got pair 2 with 2 prefix tokens that differ; need exactly 1 in every pair"):
        perturbed_token_effects(tiny_model, pairs[0], mm.Paragraphs(two % 61, 8))
