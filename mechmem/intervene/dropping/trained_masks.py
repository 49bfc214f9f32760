"""Masks that are trained to drop what memorized paragraphs need and the keep set does not."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import Progress
from mechmem.intervene.dropping.gradual import Schedule, dropped_rows
from mechmem.localize.neuron_gates import HIGH, LOW, TEMPERATURE, chance_open, gated_nll, open_gates
from mechmem.model.forward import token_nll
from mechmem.model.hooks import frozen
from mechmem.model.lean.model import fast_float32
from mechmem.model.lean.trainable import TrainableModel
from mechmem.model.load import HookedTransformer
from mechmem.model.sites import editable_parameters
from mechmem.weights.masks import Mask

# Both methods: number of updates; NLL of memorized text beyond which raising it gains nothing, nats per token.
STEPS, CAP = 40, 3.0
# BalancedSubnet: share of the weights that is dropped while training and at share 1; rate of the scores, which
# begin as magnitudes over their matrix' root mean square.
SHARE, SCORE_RATE = 0.05, 0.05
# Hard Concrete: share of the neurons that is closed at share 1; rate of the log odds, which begin at 2.
NEURONS, ODDS_RATE, ODDS = 0.1, 0.1, 2.0
BATCH = 16


def balanced_subnet(
    model: HookedTransformer,
    memorized: Paragraphs,
    keep: Paragraphs,
    *,
    mask: Mask | None,
    seed: int,
    progress: Progress | None = None,
) -> Schedule:
    """Drop the weights of lowest score, scores trained as in BalancedSubnet (Sakarvadia et al. 2025, arXiv 2410.02159).

    Each weight has a score, and those of the lowest scores are zero (edge-popup, Ramanujan et al. 2020, arXiv
    1911.13299: the choice is taken for the identity in the backward pass, so a score's gradient is that of its weight
    times the weight). Scores are trained to make memorized paragraphs unlikely and the keep set likely, both in the
    same step. Ours: scores begin at magnitudes, and the memorized NLL counts up to a cap.
    """
    trial = copy.deepcopy(model)
    original = {name: parameter.detach() for name, parameter in editable_parameters(model).items()}
    allowed = _allowed(original, mask)
    scores = {
        name: (weight.abs() / weight.square().mean().sqrt()).masked_fill(~allowed[name], torch.inf)
        for name, weight in original.items()
    }
    count = round(SHARE * sum(int(each.sum()) for each in allowed.values()))
    batches = _batches(memorized, seed), _batches(keep, seed + 1)
    with frozen(trial), torch.enable_grad():
        parameters = editable_parameters(trial)
        forward = TrainableModel(trial, list(parameters), None)
        optimizer = torch.optim.Adam(list(scores.values()), lr=SCORE_RATE)
        for step in range(STEPS):
            with torch.no_grad():
                threshold = _smallest(scores, count)
                for name, parameter in parameters.items():
                    parameter.copy_(original[name] * (scores[name] > threshold))
            loss = _nll(forward, next(batches[1])) - _nll(forward, next(batches[0])).clamp(max=CAP)
            gradients = torch.autograd.grad(loss, list(parameters.values()))
            for (name, score), gradient in zip(scores.items(), gradients, strict=True):
                score.grad = (gradient * original[name]).masked_fill(~allowed[name], 0)
            optimizer.step()
            if progress is not None:
                progress(step + 1, STEPS)

    def schedule(share: float) -> dict[str, Tensor]:
        threshold = _smallest(scores, max(1, round(share * count)))
        return {name: weight * (scores[name] > threshold) for name, weight in original.items()}

    return schedule


def hard_concrete(
    model: HookedTransformer,
    memorized: Paragraphs,
    keep: Paragraphs,
    *,
    mask: Mask | None,  # noqa: ARG001 - the mask is applied to what a schedule gives
    seed: int,
    progress: Progress | None = None,
) -> Schedule:
    """Close the neurons whose trained gates are open least (Hard Concrete, Louizos et al. 2018, arXiv 1712.01312).

    Gates are sampled at each step; the log odds that they are open are trained to make memorized paragraphs unlikely
    and the keep set likely. Gates sit on MLP neurons: noise on every single weight at once leaves no model to train.
    """
    generator = torch.Generator().manual_seed(seed)
    odds = (ODDS * open_gates(model)).requires_grad_()
    optimizer = torch.optim.Adam([odds], lr=ODDS_RATE)
    batches = _batches(memorized, seed), _batches(keep, seed + 1)
    with frozen(model), fast_float32(model.W_E.device), torch.enable_grad():
        for step in range(STEPS):
            noise = torch.rand(odds.shape, generator=generator).clamp(1e-6, 1 - 1e-6).to(odds.device)
            soft = torch.sigmoid((noise.logit() + odds) / TEMPERATURE)
            gates = (soft * (HIGH - LOW) + LOW).clamp(0, 1)
            gone = gated_nll(model, next(batches[0]), gates).clamp(max=CAP)
            loss = gated_nll(model, next(batches[1]), gates) - gone
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if progress is not None:
                progress(step + 1, STEPS)
    return dropped_rows(model, "mlp.W_out", -chance_open(odds.detach()), NEURONS)


def _nll(forward: TrainableModel, paras: Paragraphs) -> Float[Tensor, ""]:
    logits = forward.continuation_logits(paras.tokens, paras.prefix_len)
    return token_nll(logits, paras.continuation).mean()


def _allowed(original: dict[str, Tensor], mask: Mask | None) -> dict[str, Tensor]:
    if mask is None:
        return {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in original.items()}
    allowed = {name: torch.zeros_like(weight, dtype=torch.bool) for name, weight in original.items()}
    for name, index in mask.indices.items():
        allowed[name].view(-1)[index.to(allowed[name].device)] = True
    return allowed


def _smallest(scores: dict[str, Tensor], count: int) -> Float[Tensor, ""]:
    """The largest of the `count` smallest scores."""
    return torch.cat([score.flatten() for score in scores.values()]).kthvalue(max(1, count)).values


def _batches(paras: Paragraphs, seed: int) -> Iterator[Paragraphs]:
    order = torch.randperm(len(paras), generator=torch.Generator().manual_seed(seed)).numpy()
    while True:
        for start in range(0, len(order), BATCH):
            yield paras.select(order[start : start + BATCH])
