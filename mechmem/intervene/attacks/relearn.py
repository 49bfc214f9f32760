"""Relearning: does training on other memorized text bring back what an edit took away?"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor

from mechmem.data.bounds import Count, Seed, Share
from mechmem.data.choices import check_used
from mechmem.data.errors import InputError, NotFiniteError
from mechmem.data.paragraph_ids import aligned
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, as_callback, batches
from mechmem.measure.scores import score_logits
from mechmem.model.forward import check_fit, token_nll
from mechmem.model.hooks import frozen
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public
from mechmem.weights.masked_weights import MaskedWeights
from mechmem.weights.training import Training, old_keywords

MEASURED_AT_ONCE = 16
BATCH = 16


# Settings where none are given.
TRAINING = Training(steps=30, learning_rate=1e-4)


@old_keywords
@public("refuse", renamed={"paras": "paragraphs"})
def relearning_attack(
    model: HookedTransformer,
    paragraphs: Paragraphs,
    other_memorized: Paragraphs,
    *,
    original_em: xr.DataArray | None = None,
    training: Training | None = None,
    every: Count = 10,
    seed: Seed = 0,
    target_share: Share = 0.5,
    progress: ProgressLike = None,
) -> xr.Dataset:
    """Fine-tune a copy on other text that the original model knew by heart, and watch the targets.

    Text that an edit only hid comes back although no word of it is trained on (Huang et al. 2024, arXiv 2407.17817):
    undoing the edit for some memories undoes it for all. Text that is gone would have to be learned anew, and these
    paragraphs do not teach it. AdamW without weight decay minimizes the mean NLL of the continuations over all
    attention and MLP weights. `other_nll` says whether training did anything: an attack that did not train has shown
    nothing.

    Args:
        model: the edited model; left as it is.
        paragraphs: what it should not know.
        other_memorized: memorized paragraphs that share neither a cluster nor a continuation with `paragraphs`.
        original_em: EM on the model before the edit, tokens, [paragraph], as `score(original, paragraphs).em` gives;
            None: the whole length.
        training: steps (30), learning rate (1e-4) and batch size (16), in brackets what is taken where nothing is set.
        every: steps between two measurements; the start and the end are always measured.
        seed: order of the batches.
        target_share: of the original EM that counts as relearned, above 0 and at most 1.
        progress: called with (steps done, steps).

    Returns:
        Dataset with the coordinate `step` (updates before the measurement): em[step, paragraph] (tokens, higher: more
        has come back), nll[step, paragraph] (nats per token), other_nll[step] (mean NLL of the first 16 paragraphs that
        are trained on, or all of fewer). The
        attribute steps_until is the first measured step whose mean EM is at least target_share times the mean of
        original_em, and is missing if there is none; fewer steps mean that the text was less far away.

    Raises:
        InputError: a shared cluster, paragraph or continuation, a setting out of range, or paragraphs that do not fit.
        NotFiniteError: the loss is not finite; the learning rate is too high.
    """
    check_relearning(model, paragraphs, other_memorized)
    training = TRAINING if training is None else training.with_rate(1e-4)
    check_settings(training)
    goal = target_share * _original(paragraphs, original_em)
    result = train_and_watch(model, paragraphs, other_memorized, training, every, seed, progress)
    reached = first_step(result.em, goal)
    settings = {"learning_rate": training.learning_rate, "batch_size": training.batch_size or BATCH}
    settings |= {"seed": seed, "target_share": target_share}
    # An attribute of a file cannot be None, so it is left out where the text did not come back.
    until = {} if reached is None else {"steps_until": reached}
    return result.assign_attrs(settings | until | {"target_em": goal, "target_em_units": "tokens"})


def train_and_watch(
    model: HookedTransformer,
    watched: Paragraphs,
    trained: Paragraphs,
    training: Training,
    every: int,
    seed: int,
    progress: ProgressLike = None,
    *,
    until: float | None = None,
) -> xr.Dataset:
    """The curves that `relearning_attack` returns, without its checks: the sets may be one.

    Args:
        model: left as it is.
        watched: paragraphs that are measured.
        trained: paragraphs that are trained on.
        training: steps, learning rate and batch size.
        every: steps between two measurements.
        seed: order of the batches.
        progress: called with (steps done, steps).
        until: mean EM after whose first measurement training ends; None: all steps.
    """
    relearned, report = copy.deepcopy(model), as_callback(progress, "relearning")
    rows: dict[int, tuple[np.ndarray, np.ndarray, float]] = {}
    sample, steps = trained[:MEASURED_AT_ONCE], training.steps
    batch = _batches(trained, training.batch_size or BATCH, seed)
    with frozen(relearned):
        weights = MaskedWeights(relearned, None, Training(learning_rate=training.learning_rate))
        for step in range(steps + 1):
            if step % every == 0 or step == steps:
                em, nll = _measure(weights, watched)
                rows[step] = em, nll, float(_measure(weights, sample)[1].mean())
            if step == steps or (until is not None and step in rows and rows[step][0].mean() >= until):
                break
            weights.update(_loss(weights, next(batch), step))
            if report is not None:
                report(step + 1, steps)
    return _dataset(rows).assign_coords(paragraph=watched.ids)


def first_step(em: xr.DataArray, goal: float) -> int | None:
    """The first measured step whose mean EM over paragraphs is at least the goal, in tokens; None: no step."""
    reached = em.step.values[em.mean("paragraph").values >= goal]
    return int(reached[0]) if len(reached) else None


def check_relearning(model: HookedTransformer, paragraphs: Paragraphs, other_memorized: Paragraphs) -> None:
    """Refuse to train on anything that is, or is nearly, what should come back by itself.

    Clusters are compared where both sets have a column `cluster`; without it near-duplicates go unnoticed.

    Raises:
        InputError: a shared cluster, paragraph or continuation, or paragraphs that do not fit the model.
    """
    check_fit(model, paragraphs)
    check_fit(model, other_memorized)
    continuations = [set(map(tuple, part.continuation.tolist())) for part in (paragraphs, other_memorized)]
    shared = {"continuations": continuations[0] & continuations[1]}
    if all(part.has("cluster") for part in (paragraphs, other_memorized)):
        shared["clusters"] = set(paragraphs.column("cluster").tolist()) & set(
            other_memorized.column("cluster").tolist()
        )
    for name, found in shared.items():
        if found:
            raise InputError(
                f"{len(found)} {name} stand in both the targets and other_memorized; training on them would teach the "
                "targets instead of bringing them back: take other_memorized from other clusters (split_by_cluster)"
            )


def check_settings(training: Training) -> None:
    """Refuse settings that relearning does not use.

    Raises:
        InputError: one was given.
    """
    given = {
        name: getattr(training, name) for name in ("weight_decay", "keep_weight", "max_norm", "null_space", "optimizer")
    }
    check_used("relearning", (), given | {"checkpoint": training.checkpoint, "resume": training.resume or None})


def _original(paragraphs: Paragraphs, original_em: xr.DataArray | None) -> float:
    if original_em is None:
        return float(paragraphs.continuation_len)
    mean = float(aligned(original_em, paragraphs).mean())
    if not mean > 0:
        raise InputError(
            f"got an original_em of mean {mean:g}; need the EM of the targets before the edit, above 0 on average: "
            "what was never known cannot come back"
        )
    return mean


def _loss(weights: MaskedWeights, batch: Paragraphs, step: int) -> Float[Tensor, ""]:
    with torch.enable_grad():
        logits = weights.continuation_logits(batch.tokens, batch.prefix_len)
        loss = token_nll(logits, batch.continuation).mean()
    if not bool(loss.isfinite()):
        raise NotFiniteError(f"the loss is {loss.item()} at step {step}; need a finite one: lower the learning rate")
    return loss


@torch.no_grad()
def _measure(
    weights: MaskedWeights, paragraphs: Paragraphs
) -> tuple[Int[np.ndarray, " paragraph"], Float[np.ndarray, " paragraph"]]:
    """EM and NLL of the weights as they are, by one forward.

    Not by `score`, which measures its tolerance anew for every model: here that would take longer than training.
    """
    parts = []
    for rows in batches(len(paragraphs), MEASURED_AT_ONCE):
        logits = weights.continuation_logits(paragraphs.tokens[rows], paragraphs.prefix_len)
        found = score_logits(logits, paragraphs.continuation[rows])
        parts.append((found["em"].cpu().numpy(), found["nll"].cpu().numpy()))
    em, nll = (np.concatenate(column) for column in zip(*parts, strict=True))
    return em, nll


def _batches(paragraphs: Paragraphs, size: int, seed: int) -> Iterator[Paragraphs]:
    """Epoch after epoch, each in another order."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(len(paragraphs))
        for start in range(0, len(order), size):
            yield paragraphs.select(order[start : start + size])


def _dataset(rows: dict[int, tuple[np.ndarray, np.ndarray, float]]) -> xr.Dataset:
    em, nll, other = (np.array(column) for column in zip(*rows.values(), strict=True))
    both, nats = ("step", "paragraph"), "nats per token"
    variables = {
        "em": (both, em, {"units": "tokens", "higher": "more has come back"}),
        "nll": (both, nll, {"units": nats, "higher": "less has come back"}),
        "other_nll": ("step", other, {"units": nats, "higher": "less is known of what is trained on"}),
    }
    return xr.Dataset(variables, {"step": list(rows), "paragraph": np.arange(em.shape[1])})
