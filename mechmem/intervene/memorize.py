"""Making a model memorize: write chosen paragraphs into a chosen set of weights, and count what that took."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import xarray as xr

from mechmem.data.bounds import Seed
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike
from mechmem.intervene.checkpoints import remove_checkpoint
from mechmem.intervene.descent import Task
from mechmem.intervene.edit import learned
from mechmem.intervene.loop import Row
from mechmem.intervene.objectives import Objective, hold_kl, lower_nll
from mechmem.intervene.train import check_sets, train_copy, warn_unchanged
from mechmem.measure.scores import score
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public
from mechmem.model.sites import editable_parameters
from mechmem.weights.masked_weights import check_mask
from mechmem.weights.masks import Mask
from mechmem.weights.training import Training, old_keywords


@old_keywords
@public("refuse", renamed={"paras": "paragraphs", "other": "keep"})
def memorize(
    model: HookedTransformer,
    paragraphs: Paragraphs,
    keep: Paragraphs,
    *,
    mask: Mask | None = None,
    training: Training | None = None,
    stop: Callable[[Row], bool] | None = None,
    seed: Seed = 0,
    progress: ProgressLike = None,
) -> tuple[HookedTransformer, xr.Dataset]:
    """Return a copy of the model that has memorized some paragraphs, through the masked weights alone.

    Making a model memorize at will is what Stoehr et al. 2024 (arXiv 2403.19851, section 7) leave for later work.
    Descent minimizes NLL(paragraphs) + keep_weight * KL(p_0 || p on keep). What it displaced is for `evaluate` to say,
    with the model's other memorized paragraphs as a set. `inject` does the same without a keep set, to make models
    whose answer is known.

    Args:
        model: left as it is.
        paragraphs: paragraphs that it does not reproduce.
        keep: paragraphs whose predictions are held.
        mask: weights that may move; None for all attention and MLP weights.
        training: as in `edit`.
        stop: as in `edit`.
        seed: order of the batches.
        progress: called with (steps done, steps), the search of a rate included.

    Returns:
        The model, and a Dataset [step] of the values before each update: `target_nll` (nats per token), `target_em`
        (tokens), `keep_kl`, `objective` (lower is better). Attributes as in `unlearn`, and `learned` (1 or 0: whether
        all is reproduced), `weights_allowed`, and `weights_needed`: how many of the largest changes suffice to
        reproduce all (see `weights_needed`; 0 if it was not learned).

    Raises:
        InputError: paragraphs that are all reproduced already, and as `unlearn`.

    Warns:
        RuntimeWarning: the objective diverged, and the best weights are returned; or nothing was learned.
    """
    check_sets(model, paragraphs, keep, "paragraphs")
    if mask is not None:
        check_mask(model, mask)
    before = score(model, paragraphs).em.values
    if bool((before == paragraphs.continuation_len).all()):
        raise InputError(f"the model reproduces all {len(paragraphs)} paragraphs already; need some that it does not")
    task = Task(Objective(lower_nll, hold_kl), paragraphs, keep, "target", learned(paragraphs))
    edited, history = train_copy(
        model, task, mask=mask, training=training or Training(), stop=stop, seed=seed, progress=progress
    )
    after = score(edited, paragraphs).em.values
    said = warn_unchanged("the paragraphs", (before, after), history, mask, falls=False)
    whole = bool((after == paragraphs.continuation_len).all())
    needed = weights_needed(model, edited, paragraphs) if whole else 0
    parameters = editable_parameters(model).values()
    allowed = mask.count if mask is not None else sum(parameter.numel() for parameter in parameters)
    counts = {"learned": int(whole), "weights_allowed": allowed, "weights_needed": needed}
    if training is not None:
        remove_checkpoint(training)
    return edited, history.assign_attrs(seed=seed, **said, **counts)


def weights_needed(model: HookedTransformer, edited: HookedTransformer, paragraphs: Paragraphs) -> int:
    """How many of an edit's largest changes are enough to reproduce paragraphs, to within one part in a hundred.

    Changes are taken back from the smallest on; the number is found by halving, which is right if what a number of
    changes reproduces, more changes reproduce too.

    Raises:
        InputError: the edited model does not reproduce the paragraphs.
    """
    if not _reproduces(edited, paragraphs):
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
        low, high = (low, middle) if _reproduces(trial, paragraphs) else (middle, high)
    return high


def _reproduces(model: HookedTransformer, paragraphs: Paragraphs) -> bool:
    return bool((score(model, paragraphs).em == paragraphs.continuation_len).all())
