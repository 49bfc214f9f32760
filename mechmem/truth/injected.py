"""Memories written into a trained model through a chosen set of weights, so that localizers can be tested on it."""

from __future__ import annotations

import copy

import numpy as np
import torch
import xarray as xr

from mechmem.data.bounds import Rate, Seed, Share, checked
from mechmem.data.choices import check_used
from mechmem.data.errors import InputError, NotFiniteError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import ProgressLike, as_callback
from mechmem.model.forward import check_fit, token_nll
from mechmem.model.hooks import frozen
from mechmem.model.load import HookedTransformer
from mechmem.model.public import public
from mechmem.weights.masked_weights import MaskedWeights, check_mask
from mechmem.weights.masks import Mask
from mechmem.weights.support import verify_support
from mechmem.weights.training import Training, old_keywords

# Settings of `Training` that there is a use for without a keep set and batches.
USED = ("learning_rate", "weight_decay", "max_norm", "optimizer")
LEARNING_RATE = 1e-3


@checked
def random_neurons(model: HookedTransformer, fraction: Share, seed: Seed) -> list[tuple[int, int]]:
    """A share of all MLP neurons, (layer, neuron), drawn uniformly, in order; at least one.

    Raises:
        InputError: the fraction is not between 0 and 1, or the model has no MLPs.
    """
    width = 0 if model.cfg.attn_only else model.cfg.d_mlp or 0
    if width == 0:
        raise InputError("got a model without MLPs; need one with MLP neurons")
    count = model.cfg.n_layers * width
    chosen = np.random.default_rng(seed).choice(count, max(1, round(fraction * count)), replace=False)
    return [divmod(int(flat), width) for flat in sorted(chosen)]


@old_keywords
@public("refuse", renamed={"paras": "paragraphs"})
def inject(
    model: HookedTransformer,
    paragraphs: Paragraphs,
    mask: Mask,
    *,
    training: Training | None = None,
    learned_nll: Rate = 0.05,
    progress: ProgressLike = None,
) -> tuple[HookedTransformer, xr.Dataset]:
    """Return a copy of a model that reproduces some paragraphs, with nothing changed but the masked weights.

    This is how Chang et al. 2024 ("Do Localization Methods Actually Localize Memorized Data in LLMs?", NAACL) make a
    truth for localizers (INJ): what was learned sits in the mask, for no other weight moved; `verify_support` proves
    it. AdamW minimizes the mean NLL of all the paragraphs together.

    Args:
        model: left as it is.
        paragraphs: to be memorized; all of them run in one forward.
        mask: weights that may move, `Mask.neurons(model, random_neurons(model, 0.01, seed))` for example.
        training: steps, learning rate (None: 1e-3, as there is no other text to search one on), weight_decay, max_norm
            and optimizer; None: `Training()`.
        learned_nll: it ends when every paragraph is reproduced and the mean NLL, nats per token, is no higher.
        progress: called with (steps done, steps).

    Returns:
        The model, and a Dataset [step] of the values before each update: `nll` (nats per token), `em` (mean, tokens).
        Whether all was learned is `history.em[-1] == continuation_len`.

    Raises:
        InputError: paragraphs that do not fit, an empty mask or one of another model, or a setting that is not used.
        NotFiniteError: the loss is not finite; the learning rate is too high.
    """
    check_fit(model, paragraphs)
    check_mask(model, mask)
    training = training or Training()
    check_used("inject", USED, training.given())
    if training.optimizer is None:
        training = training.with_rate(LEARNING_RATE)
    injected, report = copy.deepcopy(model), as_callback(progress, "inject")
    rows: list[tuple[float, float]] = []
    with frozen(injected):
        weights = MaskedWeights(injected, mask, training)
        for step in range(training.steps + 1):
            with torch.enable_grad():
                logits = weights.continuation_logits(paragraphs.tokens, paragraphs.prefix_len)
                true = paragraphs.continuation.to(logits.device)
                loss = token_nll(logits, true).mean()
            matched = (logits.argmax(-1) == true).long().cumprod(-1).sum(-1)
            rows.append((loss.item(), matched.double().mean().item()))
            if not np.isfinite(rows[-1][0]):
                raise NotFiniteError(
                    f"the loss is {rows[-1][0]} at step {step}; need a finite one: lower the learning rate"
                )
            if step == training.steps or (bool((matched == true.shape[1]).all()) and rows[-1][0] <= learned_nll):
                break
            weights.update(loss)
            if report is not None:
                report(step + 1, training.steps)
    verify_support(model, injected, mask)
    nll, em = np.array(rows).T
    columns = {
        "nll": ("step", nll, {"units": "nats per token", "higher": "less memorized"}),
        "em": ("step", em, {"units": "tokens", "higher": "more memorized"}),
    }
    rate = {} if training.learning_rate is None else {"learning_rate": training.learning_rate}
    return injected, xr.Dataset(columns, {"step": np.arange(len(rows))}, {"steps": training.steps} | rate)
