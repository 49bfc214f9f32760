"""A trained copy: what unlearning, editing and memorizing share."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, as_callback, between
from mechmem.intervene.checkpoints import EditLog, edit_key
from mechmem.intervene.descent import Descent, Reference, Task
from mechmem.intervene.learning_rates import SEARCHES, find_rate, search_steps
from mechmem.intervene.loop import Row, Stop, run_loop
from mechmem.model.forward import check_fit
from mechmem.model.hooks import frozen
from mechmem.model.load import HookedTransformer
from mechmem.model.sites import editable_parameters
from mechmem.weights.masked_weights import MaskedWeights
from mechmem.weights.masks import Mask
from mechmem.weights.null_space import NullSpace
from mechmem.weights.support import verify_support
from mechmem.weights.training import Training

Rule = Callable[[Row], bool]


def train_copy(
    model: HookedTransformer,
    task: Task,
    *,
    mask: Mask | None,
    training: Training,
    stop: Rule | None,
    seed: int,
    progress: ProgressLike = None,
) -> tuple[HookedTransformer, xr.Dataset]:
    """Move a copy's masked weights down an objective.

    1. Without a learning rate, search one on part of the targets (`mechmem.intervene.learning_rates`).
    2. Train until the rule is met, or for all steps.
    3. Prove that no weight outside the mask moved.

    Args:
        model: left as it is.
        task: what is minimized, for which paragraphs.
        mask: weights that may move; None for all attention and MLP weights.
        training: steps, learning rate and the like.
        stop: a `Stop`, or any function of a step's values; None: the task's own rule.
        seed: order of the batches.
        progress: called with (steps done, steps), the search included.

    Returns:
        The edited model and its history, as `unlearn`.
    """
    rule = stop if stop is not None else task.done
    null_space = None
    if training.null_space is not None:
        names = list(editable_parameters(model)) if mask is None else list(mask.indices)
        null_space = NullSpace(model, task.keep, names, training.null_space)
    searched: dict[str, Any] = {}
    search = SEARCHES * search_steps(training)
    whole = search + training.steps
    if training.learning_rate is None and training.optimizer is None:
        goal = stop if isinstance(stop, Stop) and stop.targets else task.done
        training, searched = find_rate(
            task,
            mask,
            training,
            lambda trial, settings, report: _train(model, trial, mask, settings, goal, seed, null_space, report)[1],
            between(progress, 0, search, whole),
        )
        progress = between(progress, search, whole, whole)
    edited, history = _train(model, task, mask, training, rule, seed, null_space, progress)
    if mask is not None:
        verify_support(model, edited, mask)
    used = {name: value for name, value in training.settings().items() if value is not None}
    return edited, history.assign_attrs(used | searched)


def _train(
    model: HookedTransformer,
    task: Task,
    mask: Mask | None,
    training: Training,
    rule: Rule,
    seed: int,
    null_space: NullSpace | None,
    progress: ProgressLike,
) -> tuple[HookedTransformer, xr.Dataset]:
    edited = copy.deepcopy(model)
    with frozen(edited):
        weights = MaskedWeights(edited, mask, training, null_space)
        descent = Descent(weights, Reference(model), task, training, seed)
        log = None
        if training.checkpoint is not None:
            decides = training.settings() | {"seed": seed, "stop": rule, "optimizer": weights.optimizer_settings()}
            key = edit_key(model, mask, task, decides)
            log = EditLog(training.checkpoint, weights, descent, key=key, resume=training.resume)
        history = run_loop(descent, steps=training.steps, stop=rule, progress=as_callback(progress, "edit"), log=log)
    return edited, history


def check_sets(model: HookedTransformer, targets: Paragraphs, keep: Paragraphs, name: str) -> None:
    """Refuse sets on which an edit cannot be evaluated.

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
            f"{len(shared)} paragraphs are both in {name} and in keep; what is to change cannot be held: "
            "remove them from keep"
        )


def warn_unchanged(
    what: str, em: tuple[np.ndarray, np.ndarray], history: xr.Dataset, mask: Mask | None, *, falls: bool
) -> dict[str, float]:
    """Warn of an edit that did nothing; returns the mean EM before and after, for the history.

    Args:
        what: whose EM it is.
        em: of each target before and after, tokens.
        history: of the edit.
        mask: its weights.
        falls: whether EM was to fall; if not, it was to rise.

    Warns:
        RuntimeWarning: the mean EM did not move by a token in the direction that was meant.
    """
    before, after = (float(np.mean(values)) for values in em)
    change = before - after if falls else after - before
    possible = before >= 1 or not falls
    # What diverged was warned of already, with what to change.
    if change < 1 and possible and history.attrs["ended"] != "diverged":
        rate = history.attrs.get("learning_rate")
        shown = "" if rate is None else f" a larger learning rate (it was {rate:g}),"
        weights = "" if mask is None else f", or a mask of more weights (it has {mask.count:,})"
        warnings.warn(
            f"the edit {'removed' if falls else 'taught'} nothing: the mean EM of {what} is {before:.1f} before and "
            f"{after:.1f} after {history.sizes['step']} steps (ended by: {history.attrs['ended']}); try{shown} more "
            f"steps{weights}",
            RuntimeWarning,
            stacklevel=5,
        )
    return {"em_before": before, "em_after": after}
