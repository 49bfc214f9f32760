"""Methods that unlearn by dropping: each gives a schedule of what is gone at every share."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import Progress, part_of
from mechmem.intervene.descent import CHUNK
from mechmem.intervene.dropping.curvature import kfac
from mechmem.intervene.dropping.gradual import Schedule, dropped_rows
from mechmem.intervene.dropping.trained_masks import balanced_subnet, hard_concrete
from mechmem.intervene.objectives import lower_nll
from mechmem.localize.ablation import ablate_heads
from mechmem.localize.neuron_gates import gate_gradient
from mechmem.model.hooks import frozen
from mechmem.model.load import HookedTransformer
from mechmem.model.sites import editable_parameters
from mechmem.weights.masked_weights import MaskedWeights
from mechmem.weights.masks import Mask
from mechmem.weights.training import Training

# Shares at share 1: of all neurons, and of all heads. More leaves no language model to compare with.
NEURONS, HEADS = 0.05, 0.5
# Points of the integrated gradients.
INTEGRATED = 4
# The task vector: steps and rate of its fine-tuning, and how many times it is taken back at share 1.
TUNING_STEPS, TUNING_RATE, TIMES = 10, 1e-4, 10.0


def neuron_drop(
    model: HookedTransformer,
    memorized: Paragraphs,
    keep: Paragraphs,
    *,
    mask: Mask | None,  # noqa: ARG001 - the mask is applied to what a schedule gives
    seed: int,  # noqa: ARG001 - nothing is drawn
    progress: Progress | None = None,
) -> Schedule:
    """Drop MLP neurons by zeroing what they write (DEL of Chang et al. 2024, arXiv 2311.09060).

    Neurons are ranked by how much closing one adds to the NLL of memorized paragraphs beyond what it adds to that of
    the keep set. The estimate uses integrated gradients, because the gradient at the model itself is flat where a
    memory is certain. At share 1 a twentieth of all neurons is dropped.
    """
    gain = gate_gradient(model, memorized, INTEGRATED) - gate_gradient(model, keep, INTEGRATED)
    _done(progress)
    return dropped_rows(model, "mlp.W_out", gain, NEURONS)


def head_drop(
    model: HookedTransformer,
    memorized: Paragraphs,
    keep: Paragraphs,
    *,
    mask: Mask | None,  # noqa: ARG001
    seed: int,
    progress: Progress | None = None,
) -> Schedule:
    """Drop attention heads by zeroing what they write, except biases.

    Heads are ranked by how much ablating one alone adds to the NLL of memorized paragraphs beyond what it adds to that
    of the keep set. At share 1 half of all heads are dropped.
    """
    rises: list[xr.DataArray] = [
        ablate_heads(
            model, paras, method="zero", seed=seed, progress=part_of(progress, number, 2) if progress else None
        ).nll_change
        for number, paras in enumerate((memorized, keep))
    ]
    gain = torch.from_numpy((rises[0] - rises[1]).transpose("layer", "head").values.astype(np.float32))
    return dropped_rows(model, "attn.W_O", gain, HEADS)


def task_arithmetic(
    model: HookedTransformer,
    memorized: Paragraphs,
    keep: Paragraphs,  # noqa: ARG001 - it never sees what is to be kept
    *,
    mask: Mask | None,
    seed: int,  # noqa: ARG001
    progress: Progress | None = None,
) -> Schedule:
    """Take back a task vector (Ilharco et al. 2023, arXiv 2212.04089): w - share * TIMES * (tuned w - w).

    The tuned model is the original after a few steps of AdamW on the memorized paragraphs themselves.
    """
    tuned = copy.deepcopy(model)
    with frozen(tuned), torch.enable_grad():
        weights = MaskedWeights(tuned, mask, Training(learning_rate=TUNING_RATE))
        for _ in range(TUNING_STEPS):
            for start in range(0, len(memorized), CHUNK):
                part = memorized.select(np.arange(start, min(start + CHUNK, len(memorized))))
                true = part.continuation.to(model.W_E.device)

                def loss(logits: Tensor, rows: slice, true: Tensor = true) -> Tensor:
                    return lower_nll(logits.log_softmax(-1), true[rows], logits).sum() / len(memorized)

                weights.accumulate(part.tokens, part.prefix_len, loss)
            weights.step()
    _done(progress)
    after = {name: parameter.detach() for name, parameter in editable_parameters(tuned).items()}
    before = editable_parameters(model)

    def schedule(share: float) -> dict[str, Tensor]:
        names = before if mask is None else mask.indices
        return {n: before[n].detach() - share * TIMES * (after[n] - before[n].detach()) for n in names}

    return schedule


def _done(progress: Progress | None) -> None:
    if progress is not None:
        progress(1, 1)


DROPPING: dict[str, Callable[..., Schedule]] = {
    "neuron_drop": neuron_drop,
    "head_drop": head_drop,
    "balanced_subnet": balanced_subnet,
    "hard_concrete": hard_concrete,
    "kfac": kfac,
    "task_arithmetic": task_arithmetic,
}
