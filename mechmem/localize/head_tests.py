"""Causal tests of one head: replace its output, its attention or its values; take single keys away from it."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechmem.data.paragraphs import Paragraphs
from mechmem.data.progress import batches
from mechmem.localize.ablated_runs import AblatedRuns
from mechmem.localize.ablation_runs import AblationMethod
from mechmem.localize.rarity import rarest_weight
from mechmem.measure.scores import score_logits
from mechmem.model.forward import continuation_logits
from mechmem.model.hooks import with_hooks
from mechmem.model.load import HookedTransformer

# What is taken from the head in each test.
TESTS = ("output", "pattern", "values", "rare keys", "frequent keys")
SITES = {"output": "z", "pattern": "pattern", "values": "v"}
BATCH = 16


def ablated(
    model: HookedTransformer,
    paragraphs: Paragraphs,
    heads: list[tuple[int, int]],
    site: str,
    method: AblationMethod,
    seed: int,
) -> Float[np.ndarray, "measure head paragraph"]:
    """EM and NLL of every paragraph with each head's site replaced, minus those of the intact run."""
    runs = AblatedRuns(model, paragraphs, method=method, site=site, seed=seed, batch_size=None)
    return runs.changes(heads).numpy()


def head_tests(
    model: HookedTransformer,
    paragraphs: Paragraphs,
    head: tuple[int, int],
    counts: np.ndarray,
    *,
    fraction: float,
    method: AblationMethod,
    seed: int,
) -> Float[np.ndarray, "measure test paragraph"]:
    """Change of EM and NLL of every paragraph, after minus before, in each of `TESTS`.

    "output", "pattern" and "values" replace z, the attention weights or v at all positions, by `method`. "rare keys"
    sets the attention of all queries to the paragraph's rarest prefix tokens to zero, without sharing it out to other
    keys: what the head reads there is gone. "frequent keys" does so with as many of the most frequent ones.
    """
    rows = [ablated(model, paragraphs, [head], site, method, seed)[:, 0] for site in SITES.values()]
    frequency = counts[paragraphs.prefix.cpu().numpy()]
    for sign in (1.0, -1.0):
        keys = torch.from_numpy(rarest_weight(sign * frequency, fraction))
        rows.append(_without_keys(model, paragraphs, head, keys))
    return np.stack(rows, 1)


@torch.no_grad()
def _without_keys(
    model: HookedTransformer, paragraphs: Paragraphs, head: tuple[int, int], keys: Float[Tensor, "paragraph key_pos"]
) -> Float[np.ndarray, "measure paragraph"]:
    """The change when the head's attention to keys is multiplied by 1 - their weight."""
    name, prefix_len = f"blocks.{head[0]}.attn.hook_pattern", paragraphs.prefix_len
    parts = []
    for rows in batches(len(paragraphs), BATCH):
        tokens = paragraphs.tokens[rows].to(model.W_E.device)
        left = 1 - keys[rows].to(tokens.device)

        def take(pattern: Tensor, hook: object, left: Tensor = left) -> Tensor:  # noqa: ARG001
            pattern = pattern.clone()
            pattern[:, head[1], :, :prefix_len] *= left[:, None].to(pattern.dtype)
            return pattern

        found = []
        for hooks in ({}, {name: take}):
            with with_hooks(model, hooks):
                scores = score_logits(continuation_logits(model, tokens, prefix_len), tokens[:, prefix_len:])
            found.append(torch.stack([scores[measure].double().cpu() for measure in ("em", "nll")]))
        parts.append(found[1] - found[0])
    return torch.cat(parts, 1).numpy()
