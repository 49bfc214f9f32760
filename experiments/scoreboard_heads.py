"""Localizers of heads where the answer is known: paragraphs injected into a few heads, and hand-set models."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from einops import einsum
from scoreboard_truth import area, swapped

import mechmem as mm
from mechmem.data.errors import InputError
from mechmem.localize.scoreboard import CONTRASTS, PROTOCOLS, weight_area
from mechmem.model.load import HookedTransformer

Pair = tuple[mm.Paragraphs, mm.Paragraphs]
# As many heads are taken as a paragraph was injected into, and twice as many.
TAKEN = (1, 2)
# Whose time is 1.
YARDSTICK = "ablate_heads, zero"


@dataclass(frozen=True)
class HeadTask:
    """What a localizer of heads is given.

    Attributes:
        model: left as it is.
        paragraphs: those whose heads are localized.
        pair: the same as clean and corrupt text, for patching and attribution.
        keep: other text.
        seed: of what is random.
    """

    model: HookedTransformer
    paragraphs: mm.Paragraphs
    pair: Pair
    keep: mm.Paragraphs
    seed: int


def _ablated(method: Any) -> Callable[[HeadTask], np.ndarray]:
    """Rise of the NLL; what "mean" replaces by is the mean over the paragraphs and the keep set."""

    def scores(task: HeadTask) -> np.ndarray:
        some = task.paragraphs
        if method == "mean":
            some = mm.Paragraphs(torch.cat([some.tokens, task.keep.tokens]), some.prefix_len)
        change = mm.ablate_heads(task.model, some, method=method, average=False).nll_change
        return _grid(change.isel(paragraph=slice(len(task.paragraphs))).mean("paragraph"))

    return scores


def _patched(direction: Any) -> Callable[[HeadTask], np.ndarray]:
    """Exact patching of a head at all positions; higher: the clean text needs it."""
    sign = -1 if direction == "denoising" else 1
    return lambda task: sign * _grid(mm.patch(task.model, *task.pair, site="z", pos="all", direction=direction))


def _attributed(method: Any) -> Callable[[HeadTask], np.ndarray]:
    return lambda task: _grid(mm.attribute(task.model, *task.pair, site="z", pos="all", method=method))


def _activations(method: Any) -> Callable[[HeadTask], np.ndarray]:
    """Signed sums over positions turned round; higher: the activation makes the text more likely."""
    return lambda task: -_grid(mm.activation_gradients(task.model, task.paragraphs, site="z", method=method).sum("pos"))


def _weights(contrast: Any) -> Callable[[HeadTask], np.ndarray]:
    """Norm over a head's own W_Q, W_K, W_V and W_O."""

    def scores(task: HeadTask) -> np.ndarray:
        found = mm.contrastive_gradients(task.model, task.paragraphs, task.keep, method=contrast)
        squares = [
            [found[f"blocks.{layer}.attn.W_{letter}"].square().sum((1, 2)) for letter in "QKVO"]
            for layer in range(task.model.cfg.n_layers)
        ]
        return torch.stack([torch.stack(layer).sum(0).sqrt() for layer in squares]).cpu().numpy()

    return scores


def _output_norm(task: HeadTask) -> np.ndarray:
    """Mean length of what a head writes: a decoy, since it does not ask whether anything reads it."""
    z = mm.capture(task.model, task.paragraphs, sites=("z",)).z
    z = torch.as_tensor(z.transpose("paragraph", "layer", "head", "pos", "d_head").values)
    out = task.model.W_O.detach().cpu().to(z.dtype)
    written = einsum(z, out, "paragraph layer head pos d, layer head d model -> paragraph layer head pos model")
    return written.norm(dim=-1).mean((0, 3)).numpy()


def _random(task: HeadTask) -> np.ndarray:
    shape = task.model.cfg.n_layers, task.model.cfg.n_heads
    return np.random.default_rng(task.seed).random(shape)


# Name -> scores [layer, head]; higher: the paragraphs depend more on the head.
HEAD_METHODS: Mapping[str, Callable[[HeadTask], np.ndarray]] = {
    "ablate_heads, zero": _ablated("zero"),
    "ablate_heads, mean": _ablated("mean"),
    "patch, noising": _patched("noising"),
    "patch, denoising": _patched("denoising"),
    "patch, mean": _patched("mean"),
    "attribute, gradient": _attributed("gradient"),
    "attribute, both_ends": _attributed("both_ends"),
    "attribute, integrated": _attributed("integrated"),
    "activation_gradients, gradient_x_activation": _activations("gradient_x_activation"),
    "activation_gradients, integrated": _activations("integrated"),
    **{f"contrastive_gradients, {contrast}": _weights(contrast) for contrast in CONTRASTS},
    "length of the output": _output_norm,
    "random": _random,
}


def random_heads(model: HookedTransformer, share: float, seed: int) -> list[tuple[int, int]]:
    """A share of all heads, (layer, head), drawn uniformly, in order; at least one, and never all."""
    count = model.cfg.n_layers * model.cfg.n_heads
    drawn = min(max(1, round(share * count)), count - 1)
    chosen = np.random.default_rng(seed).choice(count, drawn, replace=False)
    return [divmod(int(flat), model.cfg.n_heads) for flat in sorted(chosen)]


def head_board(
    model: HookedTransformer, target: mm.Paragraphs, keep: mm.Paragraphs, *, share: float, seed: int
) -> xr.Dataset:
    """Inject one paragraph into a few random heads, as `injection_board` does into neurons, and localize them.

    1. Draw heads, and train the paragraph into their W_Q, W_K, W_V and W_O alone.
    2. Make its corrupt text: the perturbation of one prefix token that costs most.
    3. Ask every method for the heads that hold it, and compare with those drawn.

    Args:
        model: left as it is.
        target: one paragraph that it does not know.
        keep: other text.
        share: of the heads.
        seed: of the draw.

    Returns:
        Dataset: head_recall[head_method, target, taken] of the best heads, as many as were drawn or twice as many,
        head_auroc[head_method, target], 0 to 1, and head_weight_auroc[contrast, target] of single weights, higher:
        better; head_seconds[head_method, target]; head_em[target] after the injection, tokens.
    """
    heads = random_heads(model, share, seed)
    mask = mm.Mask.heads(model, heads)
    injected, history = mm.inject(model, target, mask, training=PROTOCOLS["whole neurons"].training)
    truth = np.zeros((model.cfg.n_layers, model.cfg.n_heads), dtype=bool)
    truth[tuple(np.array(heads).T)] = True
    task = HeadTask(injected, target, corrupted(injected, target, keep), keep, seed)
    rows = []
    for method in HEAD_METHODS.values():
        started = time.process_time()
        scores = method(task)
        seconds = time.process_time() - started
        rows.append([seconds, area(scores, truth), *(share_found(scores, truth, many) for many in TAKEN)])
    by_weight = [weight_area(injected, target, keep, mask, contrast) for contrast in CONTRASTS]
    values, better = np.array(rows)[:, None], {"units": "1", "higher": "better"}
    data = {
        "head_recall": (("head_method", "target", "taken"), values[..., 2:], better),
        "head_auroc": (("head_method", "target"), values[..., 1], better | {"chance": 0.5}),
        "head_weight_auroc": (("contrast", "target"), np.array(by_weight)[:, None], better | {"chance": 0.5}),
        "head_seconds": (("head_method", "target"), values[..., 0], {"units": "CPU seconds"}),
        "head_em": ("target", history.em.values[-1:], {"units": "tokens", "higher": "better injected"}),
    }
    coords = {"head_method": list(HEAD_METHODS), "target": [0], "taken": list(TAKEN), "contrast": list(CONTRASTS)}
    return xr.Dataset(data, coords, {"heads": len(heads), "seed": seed})


def share_found(scores: np.ndarray, truth: np.ndarray, many: int) -> float:
    """Share of the true heads among the best, of which `many` times as many are taken; of equal ones the first."""
    best = np.argsort(-scores.ravel(), kind="stable")[: many * int(truth.sum())]
    return float(truth.ravel()[best].sum() / truth.sum())


def corrupted(model: HookedTransformer, target: mm.Paragraphs, keep: mm.Paragraphs) -> Pair:
    """The paragraph and its worst perturbation; where none changes what the model writes, and another paragraph."""
    try:
        return mm.worst_perturbations(model, target, mm.perturb_prefix(model, target))
    except InputError:
        return target, keep.select(np.arange(len(target)))


def hand_set_heads(seed: int, models: int) -> xr.Dataset:
    """head_auroc[head_method, planted] on hand-set models: the head that all memories go through, among all heads.

    Args:
        seed: of the first model; each has another.
        models: how many.
    """
    rows = []
    for number in range(models):
        truth = mm.planted(mm.PlantedSettings(seed=seed + number, n_layers=3, memories=4, others=8, d_mlp=256))
        labels = np.zeros((truth.model.cfg.n_layers, truth.model.cfg.n_heads), dtype=bool)
        labels[truth.head] = True
        pair = truth.memorized, swapped(truth)
        task = HeadTask(truth.model, truth.memorized, pair, truth.other, seed + number)
        rows.append([area(method(task), labels) for method in HEAD_METHODS.values()])
    data = {"head_auroc": (("head_method", "planted"), np.array(rows).T, {"units": "1", "higher": "better"})}
    return xr.Dataset(data, {"head_method": list(HEAD_METHODS)})


def _grid(values: xr.DataArray) -> np.ndarray:
    return values.transpose("layer", "head").values
