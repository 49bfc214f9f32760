"""A probe reads what was planted, and nothing where nothing was."""

import copy

import numpy as np
import pytest
import torch

import mechmem as mm
from mechmem.data.errors import InputError
from mechmem.intervene.membership_probe import membership_probe

LAYER = 2


@pytest.fixture(scope="module")
def sets(tiny_model):
    """Random texts of two labels, in pairs of one cluster."""
    tokens = torch.randint(0, tiny_model.cfg.d_vocab, (80, 14), generator=torch.Generator().manual_seed(2))
    tokens[:40, 7:] = tokens[:40, 7:] % 3
    paragraphs = mm.Paragraphs(tokens, 8).with_columns(cluster=np.arange(80) // 2)
    return paragraphs[:40], paragraphs[40:]


@pytest.fixture(scope="module")
def blind(tiny_model):
    """A model whose residual stream from the layer on says nothing of the text: the MLP drowns it."""
    other = copy.deepcopy(tiny_model)
    with torch.no_grad():
        for name in ("W_E",):
            other.embed.get_parameter(name).zero_()
    return other


def test_a_probe_reads_what_is_there_and_nothing_where_it_was_removed(tiny_model, sets, blind):
    seen = []
    found = membership_probe(tiny_model, blind, *sets, progress=lambda *done: seen.append(done))
    assert found.auroc.dims == ("model", "boundary") and found.boundary.values.tolist() == [0, 1, 2, 3, 4]
    # Random layers blur what the embedding says, and do not remove it.
    read = found.auroc.sel(model="before")
    assert read[0] > 0.95 and (read > 0.55).all() and seen[-1] == (10, 10)
    assert found.auroc.sel(model="before").equals(found.original_probe.sel(model="before"))
    # Without the embedding, every text is the same to the model.
    assert (found.auroc.sel(model="after") == 0.5).all() and (found.original_probe.sel(model="after") == 0.5).all()
    assert "oracle" not in found.model


def test_shuffled_labels_are_read_by_chance_and_clusters_do_not_leak(tiny_model, sets):
    """Control: with near-duplicates in training and test, shuffled labels would be learned by heart."""
    by_chance = [membership_probe(tiny_model, tiny_model, *sets, seed=seed).shuffled.values for seed in range(3)]
    assert abs(np.mean(by_chance) - 0.5) < 0.2
    twins = torch.cat([sets[0].tokens[:20], sets[0].tokens[:20]])
    targets = mm.Paragraphs(twins, 8).with_columns(cluster=np.tile(np.arange(20), 2))
    other = mm.Paragraphs(torch.cat([sets[0].tokens[20:]] * 2), 8).with_columns(cluster=20 + np.tile(np.arange(20), 2))
    both = targets, other
    clustered = membership_probe(tiny_model, tiny_model, *both, regularization=1.0).auroc.sel(model="before")
    alone = [mm.Paragraphs(part.tokens, 8) for part in both]
    leaking = membership_probe(tiny_model, tiny_model, *alone, regularization=1.0).auroc.sel(model="before")
    assert float(leaking.mean()) > float(clustered.mean()) + 0.1


def test_the_oracle_is_read_beside(tiny_model, sets, blind):
    found = membership_probe(tiny_model, copy.deepcopy(tiny_model), *sets, oracle=blind)
    assert found.model.values.tolist() == ["before", "after", "oracle"]
    assert (found.auroc.sel(model="oracle") == 0.5).all()
    assert found.auroc.sel(model="after").equals(found.auroc.sel(model="before").assign_coords(model="after"))


def test_bad_input_is_refused(tiny_model, sets):
    with pytest.raises(InputError, match="got 30 folds for 20 clusters of targets and 20"):
        membership_probe(tiny_model, tiny_model, *sets, folds=30)
    with pytest.raises(InputError, match="got 1 folds"):
        membership_probe(tiny_model, tiny_model, *sets, folds=1)
    with pytest.raises(InputError, match="20 clusters stand in both"):
        membership_probe(tiny_model, tiny_model, sets[0], sets[0])
    with pytest.raises(InputError, match="need one shape"):
        membership_probe(tiny_model, tiny_model, sets[0], mm.Paragraphs(sets[1].tokens, 7))
    with pytest.raises(InputError, match="got the original model as oracle"):
        membership_probe(tiny_model, copy.deepcopy(tiny_model), *sets, oracle=tiny_model)
