"""Unlearning: raise the NLL of chosen paragraphs and hold the model's predictions everywhere else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import Progress
from mechmem.intervene.checkpoints import EditLog, edit_key
from mechmem.intervene.descent import Descent, Reference
from mechmem.intervene.dropping.gradual import GradualDrop
from mechmem.intervene.dropping.methods import DROPPING
from mechmem.intervene.loop import Row, run_loop
from mechmem.intervene.objectives import OBJECTIVES, Objective
from mechmem.measure.scores import memorized_other, score
from mechmem.model.forward import check_fit
from mechmem.model.hooks import frozen
from mechmem.model.load import HookedTransformer
from mechmem.weights.masked_weights import MakeOptimizer, MaskedWeights, check_mask
from mechmem.weights.masks import Mask
from mechmem.weights.support import verify_support

METHODS = (*OBJECTIVES, *DROPPING)


def unlearn(
    model: HookedTransformer,
    memorized: Paragraphs,
    keep: Paragraphs,
    *,
    method: str = "contrastive",
    mask: Mask | None = None,
    steps: int = 10,
    seed: int = 0,
    learning_rate: float = 1e-5,
    weight_decay: float = 0.0,
    keep_weight: float = 1.0,
    batch_size: int = 16,
    optimizer: MakeOptimizer | None = None,
    max_norm: float | None = None,
    stop: Callable[[Row], bool] | None = None,
    check_targets: bool = True,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> tuple[HookedTransformer, xr.Dataset]:
    """Return an edited copy of the model, and what happened at each step; the model given is unchanged.

    Methods of descent take `steps` updates on the masked weights alone, each on a batch of both sets, down

        target term + keep_weight * keep term

    "contrastive": -NLL of memorized, KL(p_0 || p) on keep (Stoehr et al. 2024, arXiv 2403.19851, section 5). "ascent":
    -NLL and nothing held. "grad_diff": -NLL, and NLL of keep (Liu et al. 2022, arXiv 2203.12817). "npo", "simnpo",
    "uniform": see `mechmem.intervene.objectives`; KL is held. The others drop or take back more and more, in `steps`
    equal parts, of what they prepared (`mechmem.intervene.dropping.methods`). The optimizer holds nothing but the
    masked weights, so neither weight decay, momentum nor clipping reaches another one; `verify_support` proves it
    before returning.

    Args:
        model: raw weights if the edit is to be exported. Hooks on it do not take part.
        memorized: paragraphs to unlearn.
        keep: paragraphs whose predictions are held; no paragraph of `memorized` among them.
        method: one of `METHODS`.
        mask: weights that may move; None for all attention and MLP weights.
        steps: at most this many updates.
        seed: order of the batches, and whatever else a method draws.
        learning_rate: of AdamW; the paper's is 1e-5 on GPT-Neo 125M. Methods that drop have none.
        weight_decay: of AdamW: decoupled, on masked weights only.
        keep_weight: of the keep term.
        batch_size: paragraphs of each set in a step.
        optimizer: another optimizer, made from the list of tensors to optimize.
        max_norm: clip the gradient, over all masked weights, to this Euclidean norm.
        stop: a `Stop`, or any function of a step's values that says when to end; the same for every method.
        check_targets: refuse targets that the model does not know.
        checkpoint: a safetensors file that is written while the edit runs (methods of descent) and removed at its end.
        resume: go on from that file; the result is that of an edit that was not interrupted.
        progress: called with (steps done, steps).

    Returns:
        The edited model and a Dataset [step] of the values before each update: `memorized_nll`, `keep_kl` (nats a
        token), `memorized_em` (tokens, teacher-forced) and `objective` (lower is better), each the mean over the
        latest value of every batch. Attributes: `ended` ("steps", "stop rule", "budget", "diverged") and `final_*`,
        the same values of the weights returned.

    Raises:
        InputError: an unknown method, an empty set, a paragraph in both sets, a target that the model does not know
            (EM of a fifth or less), a mask that is empty, full or of another model, or a checkpoint of another edit.

    Warns:
        RuntimeWarning: the objective diverged; the best weights are returned.
    """
    _check(model, memorized, keep, mask, method)
    if check_targets:
        check_known(model, memorized)
    settings = {
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "optimizer": optimizer,
        "max_norm": max_norm,
    }
    if method in OBJECTIVES:
        return descend(
            model,
            OBJECTIVES[method],
            memorized,
            keep,
            mask=mask,
            steps=steps,
            seed=seed,
            keep_weight=keep_weight,
            batch_size=batch_size,
            stop=stop,
            name="memorized",
            settings=settings,
            checkpoint=checkpoint,
            resume=resume,
            progress=progress,
        )
    path = DROPPING[method](model, memorized, keep, mask=mask, seed=seed, progress=progress)
    edited = copy.deepcopy(model)
    with frozen(edited):
        history = run_loop(
            GradualDrop(model, edited, path, mask, memorized, keep, steps), steps=steps, stop=stop, progress=progress
        )
    if mask is not None:
        verify_support(model, edited, mask)
    return edited, history.assign_attrs(method=method)


def descend(
    model: HookedTransformer,
    objective: Objective,
    targets: Paragraphs,
    keep: Paragraphs,
    *,
    mask: Mask | None,
    steps: int,
    seed: int,
    keep_weight: float,
    batch_size: int,
    stop: Callable[[Row], bool] | None,
    name: str,
    settings: dict[str, Any],
    checkpoint: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> tuple[HookedTransformer, xr.Dataset]:
    """Move a copy's masked weights down an objective: what unlearning, editing and memorizing share.

    Args:
        model: left as it is.
        objective: what is minimized.
        targets: paragraphs that shall change.
        keep: those that shall not.
        mask: weights that may move; None for all.
        steps: as `unlearn`; so are seed, keep_weight, batch_size, stop, checkpoint, resume and progress.
        seed: order of the batches.
        keep_weight: of the keep term.
        batch_size: paragraphs of each set in a step.
        stop: when to end.
        name: prefix of the targets' values in the history.
        settings: of `MaskedWeights`.
        checkpoint: file of an interrupted edit.
        resume: go on from it.
        progress: called with (steps done, steps).

    Returns:
        As `unlearn`.
    """
    edited = copy.deepcopy(model)
    with frozen(edited):
        weights = MaskedWeights(edited, mask, **settings)
        move = Descent(
            weights,
            Reference(model),
            objective,
            targets,
            keep,
            keep_weight=keep_weight,
            batch_size=batch_size,
            seed=seed,
            name=name,
        )
        log = None
        if checkpoint is not None:
            decides = {n: v for n, v in settings.items() if n != "optimizer"} | {"seed": seed, "batch": batch_size}
            decides |= {"keep_weight": keep_weight, "objective": objective.target.__qualname__, "name": name}
            key = edit_key(model, mask, (targets, keep), decides)
            log = EditLog(checkpoint, weights, move, key=key, resume=resume)
        history = run_loop(move, steps=steps, stop=stop, progress=progress, log=log)
        if log is not None:
            log.done()
    if mask is not None:
        verify_support(model, edited, mask)
    return edited, history.assign_attrs({k: v for k, v in settings.items() if isinstance(v, int | float)})


def check_sets(model: HookedTransformer, targets: Paragraphs, keep: Paragraphs, name: str) -> None:
    """Refuse sets that an edit cannot be judged by.

    Raises:
        InputError: an empty set, one that does not fit the model, or a paragraph in both.
    """
    for label, paragraphs in ((name, targets), ("keep", keep)):
        if len(paragraphs) == 0:
            raise InputError(f"the {label} set is empty; give at least one paragraph")
        check_fit(model, paragraphs)
    shared = set(map(tuple, targets.tokens.tolist())) & set(map(tuple, keep.tokens.tolist()))
    if shared:
        raise InputError(
            f"{len(shared)} paragraphs are both in {name} and in keep; what is to go cannot be held: "
            "remove them from keep"
        )


def check_known(model: HookedTransformer, memorized: Paragraphs) -> None:
    """Refuse targets that there is nothing to unlearn of.

    Raises:
        InputError: a paragraph's EM is a fifth of the continuation or less.
    """
    em = score(model, memorized).em.values
    _, other = memorized_other(em, memorized.continuation_len)
    if other.any():
        first = int(np.flatnonzero(other)[0])
        raise InputError(
            f"{int(other.sum())} of {len(em)} targets are not memorized (number {first} has EM {em[first]} of "
            f"{memorized.continuation_len}), so unlearning them would prove nothing; choose targets with mechmem.split "
            "or pass check_targets=False"
        )


def _check(model: HookedTransformer, memorized: Paragraphs, keep: Paragraphs, mask: Mask | None, method: str) -> None:
    if method not in METHODS:
        raise InputError(f"method is {method!r}; need one of {', '.join(METHODS)}")
    check_sets(model, memorized, keep, "memorized")
    if mask is not None:
        check_mask(model, mask)
