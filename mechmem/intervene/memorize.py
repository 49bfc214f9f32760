"""Making a model memorize: write chosen paragraphs into a chosen set of weights, and count what that took."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import torch
import xarray as xr

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import Progress
from mechmem.intervene.edit import learned
from mechmem.intervene.loop import Row
from mechmem.intervene.objectives import Objective, hold_kl, lower_nll
from mechmem.intervene.unlearn import check_sets, descend
from mechmem.measure.scores import score
from mechmem.model.load import HookedTransformer
from mechmem.model.sites import editable_parameters
from mechmem.weights.masked_weights import MakeOptimizer, check_mask
from mechmem.weights.masks import Mask


def memorize(
    model: HookedTransformer,
    paras: Paragraphs,
    keep: Paragraphs,
    *,
    mask: Mask | None = None,
    steps: int = 200,
    seed: int = 0,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
    keep_weight: float = 1.0,
    batch_size: int = 16,
    optimizer: MakeOptimizer | None = None,
    max_norm: float | None = None,
    stop: Callable[[Row], bool] | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> tuple[HookedTransformer, xr.Dataset]:
    """Return a copy of the model that has memorized some paragraphs, through the masked weights alone.

    Making a model memorize at will is what Stoehr et al. 2024 (arXiv 2403.19851, section 7) leave for later work. AdamW
    minimizes NLL(paragraphs) + keep_weight * KL(p_0 || p on keep). What it displaced is for `evaluate` to say, with
    the model's other memorized paragraphs as a set. `inject` does the same without a keep set, to make known answers.

    Args:
        model: left as it is.
        paras: paragraphs that it does not reproduce.
        keep: paragraphs whose predictions are held.
        mask: weights that may move; None for all attention and MLP weights.
        steps: at most this many updates.
        seed: order of the batches.
        learning_rate: of AdamW.
        weight_decay: of AdamW, decoupled.
        keep_weight: of the KL term.
        batch_size: paragraphs of each set in a step.
        optimizer: as in `unlearn`.
        max_norm: as in `unlearn`.
        stop: any function of a step's values; None: ends when every paragraph is said whole and its NLL is 0.3.
        checkpoint: as in `unlearn`.
        resume: as in `unlearn`.
        progress: called with (steps done, steps).

    Returns:
        The model, and a Dataset [step] of the values before each update: `target_nll` (nats a token), `target_em`
        (tokens), `keep_kl`, `objective` (lower is better). Attributes as in `unlearn`, and `learned` (1 or 0: whether
        all is reproduced), `weights_allowed`, and `weights_needed`: with so many of the largest changes alone all is
        reproduced still (`weights_needed`; 0 if it was not learned).

    Raises:
        InputError: paragraphs that are all reproduced already, and as `unlearn`.

    Warns:
        RuntimeWarning: the objective diverged; the best weights are returned.
    """
    check_sets(model, paras, keep, "paragraphs")
    if mask is not None:
        check_mask(model, mask)
    if bool((score(model, paras).em == paras.continuation_len).all()):
        raise InputError(f"the model reproduces all {len(paras)} paragraphs already; need some that it does not")
    edited, history = descend(
        model,
        Objective(lower_nll, hold_kl),
        paras,
        keep,
        mask=mask,
        steps=steps,
        seed=seed,
        keep_weight=keep_weight,
        batch_size=batch_size,
        stop=stop or learned(paras),
        name="target",
        settings={
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "optimizer": optimizer,
            "max_norm": max_norm,
        },
        checkpoint=checkpoint,
        resume=resume,
        progress=progress,
    )
    whole = _reproduces(edited, paras)
    needed = weights_needed(model, edited, paras) if whole else 0
    parameters = editable_parameters(model).values()
    allowed = mask.count if mask is not None else sum(parameter.numel() for parameter in parameters)
    return edited, history.assign_attrs(learned=int(whole), weights_allowed=allowed, weights_needed=needed)


def weights_needed(model: HookedTransformer, edited: HookedTransformer, paras: Paragraphs) -> int:
    """How many of an edit's largest changes are enough to reproduce paragraphs, to within one part in a hundred.

    Changes are taken back from the smallest on; the number is found by halving, which is right if what a number of
    changes reproduces, more changes reproduce too.

    Raises:
        InputError: the edited model does not reproduce the paragraphs.
    """
    if not _reproduces(edited, paras):
        raise InputError("the edited model does not reproduce the paragraphs; need one that does: edit further")
    before, after = editable_parameters(model), editable_parameters(edited)
    change = {name: (after[name] - before[name]).detach() for name in before}
    sizes = torch.cat([values.abs().flatten() for values in change.values()]).sort(descending=True).values
    low, high = 0, int((sizes > 0).sum())
    trial = copy.deepcopy(model)
    parameters = editable_parameters(trial)
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        with torch.no_grad():
            for name, values in change.items():
                parameters[name].copy_(before[name] + values * (values.abs() >= sizes[middle - 1]))
        low, high = (low, middle) if _reproduces(trial, paras) else (middle, high)
    return high


def _reproduces(model: HookedTransformer, paras: Paragraphs) -> bool:
    return bool((score(model, paras).em == paras.continuation_len).all())
