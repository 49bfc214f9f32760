"""Trap 14: the time of one patched cell, patched one at a time with every logit, and as `mechmem.patch` does it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from mechmem.data.paragraphs import Paragraphs
from mechmem.localize.patching import patch
from mechmem.measure.worst_pairs import compare_pairs
from mechmem.model.forward import token_nll
from mechmem.model.hooks import recording, with_hooks
from mechmem.model.load import HookedTransformer
from mechmem.study.paper.rows import Trap

SITE = "v"
# Forwards of the slow way in a round, and rounds: the two ways take turns, so that both meet the same machine.
CELLS, ROUNDS = 12, 3


def patch_speed(model: HookedTransformer, clean: Paragraphs, corrupt: Paragraphs, *, seed: int) -> Trap:
    """Time both ways on the same pairs and compare what they find.

    Args:
        model: left as it is.
        clean: memorized paragraphs.
        corrupt: the same with one token replaced.
        seed: which cells the slow way patches.
    """
    heads = [(layer, head) for layer in range(model.cfg.n_layers) for head in range(model.cfg.n_heads)]
    order = np.random.default_rng(seed).permutation(len(heads))[:CELLS]
    chosen = [heads[place] for place in order.tolist()]
    slow, fast = [], []
    for _ in range(ROUNDS):
        seconds, by_hand = _timed(lambda: one_by_one(model, clean[0], corrupt[0], chosen))
        slow.append(seconds / len(chosen))
        options: dict[str, Any] = {"site": SITE, "pos": "perturbed", "scored": "impact", "average": False}
        seconds, effects = _timed(lambda options=options: patch(model, clean, corrupt, **options))
        fast.append(seconds / effects.size)
    found = effects.isel(paragraph=0).transpose("layer", "head").values
    apart = max(abs(found[cell] - value) for cell, value in zip(chosen, by_hand, strict=True))
    slipped, corrected = 1000 * float(np.median(slow)), 1000 * float(np.median(fast))
    change = (
        f"One patch per forward of the hooked model, with the logits of all positions, takes {slipped / corrected:.1f} "
        f"times as long as patching {len(clean)} pairs together from the patched layer on and reading one column; "
        f"their effects differ by {apart:.1g} nats at most. The study's code loads the model anew for every "
        "repetition besides."
    )
    return Trap(14, "One patch per forward, and logits of every position", slipped, corrected, "ms per cell", change)


def one_by_one(
    model: HookedTransformer, clean: Paragraphs, corrupt: Paragraphs, heads: list[tuple[int, int]]
) -> list[float]:
    """Change of one pair's NLL at the first token that differs, for each head's values at the replaced token.

    Every cell is a whole forward with the logits of all positions, as the study's code runs it.
    """
    source, impact = (int(place[0]) for place in compare_pairs(clean, corrupt))
    tokens, device = clean.tokens, model.W_E.device
    names = {layer: f"blocks.{layer}.attn.hook_{SITE}" for layer, _ in heads}

    def nll() -> float:
        logits = model(tokens.to(device))
        return float(token_nll(logits[:, impact - 1 : impact], tokens[:, impact : impact + 1]))

    changes = []
    with torch.no_grad():
        with recording(model, set(names.values())) as recorded:
            model(corrupt.tokens.to(device))
        base = nll()
        for layer, head in heads:
            value = recorded[names[layer]][:, source, head]

            def replace(activation: torch.Tensor, hook: object, head: int = head, value: torch.Tensor = value) -> Any:  # noqa: ARG001
                changed = activation.clone()
                changed[:, source, head] = value
                return changed

            with with_hooks(model, {names[layer]: replace}):
                changes.append(nll() - base)
    return changes


def _timed(run: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = run()
    return time.perf_counter() - started, result
