"""Attention patterns of all heads, from one forward that stops where the last pattern is known."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

from mechmem.model.forward import residual_before
from mechmem.model.hooks import recording
from mechmem.model.lean.attention import attend
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
    length, patterns = tokens.shape[1], []
    with fast_float32(lean.device):
        residual = lean.embed(tokens)
        rotation = lean.rotation(0, length, lean.dtype)
        for number, layer in enumerate(lean.layers):
            query, key, value = lean.queries_keys_values(layer, residual, rotation)
            seen = lean.visible(0, length, layer.window)
            wide = torch.promote_types(query.dtype, torch.float32)
            hidden = torch.zeros_like(seen, dtype=wide).masked_fill_(~seen, -torch.inf)
            patterns.append(torch.add(hidden, query.to(wide) @ key.to(wide).mT, alpha=layer.scale).softmax(-1))
            # What follows the last pattern changes none.
            if number < len(lean.layers) - 1:
                z = attend(query, key, value, seen, layer.scale)
                residual = lean.after_attention(layer, residual, lean.attention_out(layer, z))
    return patterns


@torch.no_grad()
def _hooked(model: HookedTransformer, tokens: Int[Tensor, "paragraph pos"]) -> list[Tensor]:
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers)]
    with recording(model, names) as recorded:
        residual_before(model, tokens.to(model.cfg.device), model.cfg.n_layers)
    return [recorded[name] for name in names]
