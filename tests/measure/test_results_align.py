"""Results carry the ids of their paragraphs: what is computed for some of them, in another order, fits the whole."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import xarray as xr

from mechmem.data.paragraph_ids import aligned
from mechmem.data.paragraphs import Paragraphs
from mechmem.measure.perturb import perturb_prefix
from mechmem.measure.scores import kl, score
from mechmem.stats.covariates import with_covariates
from mechmem.stats.matching import match


def covariates(model, paragraphs: Paragraphs) -> xr.Dataset:
    known = with_covariates(paragraphs, model=model, unigram_counts=np.arange(61) + 1)
    columns = {name: ("paragraph", known.column(name)) for name in ("prefix_nll", "rarity", "repeated_run")}
    return xr.Dataset(columns, {"paragraph": known.ids})


def controls(_, paragraphs: Paragraphs) -> xr.Dataset:
    """Two of the paragraphs have no candidate of their kind."""
    kinds = np.where(np.isin(paragraphs.column("row"), [1, 4]), "rare", "common")
    others = Paragraphs(torch.randint(0, 61, (30, 23), generator=torch.Generator().manual_seed(1)), 13)
    return match(paragraphs.with_columns(kind=kinds), others.with_columns(kind=["common"] * 30), ["kind"])[1]


RESULTS: dict[str, Callable[..., xr.Dataset]] = {
    "score": lambda model, paragraphs: score(model, paragraphs),
    "kl": lambda model, paragraphs: kl(model, model, paragraphs).to_dataset(),
    # Random replacements belong to rows and the seed; position 0 has no runner-up without a tokenizer.
    "perturb_prefix": lambda model, p: perturb_prefix(model, p, replacement="runner-up").sel(pos=slice(1, None)),
    "with_covariates": covariates,
    "match": controls,
}


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_of_some_paragraphs_in_another_order_fits_that_of_all(tiny_model, tiny_paragraphs, name):
    paragraphs = tiny_paragraphs.with_columns(row=np.arange(len(tiny_paragraphs)))
    some = paragraphs.select([5, 1, 0, 4])
    whole, part = RESULTS[name](tiny_model, paragraphs), RESULTS[name](tiny_model, some)
    assert part.paragraph.values.tolist() == some.ids.tolist()
    names = [variable for variable in whole.data_vars if "paragraph" in whole[variable].dims]
    xr.testing.assert_allclose(aligned(whole, some)[names], part[names], rtol=1e-4, atol=1e-5)
    unlike = whole.isel(paragraph=[5, 1, 0, 4][::-1])[names]
    assert any(not np.allclose(unlike[n], part[n], atol=1e-6) for n in names) or name == "kl"
