import inspect
from typing import get_args

import numpy as np
import pytest

from mechmem.data.errors import InputError
from mechmem.model.activation_sites import Site, site_of
from mechmem.model.batch_size import chosen_batch_size
from mechmem.model.head_names import heads_of
from mechmem.model.lean.trace import HOOKS, SITES


def test_transformer_lens_names_are_aliases_of_every_site(tiny_model):
    assert set(get_args(Site)) == set(SITES)
    for site in SITES:
        for name in (site, HOOKS[site], HOOKS[site].rsplit(".", 1)[-1]):
            assert site_of(tiny_model, name) == site
    for wrong in ("hook_w", "blocks.0.attn.hook_z", ""):
        with pytest.raises(InputError, match="got site .*; need one of resid_pre, resid_mid"):
            site_of(tiny_model, wrong)


def test_sites_that_a_model_does_not_have_are_refused(small_model):
    with pytest.raises(InputError, match="it has no 'resid_mid'"):
        site_of(small_model(parallel_attn_mlp=True), "hook_resid_mid")
    for site in ("mlp_post", "hook_mlp_out"):
        with pytest.raises(InputError, match="no MLPs"):
            site_of(small_model(attn_only=True), site)


def test_heads_are_pairs_or_names(tiny_model):
    assert heads_of(tiny_model, ["L3H2", (0, 1), "l1h0"]) == [(3, 2), (0, 1), (1, 0)]
    for wrong in ("L3H3", (4, 0), (-1, 0), "H1", "L1H2x"):
        with pytest.raises(InputError, match="got heads .*layer below 4 and head below 3"):
            heads_of(tiny_model, [wrong])


def test_batch_sizes_are_the_callers_or_fit_the_device():
    assert chosen_batch_size(None, "cpu", 16) == 16 and chosen_batch_size(None, "cuda", 16) == 128
    assert chosen_batch_size(3, "cuda", 16) == 3


@pytest.mark.parametrize(
    "wrong", [(1.5, 0), (True, 0), (0, float("nan")), ("0", 0), (0,), (0, 0, 0), (2**70, 0), None, 3]
)
def test_heads_are_pairs_of_whole_numbers(tiny_model, wrong):
    with pytest.raises(InputError, match=r"got heads .*; need \(layer, head\) pairs or names"):
        # Without the checks of annotations that tests switch on, as a user meets it.
        inspect.unwrap(heads_of)(tiny_model, [wrong])
    assert inspect.unwrap(heads_of)(tiny_model, [(np.int64(1), np.int8(2))]) == [(1, 2)]  # pyright: ignore[reportArgumentType]
