"""Unlearning: raise the NLL of chosen paragraphs and hold the model's predictions everywhere else."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import xarray as xr
from typing_extensions import Unpack

from mechmem.data.bounds import Seed
from mechmem.data.choices import check_choice, check_used
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, between
from mechmem.intervene.checkpoints import remove_checkpoint
from mechmem.intervene.descent import Task
from mechmem.intervene.descent_methods import UnlearnOptions, objective_of
from mechmem.intervene.dropping.gradual import GradualDrop
from mechmem.intervene.dropping.methods import DROPPING
from mechmem.intervene.loop import Row, Stop, run_loop
from mechmem.intervene.method_names import Method
from mechmem.intervene.objectives import Objective
from mechmem.intervene.preferred import perturbed_continuations, preferred_targets
from mechmem.intervene.rmu_terms import steered_layer
from mechmem.intervene.train import check_sets, train_copy, warn_unchanged
from mechmem.measure.scores import memorized_other, score
from mechmem.model.hooks import frozen
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public
from mechmem.weights.masked_weights import check_mask
from mechmem.weights.masks import Mask
from mechmem.weights.support import verify_support
from mechmem.weights.training import Training, old_keywords

# Of all settings of `Training` but steps, which every method uses.
DESCENT = (
    "learning_rate",
    "batch_size",
    "weight_decay",
    "max_norm",
    "null_space",
    "optimizer",
    "checkpoint",
    "resume",
)


@old_keywords
@public("refuse", renamed={"other": "keep"})
def unlearn(
    model: HookedTransformer,
    memorized: Paragraphs,
    keep: Paragraphs,
    *,
    method: Method = "npo",
    mask: Mask | None = None,
    training: Training | None = None,
    stop: Callable[[Row], bool] | None = None,
    check_targets: bool = True,
    seed: Seed = 0,
    progress: ProgressLike = None,
    **options: Unpack[UnlearnOptions],
) -> tuple[HookedTransformer, xr.Dataset]:
    """Return an edited copy of the model, and what happened at each step; the model given is unchanged.

    Methods of descent update the masked weights alone, each step on a batch of both sets, to minimize

        target term + keep_weight * keep term

    "npo", "simnpo", "wga", "satimp", "uniform": see `mechmem.intervene.objectives`; their keep term is KL(p_0 || p).
    "npo_sam": NPO whose target term is the worst within a small radius (Fan et al. 2025, arXiv 2502.05374). "dpo":
    another continuation is preferred to the memorized one (Rafailov et al. 2023, arXiv 2305.18290; Chen et al. 2025,
    arXiv 2504.14452). "rmu": a layer's residual stream is steered to a random direction, and that of the keep set held
    (Li et al. 2024, arXiv 2403.03218; `mechmem.intervene.rmu_terms`). "contrastive": -NLL of memorized, KL(p_0 || p) on
    keep (Stoehr et al. 2024, arXiv 2403.19851, section 5). "ascent": -NLL, no keep term. "grad_diff": -NLL, and NLL of
    keep (Liu et al. 2022, arXiv 2203.12817). The other methods drop more and more, in `training.steps` equal parts, of
    the units or directions that they found (`mechmem.intervene.dropping.methods`). The optimizer holds the masked
    weights alone, so neither weight decay, momentum nor clipping reaches another weight; `verify_support` proves it
    before returning.

    Args:
        model: raw weights if the edit is to be exported.
        memorized: paragraphs to unlearn.
        keep: paragraphs whose predictions are held; no paragraph of `memorized` among them.
        method: how; "npo" costs other text the least (docs/unlearning.md).
        mask: weights that may move; None for all attention and MLP weights.
        training: steps, learning rate and the like; None: `Training()`, whose learning rate is searched on part of the
            targets. Methods that drop use its steps alone, and "ascent" no keep_weight.
        stop: a `Stop`, or any function of a step's values that says when to end; None: when the targets' mean EM is a
            fifth of the continuation or less; `Stop()`: after all steps.
        check_targets: refuse targets that the model does not know.
        seed: order of the batches, and whatever else a method draws.
        progress: called with (units done, units): steps, with the search of a rate or a method's preparation before.
        **options: beta, margin, alpha, radius, preferred, layer, coefficient: of single methods, see `UnlearnOptions`.

    Returns:
        The edited model and a Dataset [step] of the values before each update: `memorized_nll`, `keep_kl` (nats per
        token), `memorized_em` (tokens, teacher-forced) and `objective` (lower is better), each the mean over the
        latest value of every batch. Attributes: `ended` ("steps", "stop rule", "budget", "diverged"), `final_*`, the
        same values of the weights returned, `em_before` and `em_after` (mean over all targets, tokens), the method and
        the training's settings, and where a learning rate was searched, `rates_tried`, `rates_met` and `rate_ids` (the
        targets it was searched on).

    Raises:
        InputError: an unknown method, a setting or an option that it does not use, an empty set, a paragraph in both
            sets, a target that the model does not know (EM of a fifth or less), a mask that is empty, full or of
            another model, a model with hooks, or a checkpoint of another edit.

    Warns:
        RuntimeWarning: the objective diverged, and the best weights are returned; or nothing was removed.
    """
    training = training or Training()
    _check(model, memorized, keep, mask, method)
    objective = objective_of(method, options)
    used = (*(DESCENT if objective else ()), *(["keep_weight"] if objective and objective.holds else ()))
    check_used(method, used, training.given())
    before = check_known(model, memorized) if check_targets else score(model, memorized).em.values
    goal = Stop(target_em=float(memorized.continuation_len // 5))
    if objective is not None:
        task = _task(model, objective, memorized, keep, mask, goal, options, seed)
        edited, history = train_copy(model, task, mask=mask, training=training, stop=stop, seed=seed, progress=progress)
        history.objective.attrs["units"] = objective.units
    else:
        rule = stop if stop is not None else goal
        edited, history = _drop(model, memorized, keep, method, mask, training.steps, rule, seed, progress)
    em = before, score(edited, memorized).em.values
    said = warn_unchanged("the targets", em, history, mask, falls=True)
    remove_checkpoint(training)
    return edited, history.assign_attrs(method=method, seed=seed, **said)


def _task(
    model: HookedTransformer,
    objective: Objective,
    memorized: Paragraphs,
    keep: Paragraphs,
    mask: Mask | None,
    goal: Stop,
    options: UnlearnOptions,
    seed: int,
) -> Task:
    """What descent shall do, with what the model decides of the method's options."""
    preferred = None
    if objective.steering is not None:
        layer = steered_layer(model, options.get("layer"), mask)
        objective = replace(objective, steering=replace(objective.steering, layer=layer))
    if objective.pairs:
        given = options.get("preferred")
        given = perturbed_continuations(model, memorized, keep, seed) if given is None else given
        preferred = preferred_targets(memorized, given)
    return Task(objective, memorized, keep, "memorized", goal, preferred)


def _drop(
    model: HookedTransformer,
    memorized: Paragraphs,
    keep: Paragraphs,
    method: Method,
    mask: Mask | None,
    steps: int,
    rule: Callable[[Row], bool],
    seed: int,
    progress: ProgressLike,
) -> tuple[HookedTransformer, xr.Dataset]:
    """Unlearn by a method that drops: preparation counts as much as all steps."""
    first, then = between(progress, 0, steps, 2 * steps), between(progress, steps, 2 * steps, 2 * steps)
    schedule = DROPPING[method](model, memorized, keep, mask=mask, seed=seed, progress=first)
    edited = copy.deepcopy(model)
    with frozen(edited):
        drop = GradualDrop(model, edited, schedule, mask, memorized, keep, steps)
        history = run_loop(drop, steps=steps, stop=rule, progress=then)
    if mask is not None:
        verify_support(model, edited, mask)
    return edited, history.assign_attrs(steps=steps)


def check_known(model: HookedTransformer, memorized: Paragraphs) -> np.ndarray:
    """Refuse targets of which there is nothing to unlearn; returns the EM of all.

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
    return em


def _check(model: HookedTransformer, memorized: Paragraphs, keep: Paragraphs, mask: Mask | None, method: str) -> None:
    check_choice("method", method, Method)
    check_sets(model, memorized, keep, "memorized")
    if mask is not None:
        check_mask(model, mask)
