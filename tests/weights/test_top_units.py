"""Masks of a given size from scores of neurons or heads."""

from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from mechmem.data.errors import InputError
from mechmem.model.sites import editable_parameters
from mechmem.weights.masks import Mask


def scores_of(model, kind: str, seed: int = 0) -> xr.DataArray:
    width = model.cfg.n_heads if kind == "head" else model.cfg.d_mlp
    values = np.random.default_rng(seed).normal(size=(model.cfg.n_layers, width))
    return xr.DataArray(values, dims=("layer", kind))


def ranked(scores: xr.DataArray) -> list[tuple[int, int]]:
    """Slow oracle: (layer, unit) from the highest score on."""
    rows, columns = scores.shape
    places = [(layer, unit) for layer in range(rows) for unit in range(columns)]
    return sorted(places, key=lambda place: -float(scores.values[place]))


@pytest.mark.parametrize("kind", ["neuron", "head"])
@pytest.mark.parametrize("fraction", [0.0005, 0.02, 0.1])
def test_units_are_taken_from_the_highest_on_and_the_count_is_exact(tiny_model, kind, fraction):
    scores = scores_of(tiny_model, kind)
    # The order of dimensions does not matter.
    mask = Mask.top_units(tiny_model, scores.transpose(), fraction=fraction)
    total = sum(parameter.numel() for parameter in editable_parameters(tiny_model).values())
    assert mask.count == round(fraction * total) and mask.total == total
    make = Mask.neurons if kind == "neuron" else Mask.heads
    left = mask.count
    for unit in ranked(scores):
        one = make(tiny_model, [unit])
        assert mask.intersection(one).count == min(left, one.count)
        left -= min(left, one.count)


def test_a_negative_score_is_low(tiny_model):
    scores = scores_of(tiny_model, "head")
    lowest = ranked(scores)[-1]
    scores[lowest] = -100.0
    mask = Mask.top_units(tiny_model, scores, fraction=0.1)
    assert mask.intersection(Mask.heads(tiny_model, [lowest])).count == 0


def test_the_last_unit_gives_its_weights_with_the_largest_scores(tiny_model):
    scores = scores_of(tiny_model, "head")
    generator = torch.Generator().manual_seed(2)
    weights = {n: torch.randn(p.shape, generator=generator) for n, p in editable_parameters(tiny_model).items()}
    mask = Mask.top_units(tiny_model, scores, fraction=0.002, weights=weights)
    head = Mask.heads(tiny_model, ranked(scores)[:1])
    assert mask.count < head.count and mask.intersection(head).count == mask.count
    inside = torch.cat([weights[n].view(-1)[i].abs() for n, i in mask.indices.items()])
    every = torch.cat([weights[n].view(-1)[i].abs() for n, i in head.indices.items()])
    assert torch.equal(inside.sort().values, every.sort().values[-mask.count :])
    # Without scores the first are taken.
    assert Mask.top_units(tiny_model, scores, fraction=0.002).overlap(mask) < 0.5


def test_scores_that_say_nothing_about_units_are_refused(tiny_model):
    heads = scores_of(tiny_model, "head")
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (heads.expand_dims(pos=3), {}, r"got scores with dimensions \['pos', 'layer', 'head'\]; need layer and neuron"),
        (heads[:2], {}, "got scores of 2 layers x 3 heads, and the model has 4 x 3"),
        (heads.where(heads < 0), {}, "the scores hold NaN"),
        (heads, {"fraction": 0.9}, "got fraction 0.9, which is .* weights, and all heads have .*; need at most 0.488"),
        (heads, {"fraction": 1.5}, "got 1.5 as fraction"),
        (heads, {"weights": {}}, "the weights' scores have none for 'blocks"),
    ]
    defaults: dict[str, Any] = {"fraction": 0.002}
    for scores, options, sentence in cases:
        with pytest.raises(InputError, match=sentence):
            Mask.top_units(tiny_model, scores, **defaults | options)
