"""Editing: make the model continue a prefix with another text, and hold its predictions everywhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import xarray as xr

from mechmem.data.bounds import Seed
from mechmem.data.choices import check_choice
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike
from mechmem.intervene.checkpoints import remove_checkpoint
from mechmem.intervene.descent import Task
from mechmem.intervene.loop import Row, Stop
from mechmem.intervene.objectives import Objective, hold_kl, lower_nll
from mechmem.intervene.train import check_sets, train_copy, warn_unchanged
from mechmem.measure.scores import score
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public
from mechmem.weights.masked_weights import check_mask
from mechmem.weights.masks import Mask
from mechmem.weights.training import Training, old_keywords

Variant = Literal["rewrite", "perturbed"]
# At this mean NLL a token of the new text has a probability of about three in four, so greedy decoding is safe.
LEARNED_NLL = 0.3


@old_keywords
@public("refuse", renamed={"other": "keep"})
def edit(
    model: HookedTransformer,
    clean: Paragraphs,
    corrupt: Paragraphs,
    keep: Paragraphs,
    *,
    variant: Variant = "rewrite",
    mask: Mask | None = None,
    training: Training | None = None,
    stop: Callable[[Row], bool] | None = None,
    seed: Seed = 0,
    progress: ProgressLike = None,
) -> tuple[HookedTransformer, xr.Dataset]:
    """Return a copy of the model that continues clean prefixes with the corrupt continuations.

    Row i of `corrupt` belongs to row i of `clean`: it is the same paragraph, for example with one token of the prefix
    replaced and the model's continuation of that, as `worst_perturbations` gives; or with any other text
    (`with_continuation`). Descent on the masked weights minimizes

        NLL(target) + keep_weight * KL(p_0 || p on keep)

    Args:
        model: left as it is.
        clean: paragraphs whose continuation is to be another.
        corrupt: the other continuations, of the same lengths.
        keep: paragraphs whose predictions are held.
        variant: "rewrite": the target is the clean prefix with the corrupt continuation, so that the memory itself is
            another text. "perturbed": the target is the corrupt paragraph, prefix and all, as Stoehr et al. 2024 (arXiv
            2403.19851, section 5) write it: what the model produces after that prefix anyway is trained in, and the
            clean prefix is changed only as far as it is close.
        mask: weights that may move; None for all attention and MLP weights.
        training: steps, learning rate and the like; None: `Training()`, whose learning rate is searched on part of the
            targets.
        stop: a `Stop`, or any function of a step's values; None: ends when every target is reproduced and the mean NLL
            is 0.3 or less.
        seed: order of the batches.
        progress: called with (steps done, steps), the search of a rate included.

    Returns:
        The edited model, and a Dataset [step] of the values before each update: `target_nll` (nats per token),
        `target_em` (tokens of the new continuation, teacher-forced), `keep_kl`, `objective` (lower is better).
        Attributes as in `unlearn`, where `em_before` and `em_after` are tokens of the new continuation, and
        `clean_em_before`, `clean_em_after`, tokens of the old one.

    Raises:
        InputError: sets of unequal length, continuations that do not differ, an unknown variant, and as `unlearn`.

    Warns:
        RuntimeWarning: the objective diverged, and the best weights are returned; or nothing was learned.
    """
    targets = _targets(clean, corrupt, variant)
    check_sets(model, targets, keep, "corrupt")
    check_sets(model, clean, keep, "clean")
    if mask is not None:
        check_mask(model, mask)
    task = Task(Objective(lower_nll, hold_kl), targets, keep, "target", learned(targets))
    edited, history = train_copy(
        model, task, mask=mask, training=training or Training(), stop=stop, seed=seed, progress=progress
    )
    em = score(model, targets).em.values, score(edited, targets).em.values
    said = warn_unchanged("the new text", em, history, mask, falls=False)
    ends = {f"clean_em_{when}": float(score(m, clean).em.mean()) for when, m in (("before", model), ("after", edited))}
    if training is not None:
        remove_checkpoint(training)
    return edited, history.assign_attrs(variant=variant, seed=seed, **said, **ends)


def learned(targets: Paragraphs) -> Stop:
    """The rule that ends training: all is reproduced, and not by a narrow margin."""
    return Stop(target_em=float(targets.continuation_len), target_nll=LEARNED_NLL)


def with_continuation(paragraphs: Paragraphs, continuation: torch.Tensor) -> Paragraphs:
    """The same prefixes with another continuation.

    Args:
        paragraphs: whose prefixes are used.
        continuation: ids [paragraph, pos] or [pos], the same for all, as long as the paragraphs' own.

    Raises:
        InputError: another shape.
    """
    need = (len(paragraphs), paragraphs.continuation_len)
    if continuation.shape not in (need, need[1:]):
        raise InputError(
            f"got a continuation of shape {list(continuation.shape)}; need {list(need)} or {[need[1]]}: cut or "
            "extend the new text to the paragraphs' length"
        )
    new = continuation.to(paragraphs.tokens).expand(need)
    # Scores and texts of the old continuation are not those of the new one.
    known = [name for name in ("source", "cluster") if paragraphs.has(name)]
    table = paragraphs.table.select_columns(known) if paragraphs.table is not None and known else None
    made = Paragraphs(torch.cat([paragraphs.prefix, new], 1), paragraphs.prefix_len, table, paragraphs.tokenizer)
    return made.with_columns(id=paragraphs.ids)


def _targets(clean: Paragraphs, corrupt: Paragraphs, variant: str) -> Paragraphs:
    check_choice("variant", variant, Variant)
    if clean.tokens.shape != corrupt.tokens.shape or clean.prefix_len != corrupt.prefix_len:
        raise InputError(
            f"got clean {list(clean.tokens.shape)} with a prefix of {clean.prefix_len} and corrupt "
            f"{list(corrupt.tokens.shape)} with {corrupt.prefix_len}; need one corrupt row for each clean one, of "
            "the same lengths"
        )
    same = (clean.continuation == corrupt.continuation).all(1)
    if bool(same.any()):
        raise InputError(
            f"{int(same.sum())} of {len(same)} corrupt continuations equal the clean ones; need another text for "
            "each: leave these pairs out"
        )
    return corrupt if variant == "perturbed" else with_continuation(clean, corrupt.continuation)
