"""Trap 14: the slow way of patching is the same patch."""

import numpy as np
import pytest
import torch

import mechmem as mm
from mechmem.study.paper.patch_speed import one_by_one, patch_speed


@pytest.fixture(scope="module")
def pairs(tiny_model, tiny_paragraphs):
    clean = tiny_paragraphs[:3]
    changed = mm.perturb_prefix(tiny_model, clean, seed=0)
    return mm.worst_perturbations(tiny_model, clean, changed, before="all")


def test_both_ways_find_the_same_effects(tiny_model, pairs):
    clean, corrupt = pairs
    state = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    effects = mm.patch(tiny_model, clean, corrupt, site="v", pos="perturbed", scored="impact", average=False)
    heads = [(0, 1), (2, 0), (3, 2)]
    for row in range(len(clean)):
        by_hand = one_by_one(tiny_model, clean[row], corrupt[row], heads)
        found = [float(effects[row].sel(layer=layer, head=head)) for layer, head in heads]
        np.testing.assert_allclose(by_hand, found, atol=1e-5)
    assert np.abs(effects.values).max() > 1e-3, "a patch that changes nothing would agree with anything"
    assert not tiny_model.hook_dict["blocks.0.attn.hook_v"].fwd_hooks
    assert all(torch.equal(value, state[name]) for name, value in tiny_model.state_dict().items())


def test_the_trap_says_how_long_a_cell_takes(tiny_model, pairs):
    clean, corrupt = pairs
    trap = patch_speed(tiny_model, clean, corrupt, seed=0)
    assert trap.number == 14 and trap.slipped > 0 and trap.corrected > 0
    ratio = float(trap.change.split(" takes ")[1].split()[0])
    assert ratio == pytest.approx(trap.slipped / trap.corrected, abs=0.06)
