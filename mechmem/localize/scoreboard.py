"""A scoreboard of localizers: whether they find known neurons, and what dropping the neurons they find changes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import xarray as xr
from sklearn.metrics import average_precision_score, roc_auc_score

from mechmem.data.choices import check_choice
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.localize.neurons import METHODS, NeuronMethod, localize_neurons, top_neurons
from mechmem.localize.paragraph_gradients import Contrast, contrastive_gradients
from mechmem.measure.decode import edit_distances, greedy_continuations
from mechmem.measure.scores import score
from mechmem.model.lean.model import LeanModel
from mechmem.model.load import HookedTransformer
from mechmem.model.model_lock import holding
from mechmem.truth.injected import inject, random_neurons
from mechmem.weights.masks import Mask
from mechmem.weights.training import Training

RECALL_AT = (0.01, 0.02, 0.05)
DROPPED = (0.001, 0.005)
CONTRASTS: tuple[Contrast, ...] = ("plain", "fisher", "difference")
# Called with what is done and how much there is.
Steps = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Protocol:
    """How a paragraph is injected, and what counts as found.

    Attributes:
        weights: which weights of the drawn neurons are trained: those into and out of them, or those out of them alone.
        per: top neurons are those of the whole model, or as large a share of each layer.
        training: of the injection.
    """

    weights: Literal["in and out", "out"]
    per: Literal["model", "layer"]
    training: Training


ProtocolName = Literal["whole neurons", "out-weights"]
# "out-weights" is Chang et al.'s: Adam at 1e-2 on what the neurons write; the top share of every layer is compared.
PROTOCOLS: Mapping[ProtocolName, Protocol] = {
    "whole neurons": Protocol("in and out", "model", Training(steps=400, learning_rate=1e-3)),
    "out-weights": Protocol("out", "layer", Training(steps=400, learning_rate=1e-2)),
}


def recall(
    scores: xr.DataArray, truth: Sequence[tuple[int, int]], fraction: float, per: Literal["model", "layer"] = "model"
) -> float:
    """Share of the true neurons among the share of neurons that score highest, in the model or by layer, 0 to 1."""
    if per == "model":
        found = set(top_neurons(scores, fraction))
    else:
        found = {
            (int(layer), neuron)
            for layer in scores.layer.values
            for _, neuron in top_neurons(scores.sel(layer=[layer]), fraction)
        }
    return len(found & set(truth)) / len(truth)


def precision_area(scores: xr.DataArray, truth: Sequence[tuple[int, int]]) -> float:
    """Area under the precision-recall curve, 0 to 1; a random order gives the share of true neurons."""
    return float(average_precision_score(_labels(scores, truth), _flat(scores)))


def ranking_area(scores: xr.DataArray, truth: Sequence[tuple[int, int]]) -> float:
    """AUROC: the chance that a true neuron scores above another one, 0 to 1; a random order gives 1/2."""
    return float(roc_auc_score(_labels(scores, truth), _flat(scores)))


def injection_board(
    model: HookedTransformer,
    targets: Paragraphs,
    keep: Paragraphs,
    *,
    methods: Sequence[NeuronMethod] = tuple(METHODS),
    protocol: ProtocolName = "whole neurons",
    fraction: float = 0.01,
    seed: int = 0,
    progress: Steps | None = None,
) -> xr.Dataset:
    """INJ (Chang et al. 2024, NAACL): inject one paragraph into a few random neurons, and localize them.

    1. For each target: draw a share of all neurons and train the paragraph into them alone, with `inject`.
    2. Ask every method for the neurons that hold it.
    3. Compare with those drawn.

    Args:
        model: left as it is.
        targets: paragraphs that it does not know; one injection each.
        keep: for methods that contrast.
        methods: names in METHODS.
        protocol: a name in PROTOCOLS: "whole neurons" trains the weights into and out of the neurons and compares the
            top of the whole model; "out-weights", as published, trains what they write and compares the top of every
            layer.
        fraction: of the neurons that each paragraph goes into.
        seed: of the draws; each target has another.
        progress: called with (what is done, targets done, targets).

    Returns:
        Dataset: recall[method, target, fraction], auprc[method, target] and auroc[method, target], 0 to 1, higher:
        better; weight_auroc[contrast, target], of single weights by `contrastive_gradients`; seconds[method, target];
        em[target] after the injection, tokens.

    Raises:
        InputError: an unknown method or protocol, or paragraphs that do not fit.
    """
    _check(methods)
    check_choice("protocol", protocol, ProtocolName)
    rules, rows, ems, by_weight = PROTOCOLS[protocol], [], [], []
    for number in range(len(targets)):
        target = targets.select(np.array([number]))
        truth = random_neurons(model, fraction, seed + number)
        mask = injected_weights(model, truth, protocol)
        injected, history = inject(model, target, mask, training=rules.training)
        ems.append(float(history.em[-1]))
        row = []
        for method in methods:
            started = time.process_time()
            scores = localize_neurons(injected, target, keep, method=method, seed=seed + number)
            seconds = time.process_time() - started
            areas = precision_area(scores, truth), ranking_area(scores, truth)
            row.append([seconds, *areas, *(recall(scores, truth, at, rules.per) for at in RECALL_AT)])
            if progress is not None:
                progress(f"injected, {method}", number, len(targets))
        rows.append(row)
        by_weight.append([weight_area(injected, target, keep, mask, contrast) for contrast in CONTRASTS])
    values, better = np.array(rows).transpose(1, 0, 2), {"units": "1", "higher": "better"}
    data = {
        "recall": (("method", "target", "fraction"), values[..., 3:], better),
        "auprc": (("method", "target"), values[..., 1], better | {"chance": fraction}),
        "auroc": (("method", "target"), values[..., 2], better | {"chance": 0.5}),
        "weight_auroc": (("contrast", "target"), np.array(by_weight).T, better | {"chance": 0.5}),
        "seconds": (("method", "target"), values[..., 0], {"units": "CPU seconds"}),
        "em": ("target", np.array(ems), {"units": "tokens", "higher": "better injected"}),
    }
    coords = {"method": list(methods), "target": np.arange(len(targets)), "fraction": list(RECALL_AT)}
    coords["contrast"] = list(CONTRASTS)
    return xr.Dataset(data, coords, {"injected_fraction": fraction, "seed": seed, "protocol": protocol})


def weight_area(
    model: HookedTransformer, paragraphs: Paragraphs, keep: Paragraphs, mask: Mask, contrast: Contrast
) -> float:
    """AUROC of `contrastive_gradients` for the weights of a mask, among all attention and MLP weights."""
    scores = contrastive_gradients(model, paragraphs, keep, method=contrast)
    labels = {name: np.zeros(values.numel(), dtype=bool) for name, values in scores.items()}
    for name, index in mask.indices.items():
        labels[name][index.numpy()] = True
    ranked = np.concatenate([values.abs().flatten().cpu().numpy() for values in scores.values()])
    return float(roc_auc_score(np.concatenate(list(labels.values())), ranked))


def injected_weights(model: HookedTransformer, neurons: Sequence[tuple[int, int]], protocol: ProtocolName) -> Mask:
    """The weights of some neurons that a protocol trains."""
    mask = Mask.neurons(model, neurons)
    if PROTOCOLS[protocol].weights == "in and out":
        return mask
    return Mask({name: index for name, index in mask.indices.items() if name.endswith("W_out")}, mask.shapes)


def deletion_board(
    model: HookedTransformer,
    targets: Paragraphs,
    others: Paragraphs,
    keep: Paragraphs,
    *,
    methods: Sequence[NeuronMethod] = tuple(METHODS),
    seed: int = 0,
    progress: Steps | None = None,
) -> xr.Dataset:
    """DEL (Chang et al. 2024): drop the neurons that a method names for one memorized paragraph; see what is lost.

    Args:
        model: left as it is.
        targets: memorized paragraphs, one deletion each.
        others: memorized paragraphs of other clusters, which should stay.
        keep: text that is not memorized, whose perplexity should stay; also for methods that contrast.
        methods: names in METHODS.
        seed: of what is random; each target has another.
        progress: called with (what is done, targets done, targets).

    Returns:
        Dataset [method, target, dropped], changes against the model as it is: target_accuracy and other_accuracy
        (position-wise match, teacher-forced, in percentage points; target: lower is better, other: higher),
        target_edit_distance (tokens between what the model generates and the text; higher is better) and
        perplexity (of `keep`; lower is better); seconds[method, target].

    Raises:
        InputError: an unknown method, or paragraphs that do not fit.
    """
    _check(methods)
    before = [_lost(model, targets.select(np.array([i])), others, keep) for i in range(len(targets))]
    effects = np.zeros((len(methods), len(targets), len(DROPPED), 4))
    seconds = np.zeros(effects.shape[:2])
    for number in range(len(targets)):
        target = targets.select(np.array([number]))
        for row, method in enumerate(methods):
            started = time.process_time()
            scores = localize_neurons(model, target, keep, method=method, seed=seed + number)
            seconds[row, number] = time.process_time() - started
            for column, fraction in enumerate(DROPPED):
                with without_neurons(model, top_neurons(scores, fraction)):
                    after = _lost(model, target, others, keep)
                effects[row, number, column] = after - before[number]
            if progress is not None:
                progress(f"deleted, {method}", number, len(targets))
    names = {
        "target_accuracy": ("percentage points", "less of the target is lost"),
        "other_accuracy": ("percentage points", "less of other memories is lost"),
        "target_edit_distance": ("tokens", "more of the target is lost"),
        "perplexity": ("perplexity", "other text is predicted worse"),
    }
    dims = ("method", "target", "dropped")
    data = {
        name: (dims, effects[..., number], {"units": unit, "higher": higher})
        for number, (name, (unit, higher)) in enumerate(names.items())
    }
    coords = {"method": list(methods), "target": np.arange(len(targets)), "dropped": list(DROPPED)}
    return xr.Dataset(data | {"seconds": (dims[:2], seconds, {"units": "CPU seconds"})}, coords, {"seed": seed})


@contextmanager
def without_neurons(model: HookedTransformer, neurons: Sequence[tuple[int, int]]) -> Iterator[HookedTransformer]:
    """What some neurons write is zero in the block; afterwards their weights are what they were, bit for bit.

    The block holds the model's lock.
    """
    with holding(model):
        kept = [model.blocks[layer].mlp.get_parameter("W_out")[neuron].detach().clone() for layer, neuron in neurons]
        try:
            with torch.no_grad():
                for layer, neuron in neurons:
                    model.blocks[layer].mlp.get_parameter("W_out")[neuron] = 0
            yield model
        finally:
            with torch.no_grad():
                for (layer, neuron), row in zip(neurons, kept, strict=True):
                    model.blocks[layer].mlp.get_parameter("W_out")[neuron] = row


def _lost(model: HookedTransformer, target: Paragraphs, others: Paragraphs, keep: Paragraphs) -> np.ndarray:
    """Accuracy of the target and of others, edit distance of the target, perplexity of the rest."""
    scored = score(model, target)
    lean, em = LeanModel(model), scored.em.values
    best = lean.unembed(lean.forward(target.tokens)[:, target.prefix_len - 1 : -1]).argmax(-1).cpu().numpy()
    rival = best[np.arange(len(em)), np.minimum(em, target.continuation_len - 1)]
    said = greedy_continuations(lean, target.tokens, target.prefix_len, em, rival)
    true = target.continuation.numpy()
    return np.array(
        [
            100 * float(scored.match.mean()),
            100 * float(score(model, others).match.mean()),
            float(edit_distances(said, true).mean()),
            float(np.exp(score(model, keep).nll.mean())),
        ]
    )


def _labels(scores: xr.DataArray, truth: Sequence[tuple[int, int]]) -> np.ndarray:
    """Which neurons are true ones, in the order of `_flat`."""
    labels = np.zeros((scores.sizes["layer"], scores.sizes["neuron"]), dtype=bool)
    labels[tuple(np.array(truth).T)] = True
    return labels.ravel()


def _flat(scores: xr.DataArray) -> np.ndarray:
    return scores.transpose("layer", "neuron").values.ravel()


def _check(methods: Sequence[str]) -> None:
    unknown = [method for method in methods if method not in METHODS]
    if unknown or not methods:
        raise InputError(f"got methods {unknown or list(methods)}; need some of {', '.join(METHODS)}")
