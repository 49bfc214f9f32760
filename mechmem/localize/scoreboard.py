"""A scoreboard of localizers: whether they find known neurons, and what dropping the neurons they find changes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import xarray as xr
from sklearn.metrics import average_precision_score

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.localize.neurons import METHODS, NeuronMethod, localize_neurons, top_neurons
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
INJECTING = Training(steps=400, learning_rate=1e-3)
# Called with what is done and how much there is.
Steps = Callable[[str, int, int], None]


def recall(scores: xr.DataArray, truth: Sequence[tuple[int, int]], fraction: float) -> float:
    """Share of the true neurons among the share of all neurons that score highest, 0 to 1."""
    found = set(top_neurons(scores, fraction))
    return len(found & set(truth)) / len(truth)


def precision_area(scores: xr.DataArray, truth: Sequence[tuple[int, int]]) -> float:
    """Area under the precision-recall curve, 0 to 1; a random order gives the share of true neurons."""
    labels = np.zeros(scores.shape, dtype=bool)
    labels[tuple(np.array(truth).T)] = True
    return float(average_precision_score(labels.ravel(), scores.transpose("layer", "neuron").values.ravel()))


def injection_board(
    model: HookedTransformer,
    targets: Paragraphs,
    keep: Paragraphs,
    *,
    methods: Sequence[NeuronMethod] = tuple(METHODS),
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
        fraction: of the neurons that each paragraph goes into.
        seed: of the draws; each target has another.
        progress: called with (what is done, targets done, targets).

    Returns:
        Dataset: recall[method, target, fraction] and auprc[method, target], 0 to 1, higher: better; seconds[method,
        target]; em[target] after the injection, tokens.

    Raises:
        InputError: an unknown method, or paragraphs that do not fit.
    """
    _check(methods)
    rows, ems = [], []
    for number in range(len(targets)):
        target = targets.select(np.array([number]))
        truth = random_neurons(model, fraction, seed + number)
        injected, history = inject(model, target, Mask.neurons(model, truth), training=INJECTING)
        ems.append(float(history.em[-1]))
        row = []
        for method in methods:
            started = time.perf_counter()
            scores = localize_neurons(injected, target, keep, method=method, seed=seed + number)
            seconds = time.perf_counter() - started
            row.append([seconds, precision_area(scores, truth), *(recall(scores, truth, at) for at in RECALL_AT)])
            if progress is not None:
                progress(f"injected, {method}", number, len(targets))
        rows.append(row)
    values = np.array(rows).transpose(1, 0, 2)
    data = {
        "recall": (("method", "target", "fraction"), values[..., 2:], {"units": "1", "higher": "better"}),
        "auprc": (("method", "target"), values[..., 1], {"units": "1", "higher": "better", "chance": fraction}),
        "seconds": (("method", "target"), values[..., 0], {"units": "s"}),
        "em": ("target", np.array(ems), {"units": "tokens", "higher": "better injected"}),
    }
    coords = {"method": list(methods), "target": np.arange(len(targets)), "fraction": list(RECALL_AT)}
    return xr.Dataset(data, coords, {"injected_fraction": fraction, "seed": seed})


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
            started = time.perf_counter()
            scores = localize_neurons(model, target, keep, method=method, seed=seed + number)
            seconds[row, number] = time.perf_counter() - started
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
    return xr.Dataset(data | {"seconds": (dims[:2], seconds, {"units": "s"})}, coords, {"seed": seed})


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


def _check(methods: Sequence[str]) -> None:
    unknown = [method for method in methods if method not in METHODS]
    if unknown or not methods:
        raise InputError(f"got methods {unknown or list(methods)}; need some of {', '.join(METHODS)}")
