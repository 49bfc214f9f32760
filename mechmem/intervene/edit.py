"""Editing: make the model continue a prefix with another text, and hold its predictions everywhere else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import torch
import xarray as xr

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import Progress
from mechmem.intervene.loop import Row
from mechmem.intervene.objectives import Objective, hold_kl, lower_nll
from mechmem.intervene.unlearn import check_sets, descend
from mechmem.measure.scores import score
from mechmem.model.load import HookedTransformer
from mechmem.weights.masked_weights import MakeOptimizer, check_mask
from mechmem.weights.masks import Mask

Variant = Literal["rewrite", "perturbed"]
# A token of the new text is said greedily from about here on: e^-0.3 is three chances in four.
LEARNED_NLL = 0.3


def edit(
    model: HookedTransformer,
    clean: Paragraphs,
    corrupt: Paragraphs,
    keep: Paragraphs,
    *,
    mask: Mask | None = None,
    variant: Variant = "rewrite",
    steps: int = 30,
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
    """Return a copy of the model that continues clean prefixes with the corrupt continuations.

    Row i of `corrupt` belongs to row i of `clean`: it is the same paragraph, for example with one token of the prefix
    replaced and the model's continuation of that, as `worst_perturbations` gives; or with any text the user wants
    (`with_continuation`). AdamW on the masked weights minimizes

        NLL(target) + keep_weight * KL(p_0 || p on keep)

    Args:
        model: left as it is.
        clean: paragraphs whose continuation is to be another.
        corrupt: the other continuations, of the same lengths.
        keep: paragraphs whose predictions are held.
        mask: weights that may move; None for all attention and MLP weights.
        variant: "rewrite": the target is the clean prefix with the corrupt continuation, so that the memory itself says
            another thing. "perturbed": the target is the corrupt paragraph, prefix and all, as Stoehr et al. 2024
            (arXiv 2403.19851, section 5) write it: the text that the model says after that prefix anyway is trained
            in, and the clean prefix is changed only as far as it is close.
        steps: at most this many updates.
        seed: order of the batches.
        learning_rate: of AdamW.
        weight_decay: of AdamW, decoupled.
        keep_weight: of the KL term.
        batch_size: paragraphs of each set in a step.
        optimizer: as in `unlearn`.
        max_norm: as in `unlearn`.
        stop: any function of a step's values; None: ends when every target is said whole and its NLL is 0.3.
        checkpoint: as in `unlearn`.
        resume: as in `unlearn`.
        progress: called with (steps done, steps).

    Returns:
        The edited model, and a Dataset [step] of the values before each update: `target_nll` (nats a token),
        `target_em` (tokens of the new continuation, teacher-forced), `keep_kl`, `objective` (lower is better).
        Attributes as in `unlearn`, and `clean_em_before`, `clean_em_after`: tokens of the old continuation.

    Raises:
        InputError: sets of unequal length, continuations that do not differ, an unknown variant, and as `unlearn`.

    Warns:
        RuntimeWarning: the objective diverged; the best weights are returned.
    """
    targets = _targets(clean, corrupt, variant)
    check_sets(model, targets, keep, "corrupt")
    check_sets(model, clean, keep, "clean")
    if mask is not None:
        check_mask(model, mask)
    edited, history = descend(
        model,
        Objective(lower_nll, hold_kl),
        targets,
        keep,
        mask=mask,
        steps=steps,
        seed=seed,
        keep_weight=keep_weight,
        batch_size=batch_size,
        stop=stop or learned(targets),
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
    ends = {f"clean_em_{when}": float(score(m, clean).em.mean()) for when, m in (("before", model), ("after", edited))}
    return edited, history.assign_attrs(variant=variant, **ends)


def learned(targets: Paragraphs) -> Callable[[Row], bool]:
    """The rule that ends training: all is said, and no token of it just so."""
    return lambda row: row["target_em"] == targets.continuation_len and row["target_nll"] <= LEARNED_NLL


def with_continuation(paras: Paragraphs, continuation: torch.Tensor) -> Paragraphs:
    """The same prefixes, continued otherwise.

    Args:
        paras: whose prefixes are meant.
        continuation: ids [paragraph, pos] or [pos], the same for all, as long as the paragraphs' own.

    Raises:
        InputError: another shape.
    """
    need = (len(paras), paras.continuation_len)
    if continuation.shape not in (need, need[1:]):
        raise InputError(
            f"the continuation has shape {list(continuation.shape)}; need {list(need)} or {[need[1]]}: cut or "
            "extend the new text to the paragraphs' length"
        )
    new = continuation.to(paras.tokens).expand(need)
    # Scores and texts of the old continuation are not those of the new one.
    known = [] if paras.table is None else [n for n in ("id", "source", "cluster") if n in paras.table.column_names]
    table = paras.table.select_columns(known) if paras.table is not None and known else None
    return Paragraphs(torch.cat([paras.prefix, new], 1), paras.prefix_len, table)


def _targets(clean: Paragraphs, corrupt: Paragraphs, variant: str) -> Paragraphs:
    if variant not in get_args(Variant):
        raise InputError(f"variant is {variant!r}; need one of {', '.join(get_args(Variant))}")
    if clean.tokens.shape != corrupt.tokens.shape or clean.prefix_len != corrupt.prefix_len:
        raise InputError(
            f"clean is {list(clean.tokens.shape)} with a prefix of {clean.prefix_len} and corrupt "
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
