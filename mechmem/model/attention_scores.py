"""Attention scores of the hooked model in float32: TransformerLens computes them in the model's own type."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformer_lens import HookedTransformer

from mechmem.model.model_lock import holding

ADVICE = "check the model's weights, or load it in float32"


class NonfiniteScores(Exception):
    """Attention scores of a layer are NaN or infinite, by its own fault or that of what entered it."""

    def __init__(self, layer: int) -> None:
        super().__init__(f"layer {layer}")
        self.layer = layer


@contextmanager
def wide_scores(model: HookedTransformer) -> Iterator[None]:
    """In the block, queries and keys of sixteen bits are raised to float32 for their products and the softmax.

    transformers does so for GPT-Neo, whose scores are not scaled and can pass 65,504, the largest number of float16.
    Hooks on scores and patterns see float32 there. TransformerLens turns patterns that are NaN into zeros, so that
    scores that are NaN or infinite would pass unseen. The block holds the model's lock.

    Raises:
        NonfiniteScores: by a forward in the block.
    """
    with holding(model):
        blocks: list[Any] = list(model.blocks)
        originals = [block.attn.calculate_attention_scores for block in blocks]
        own = ["calculate_attention_scores" in vars(block.attn) for block in blocks]
        for layer, (block, original) in enumerate(zip(blocks, originals, strict=True)):
            block.attn.calculate_attention_scores = _wide(original, layer)
        try:
            yield
        finally:
            for block, original, kept in zip(blocks, originals, own, strict=True):
                if kept:
                    block.attn.calculate_attention_scores = original
                else:
                    del block.attn.calculate_attention_scores


def _wide(original: Callable[[Tensor, Tensor], Tensor], layer: int) -> Callable[[Tensor, Tensor], Tensor]:
    def scores(q: Tensor, k: Tensor) -> Tensor:
        wide = torch.promote_types(q.dtype, torch.float32)
        found = original(q.to(wide), k.to(wide))
        if not bool(found.isfinite().all()):
            raise NonfiniteScores(layer)
        return found

    return scores
