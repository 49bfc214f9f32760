"""Public functions of a model get every kind of wrong argument: each answers, or says what is wrong in one line."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
import xarray as xr

import mechmem as mm
from mechmem.data.errors import InputError
from mechmem.model.load import HookedTransformer
from tests.detect.reciting import reciting, together

Call = tuple[Callable[..., Any], dict[str, Any]]
OTHER = mm.Paragraphs(torch.randint(0, 61, (3, 23), generator=torch.Generator().manual_seed(6)), prefix_len=13)
# The options of `patch` and `attribute`, which their signatures collect.
OPTIONS = {
    "patch": ("scored", "cells", "groups", "average"),
    "attribute": ("scored", "groups", "average", "steps", "batch_size"),
}


@pytest.fixture(autouse=True)
def as_users_run_it() -> Iterator[None]:
    """Without the checks of annotations that the tests switch on, which would refuse what the functions must."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def calls(tiny_model: HookedTransformer, tiny_paragraphs: mm.Paragraphs) -> dict[str, Call]:
    """Each function with arguments that are right."""
    rows, counts = tiny_paragraphs[:3], np.arange(61) + 1
    given = {"model": tiny_model, "paragraphs": rows}
    pair = {"model": tiny_model, "clean": rows, "corrupt": OTHER}
    memorized, other = reciting(tiny_model, 14)
    settings = mm.DetectorSettings(ks=(0,), penalties=(1.0,))
    training: dict[str, Any] = {"model": tiny_model, "memorized": memorized, "other": other}
    training |= {"features": "output", "method": "logistic", "settings": settings}
    judging = {"detector": mm.train_detector(**training), "model": tiny_model}
    judging |= {"paragraphs": together(*reciting(tiny_model, 6, seed=7))}
    judging |= {"settings": mm.EvaluationSettings(ks=(0,), draws=5, folds=2)}
    return {
        "score": (mm.score, given),
        "split": (mm.split, {"paragraphs": rows, "scores": mm.score(**given)}),
        "kl": (mm.kl, {"original": tiny_model, "edited": tiny_model, "paragraphs": rows}),
        "perturb_prefix": (mm.perturb_prefix, given),
        "worst_perturbations": (mm.worst_perturbations, given | {"perturbation": mm.perturb_prefix(**given)}),
        "ablate_heads": (mm.ablate_heads, given | {"heads": ["L1H2"]}),
        "ablate_layers": (mm.ablate_layers, given),
        "ablate_greedily": (mm.ablate_greedily, given | {"count": 1}),
        "patch": (mm.patch, pair | {"site": "resid_pre", "pos": "all"}),
        "attribute": (mm.attribute, pair),
        "top_cells": (mm.top_cells, {"effect": mm.attribute(**pair), "fraction": 0.1}),
        "head_circuits": (mm.head_circuits, given | {"unigram_counts": counts}),
        "localize_neurons": (mm.localize_neurons, given | {"keep": OTHER, "method": "activations"}),
        "faithfulness": (mm.faithfulness, given | {"scores": mm.ablate_heads(**given).nll_change}),
        "top_neurons": (mm.top_neurons, {"scores": mm.localize_neurons(**given, keep=OTHER), "fraction": 0.1}),
        "activation_gradients": (mm.activation_gradients, given),
        "weight_gradients": (mm.weight_gradients, given),
        "parameter_gradients": (mm.parameter_gradients, given),
        "paragraph_gradients": (mm.paragraph_gradients, given),
        "contrastive_gradients": (
            mm.contrastive_gradients,
            {"model": tiny_model, "memorized": rows, "keep": OTHER},
        ),
        "logit_lens": (mm.logit_lens, given),
        "rare_token_attention": (mm.rare_token_attention, given | {"unigram_counts": counts, "permutations": 5}),
        "capture": (mm.capture, given),
        "train_detector": (mm.train_detector, training),
        "evaluate_detector": (mm.evaluate_detector, judging),
        "detection_features": (mm.detection_features, given),
    }


NAMES = (
    "score split kl perturb_prefix worst_perturbations ablate_heads ablate_layers ablate_greedily patch attribute "
    "top_cells head_circuits localize_neurons faithfulness top_neurons activation_gradients weight_gradients "
    "parameter_gradients paragraph_gradients contrastive_gradients logit_lens rare_token_attention capture "
    "detection_features train_detector evaluate_detector"
).split()


def wrong_values(model: HookedTransformer) -> list[Any]:
    plain: list[Any] = [None, -1, 0, 10**30, float("nan"), float("inf"), 1.5, True, "x", "", "\0", b"x"]
    several: list[Any] = [[], [0], [-1], [1.5], ["x"], [None], (), (1, 2), [(0, 99)], [(0,)], {}, {"a": 1}]
    arrays: list[Any] = [np.array([1.5]), np.zeros((2, 2, 2)), torch.zeros(3), torch.zeros(2, device="meta")]
    results: list[Any] = [xr.Dataset(), xr.DataArray([1.0]), xr.DataArray(1)]
    paragraphs: list[Any] = [OTHER, mm.Paragraphs(OTHER.tokens[:, :20], prefix_len=10), OTHER[:1]]
    return [*plain, *several, *arrays, *results, *paragraphs, model, object()]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_wrong_arguments_are_refused_in_one_line(name, calls, tiny_model, capfd):
    function, right = calls[name]
    function(**right)
    names = [each for each in inspect.signature(inspect.unwrap(function)).parameters if each != "options"]
    for argument in (*names, *OPTIONS.get(name, ())):
        for value in wrong_values(tiny_model):
            # Functions of the caller's own raise what they raise.
            if callable(value) and argument in ("progress", "metric", "gradient_of"):
                continue
            try:
                function(**{**right, argument: value})
            except InputError as error:
                assert "\n" not in str(error) and len(str(error)) < 700, (argument, type(value))
            except Exception as error:
                raise AssertionError(f"{name}({argument}={type(value).__name__} {str(value)[:60]})") from error
    capfd.readouterr()
