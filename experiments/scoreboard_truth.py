"""Localizers on hand-set models: neurons, weights, and single neurons at single positions."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from sklearn.metrics import roc_auc_score

import mechmem as mm
from mechmem.localize.neurons import NeuronMethod
from mechmem.localize.scoreboard import CONTRASTS, weight_area

# A row of the board: what is ranked, and by which function; AUROC is among all of that kind in the model.
Row = tuple[str, str]


def truth_board(seed: int, models: int, methods: Sequence[NeuronMethod]) -> xr.Dataset:
    """AUROC of localizers on hand-set models, whose answer is known by construction.

    Args:
        seed: of the first model; each has another.
        models: how many.
        methods: of `localize_neurons`.

    Returns:
        auroc[row, planted], 0 to 1, higher: better, chance 1/2; what[row] and method[row] say what was ranked and how.
    """
    found = [_one(seed + number, methods) for number in range(models)]
    rows = list(found[0])
    values = np.array([[each[row] for each in found] for row in rows])
    better = {"units": "1", "higher": "better", "chance": 0.5}
    coords = {"what": ("row", [what for what, _ in rows]), "method": ("row", [method for _, method in rows])}
    return xr.Dataset({"auroc": (("row", "planted"), values, better)}, coords)


def _one(seed: int, methods: Sequence[NeuronMethod]) -> dict[Row, float]:
    truth = mm.planted(mm.PlantedSettings(seed=seed, n_layers=3, memories=4, others=8, d_mlp=256))
    return neurons(truth, methods) | weights(truth) | cells(truth)


def area(scores: np.ndarray, labels: np.ndarray) -> float:
    """The chance that what is true scores above what is not."""
    return float(roc_auc_score(labels.ravel(), scores.ravel()))


def swapped(truth: Any) -> mm.Paragraphs:
    """Each memory with its rare token replaced by a token without meaning."""
    tokens = truth.memorized.tokens.clone()
    tokens[torch.arange(len(tokens)), torch.from_numpy(truth.triggers)] = int(truth.other.tokens.max())
    return truth.memorized.replace_tokens(tokens)


def neurons(truth: Any, methods: Sequence[NeuronMethod]) -> dict[Row, float]:
    """The neurons that write the first memory's tokens, among all neurons."""
    model, one = truth.model, truth.memorized.select(np.array([0]))
    labels = np.any(written(truth), -1)
    found = {}
    for method in methods:
        scores = mm.localize_neurons(model, one, truth.other, method=method)
        found["neuron", f"localize_neurons, {method}"] = area(scores.transpose("layer", "neuron").values, labels)
    return found


def weights(truth: Any) -> dict[Row, float]:
    """The weights of the head and of the neurons that write tokens, among all attention and MLP weights."""
    mask = mm.Mask.neurons(truth.model, truth.neurons).union(mm.Mask.heads(truth.model, [truth.head]))
    return {
        ("weight", f"contrastive_gradients, {method}"): weight_area(
            truth.model, truth.memorized, truth.other, mask, method
        )
        for method in CONTRASTS
    }


def cells(truth: Any) -> dict[Row, float]:
    """The neurons that write the first memory's tokens, each at the position at which it writes, among all cells."""
    model, one, corrupt = truth.model, truth.memorized.select(np.array([0])), swapped(truth).select(np.array([0]))
    labels, width = written(truth), model.cfg.d_mlp

    def of_cells(effect: xr.DataArray) -> np.ndarray:
        values = effect.transpose("layer", "group", "pos")
        whole = np.zeros(labels.shape)
        whole[:, :, values.pos.values] = values.values
        return whole

    found: dict[str, Callable[[], np.ndarray]] = {
        f"attribute, mlp_post, {method}": lambda method=method: of_cells(
            mm.attribute(model, one, corrupt, site="mlp_post", groups=width, method=method)
        )
        for method in ("gradient", "both_ends", "integrated")
    }
    found["random"] = lambda: np.random.default_rng(0).random(labels.shape)
    return {("neuron at a position", name): area(scores(), labels) for name, scores in found.items()}


def written(truth: Any) -> np.ndarray:
    """Which neuron writes at which position of the first memory, [layer, neuron, pos]: firing there alone."""
    model, prefix = truth.model, truth.memorized.prefix_len
    names = [f"blocks.{layer}.mlp.hook_post" for layer in range(model.cfg.n_layers)]
    with torch.no_grad():
        _, cache = model.run_with_cache(truth.memorized.tokens, names_filter=names)
    output = torch.stack([cache[name] for name in names]).transpose(-1, -2)
    own, others = output[:, 0], output[:, 1:].amax((1, 3))
    labels = np.zeros(own.shape, dtype=bool)
    for layer, neuron in truth.neurons:
        at = int(own[layer, neuron, prefix - 1 : -1].argmax()) + prefix - 1
        labels[layer, neuron, at] = bool(own[layer, neuron, at] > 2 * others[layer, neuron])
    return labels
