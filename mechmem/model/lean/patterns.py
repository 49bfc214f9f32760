"""Attention patterns of all heads, from one forward that stops where the last pattern is known."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

from mechmem.model.forward import residual_before
from mechmem.model.hooks import recording
from mechmem.model.lean.attention import Heads
from mechmem.model.lean.model import LeanModel, fast_float32, runs_lean
from mechmem.model.load import HookedTransformer

# Called with tokens [paragraph, pos]; gives each layer's pattern [paragraph, head, query_pos, key_pos], from layer 0.
Patterns = Callable[[Int[Tensor, "paragraph pos"]], list[Tensor]]


def pattern_reader(model: HookedTransformer, dtype: torch.dtype | None = None) -> Patterns:
    """A function from tokens to the patterns of every layer.

    It runs without hooks where it can: on a model that has some on it, or that the lean forward does not know, it runs
    the model itself, so that an owner's hooks count.

    Args:
        model: left as it is.
        dtype: of the lean forward's products; patterns are float32 or the model's own type in any case. The model
            itself runs in its own.
    """
    if not runs_lean(model):
        return lambda tokens: _hooked(model, tokens)
    lean = LeanModel(model, dtype)
    return lambda tokens: _lean(lean, tokens)


@torch.no_grad()
def _lean(lean: LeanModel, tokens: Int[Tensor, "paragraph pos"]) -> list[Tensor]:
    patterns: list[Tensor] = []

    def watch(_: int, heads: Heads, __: Tensor) -> None:
        patterns.append(heads.pattern)

    with fast_float32(lean.device):
        # What follows the last pattern changes none.
        last = len(lean.layers) - 1
        residual = lean.run(lean.embed(tokens), stop=last, watch_heads=watch)
        rotation = lean.rotation(0, tokens.shape[1], lean.dtype)
        patterns.append(lean.heads(last, lean.layers[last], residual, rotation).pattern)
    if not bool(patterns[-1].isfinite().all()):
        lean.forward(tokens)  # names the layer
    return patterns


@torch.no_grad()
def _hooked(model: HookedTransformer, tokens: Int[Tensor, "paragraph pos"]) -> list[Tensor]:
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers)]
    with recording(model, names) as recorded:
        residual_before(model, tokens.to(model.cfg.device), model.cfg.n_layers)
    return [recorded[name] for name in names]
