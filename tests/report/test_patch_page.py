"""The page of an experiment draws what was patched, and shows any text letter by letter."""

import re
from typing import Any

import numpy as np
import pytest
import torch

import mechmem as mm
from mechmem.localize.patch_experiment import patch_experiment
from mechmem.report.page import page_html
from mechmem.report.patch_page import effect_maps, patch_page

BAD = "</script><script>window.pwned=1</script><img src=x onerror='window.pwned=1'>{{7*7}}\u2028&amp;"


@pytest.fixture(scope="module")
def pairs():
    clean = torch.randint(0, 61, (2, 9), generator=torch.Generator().manual_seed(46))
    changed = clean.clone()
    changed[:, 2] += 1
    changed[:, 5] += 1
    return mm.Paragraphs(clean, 5), mm.Paragraphs(changed % 61, 5)


def test_heads_and_positions_are_sums_over_the_other_axis(tiny_model, pairs):
    found = patch_experiment(tiny_model, *pairs, site="z", layers=[1, 2], direction="noising")
    maps: list[Any] = effect_maps(found, "noising")
    heads, positions = (np.asarray(figure.data[0].z) for figure in maps)
    effect = found.effect_mean.sel(direction="noising").values
    np.testing.assert_allclose(heads[1:3], effect[1:3].sum(-1))
    np.testing.assert_allclose(positions[1:3], effect[1:3].sum(1))
    assert np.isnan(heads[[0, 3]]).all() and np.isnan(positions[[0, 3]]).all(), "not patched is blank, not 0"


@pytest.mark.parametrize(
    ("options", "figures"),
    [
        ({"site": "z", "pos": "perturbed"}, 1),
        ({"site": "resid_pre"}, 1),
        ({"site": "resid_pre", "pos": "all"}, 1),
        ({"site": "mlp_post"}, 2),
    ],
)
def test_every_kind_of_cell_has_a_figure(tiny_model, pairs, options, figures):
    found = patch_experiment(tiny_model, *pairs, scored="continuation", **options)
    html = page_html(patch_page(found, "x"))
    assert html.count('class="plot-data"') == 2 * figures


def test_text_is_escaped_and_nothing_is_loaded(tiny_model, pairs):
    found = patch_experiment(tiny_model, *pairs, pos="all").assign_attrs(model=BAD)
    found["clean_text"] = found.clean_text.astype(object) + BAD
    html = page_html(patch_page(found, BAD))
    assert "<script>window.pwned" not in html and "<img" not in html and "&lt;img src=x onerror=" in html
    assert not re.search(r"""(src|href)=["']?https?:""", re.sub(r"<script.*?</script>", "", html, flags=re.S))
    assert "Content-Security-Policy" in html
