"""How many steps of training bring a text back into an edited model, and into one that never read it."""

from __future__ import annotations

import numpy as np
import xarray as xr

from mechmem.data.bounds import Count, Seed, Share
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, as_callback, between
from mechmem.intervene.attacks.relearn import TRAINING, check_relearning, check_settings, first_step, train_and_watch
from mechmem.intervene.oracle_check import check_recipe
from mechmem.model.forward import check_fit
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public
from mechmem.weights.training import Training


@public("refuse")
def relearning_steps(
    edited: HookedTransformer,
    oracle: HookedTransformer,
    paragraphs: Paragraphs,
    other_memorized: Paragraphs | None = None,
    *,
    training: Training | None = None,
    every: Count = 1,
    seed: Seed = 0,
    target_share: Share = 0.5,
    progress: ProgressLike = None,
) -> xr.Dataset:
    """Train the edited model and the oracle alike, and compare the steps that each needs for the targets.

    A model that never read a text has to learn it. One that was made to hide it needs fewer steps: the difference is
    what was still inside. Trained on the targets themselves both get there; trained on other memorized text the oracle
    has nothing that could come back (`relearning_attack`).

    Args:
        edited: the edited model; left as it is.
        oracle: a model of the same recipe that never read the paragraphs; left as it is.
        paragraphs: the targets.
        other_memorized: what is trained on, of other clusters; None: the targets themselves.
        training: steps (30), learning rate (1e-4) and batch size (16), in brackets what is taken where nothing is set.
        every: steps between two measurements.
        seed: order of the batches, the same for both.
        target_share: of the continuation whose mean EM counts as relearned.
        progress: called with (steps done, steps of both models).

    Returns:
        Dataset [model, step], model "after" (the edit) or "oracle": em[model, step, paragraph] (tokens),
        nll[model, step, paragraph] (nats per token), other_nll[model, step] (of what is trained on) and
        steps_until[model], the first measured step whose mean EM is target_share of the continuation, NaN where none
        is. Fewer steps than the oracle's: the text was still inside.

    Raises:
        InputError: an oracle of another shape or tokenizer or that is the edited model, targets among
            other_memorized, or paragraphs that do not fit.
        NotFiniteError: the loss is not finite; the learning rate is too high.
    """
    if oracle is edited:
        raise InputError("got the edited model as oracle; need another model, trained without the targets")
    check_recipe("oracle", oracle, edited, "trained without the targets")
    check_fit(edited, paragraphs)
    if other_memorized is not None:
        check_relearning(edited, paragraphs, other_memorized)
    training = TRAINING if training is None else training.with_rate(1e-4)
    check_settings(training)
    report, steps = as_callback(progress, "relearning"), training.steps
    trained = paragraphs if other_memorized is None else other_memorized
    curves = [
        train_and_watch(
            model,
            paragraphs,
            trained,
            training,
            every,
            seed,
            between(report, place * steps, (place + 1) * steps, 2 * steps),
        )
        for place, model in enumerate((edited, oracle))
    ]
    goal = target_share * paragraphs.continuation_len
    until = [first_step(curve.em, goal) for curve in curves]
    result = xr.concat(curves, xr.DataArray(["after", "oracle"], dims="model", name="model"))
    about = {"units": "steps", "higher": "less was still inside"}
    found = np.array([np.nan if step is None else step for step in until])
    return result.assign(steps_until=("model", found, about)).assign_attrs(
        learning_rate=training.learning_rate, seed=seed, target_em=goal, target_em_units="tokens"
    )
