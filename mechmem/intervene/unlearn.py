"""Unlearning: raise the NLL of chosen paragraphs and hold the model's predictions everywhere else."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import Progress
from mechmem.model.forward import continuation_logits
from mechmem.model.hooks import frozen
from mechmem.model.load import HookedTransformer
from mechmem.model.masked_weights import MaskedWeights, check_mask
from mechmem.model.masks import Mask
from mechmem.model.support import verify_support


def unlearn(
    model: HookedTransformer,
    memorized: Paragraphs,
    keep: Paragraphs,
    *,
    mask: Mask | None = None,
    steps: int = 10,
    seed: int = 0,
    learning_rate: float = 1e-5,
    weight_decay: float = 0.0,
    keep_weight: float = 1.0,
    batch_size: int = 16,
    stop: Callable[[dict[str, float]], bool] | None = None,
    progress: Progress | None = None,
) -> tuple[HookedTransformer, xr.Dataset]:
    """Return an edited copy of the model, and what happened at each step; the model given is unchanged.

    Each step draws up to `batch_size` paragraphs of both sets and minimizes, by AdamW on the masked weights alone,

        keep_weight * KL(p_0 || p on keep) - NLL(memorized)

    both as means over paragraphs and continuation tokens, in nats (the contrastive objective of Stoehr et al. 2024,
    arXiv 2403.19851, section 5). The optimizer holds nothing but the masked weights, so its state is as small as the
    mask and neither weight decay nor momentum can reach another weight; `verify_support` proves it before returning.

    Args:
        model: raw weights if the edit is to be exported.
        memorized: paragraphs to unlearn.
        keep: paragraphs whose predictions are held; no paragraph of `memorized` among them.
        mask: weights that may move; None for all attention and MLP weights.
        steps: at most this many updates.
        seed: order of the batches.
        learning_rate: of AdamW; the paper's is 1e-5 on GPT-Neo 125M.
        weight_decay: decoupled, on masked weights only.
        keep_weight: of the KL term.
        batch_size: paragraphs of each set in a step.
        stop: asked before each update with that step's `memorized_nll`, `keep_kl` and `objective`; True ends the run.
        progress: called with (steps done, steps).

    Returns:
        The edited model and a Dataset [step] of the values before each update: `memorized_nll`, `keep_kl` (nats a
        token), `objective` (lower is better).

    Raises:
        InputError: an empty set, a paragraph in both sets, a mask that is empty or of another model.
        FloatingPointError: the objective is not finite; the learning rate is too high.
    """
    _check(model, memorized, keep, mask)
    edited = copy.deepcopy(model)
    with frozen(edited):
        history = _optimize(
            _Objective(model, edited, keep_weight),
            MaskedWeights(edited, mask, learning_rate=learning_rate, weight_decay=weight_decay),
            zip(_batches(memorized, batch_size, seed), _batches(keep, batch_size, seed + 1), strict=False),
            steps,
            stop,
            progress,
        )
    if mask is not None:
        verify_support(model, edited, mask)
    return edited, history


def _optimize(
    objective: _Objective,
    weights: MaskedWeights,
    batches: Iterator[tuple[tuple[int, Paragraphs], tuple[int, Paragraphs]]],
    steps: int,
    stop: Callable[[dict[str, float]], bool] | None,
    progress: Progress | None,
) -> xr.Dataset:
    rows: list[dict[str, float]] = []
    for step in range(steps):
        (_, forget), (key, hold) = next(batches)
        loss, row = objective(forget, hold, key)
        if not np.isfinite(row["objective"]):
            raise FloatingPointError(f"the objective is {row['objective']} at step {step}; lower the learning rate")
        rows.append(row)
        if stop is not None and stop(row):
            break
        weights.update(loss)
        if progress is not None:
            progress(step + 1, steps)
    names = {"memorized_nll": "nats per token", "keep_kl": "nats per token", "objective": "nats per token, minimized"}
    columns = {
        n: ("step", np.array([row[n] for row in rows], dtype=np.float64), {"units": u}) for n, u in names.items()
    }
    return xr.Dataset(columns, coords={"step": np.arange(len(rows))}, attrs={"values": "before the step's update"})


@dataclass
class _Objective:
    """The contrastive objective of one batch; what the original model predicts is computed once a batch."""

    original: HookedTransformer
    edited: HookedTransformer
    keep_weight: float

    def __post_init__(self) -> None:
        self.reference: dict[int, Tensor] = {}

    def __call__(self, memorized: Paragraphs, keep: Paragraphs, key: int) -> tuple[Float[Tensor, ""], dict[str, float]]:
        if key not in self.reference:
            with torch.no_grad():
                self.reference[key] = _log_probs(self.original, keep)
        targets = memorized.continuation.to(self.edited.cfg.device)
        nll = -_log_probs(self.edited, memorized).gather(-1, targets[..., None]).mean()
        reference = self.reference[key]
        difference = functional.kl_div(_log_probs(self.edited, keep), reference, log_target=True, reduction="none")
        kl = difference.sum(-1).mean()
        loss = self.keep_weight * kl - nll
        return loss, {"memorized_nll": nll.item(), "keep_kl": kl.item(), "objective": loss.item()}


def _log_probs(model: HookedTransformer, paragraphs: Paragraphs) -> Float[Tensor, "paragraph pos d_vocab"]:
    return continuation_logits(model, paragraphs.tokens, paragraphs.prefix_len).log_softmax(-1)


def _batches(paragraphs: Paragraphs, size: int, seed: int) -> Iterator[tuple[int, Paragraphs]]:
    """Fixed batches of a shuffled set, round and round, each with its number."""
    order = np.random.default_rng(seed).permutation(len(paragraphs))
    batches = [paragraphs.select(order[start : start + size]) for start in range(0, len(order), size)]
    while True:
        yield from enumerate(batches)


def _check(model: HookedTransformer, memorized: Paragraphs, keep: Paragraphs, mask: Mask | None) -> None:
    for name, paragraphs in (("memorized", memorized), ("keep", keep)):
        if len(paragraphs) == 0:
            raise InputError(f"the {name} set is empty; give at least one paragraph")
    shared = set(map(tuple, memorized.tokens.tolist())) & set(map(tuple, keep.tokens.tolist()))
    if shared:
        raise InputError(
            f"{len(shared)} paragraphs are both in memorized and in keep; what is to go cannot be held: "
            "remove them from keep"
        )
    if mask is not None:
        check_mask(model, mask)
