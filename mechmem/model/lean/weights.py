"""A HookedTransformer's weights as matrices [in, out], and whether its forward is one that they suffice for."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig

Affine = tuple[Tensor, Tensor] | None
ACTIVATIONS = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu", "silu")


@dataclass(frozen=True)
class Layer:
    """One layer's weights: matrices are [in, out], queries, keys and values side by side, all heads of one after other.

    A norm is (weight, bias), or None where folding left only centring and scaling. `window` is the number of positions
    that a query of a local layer sees, itself included; None: all.
    """

    norm_attention: Affine
    norm_mlp: Affine
    w_qkv: Tensor
    b_qkv: Tensor
    w_o: Tensor
    b_o: Tensor
    w_in: Tensor
    b_in: Tensor
    w_out: Tensor
    b_out: Tensor
    scale: float
    window: int | None

    def to(self, dtype: torch.dtype) -> Layer:
        """The same weights in another type; those that have it already are shared."""
        changed = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                changed[field.name] = value.to(dtype)
            elif isinstance(value, tuple):
                changed[field.name] = tuple(tensor.to(dtype) for tensor in value)
        return replace(self, **changed)


def unsupported(model: HookedTransformer) -> str:
    """Why the lean forward cannot replace this model's own, as a sentence; empty if it can."""
    cfg = model.cfg
    if cfg.normalization_type not in ("LN", "LNPre") or cfg.final_rms:
        return f"the model's normalization is {cfg.normalization_type}"
    if cfg.positional_embedding_type not in ("standard", "rotary"):
        return f"the model's position embedding is {cfg.positional_embedding_type}"
    if cfg.positional_embedding_type == "rotary" and cfg.rotary_adjacent_pairs:
        return "the model rotates adjacent pairs"
    if cfg.attn_only or cfg.gated_mlp or cfg.act_fn not in ACTIVATIONS:
        return f"the model's MLP (activation {cfg.act_fn}) is of another kind"
    if cfg.attention_dir != "causal" or cfg.n_key_value_heads:
        return "the model's attention is of another kind"
    if cfg.num_experts or cfg.load_in_4bit or cfg.n_devices > 1:
        return "the model has experts, 4-bit weights or several devices"
    if cfg.output_logits_soft_cap > 0 or cfg.attn_scores_soft_cap > 0 or cfg.post_embedding_ln:
        return "the model caps its logits or normalizes its embedding"
    return ""


def layer_weights(model: HookedTransformer, number: int) -> Layer:
    """One layer's weights, shared with the model but for the fused queries, keys and values."""
    block: Any = model.blocks[number]
    attention, mlp = block.attn, block.mlp
    weights = [rearrange(w.detach(), "head d_model d_head -> d_model (head d_head)") for w in _qkv(attention, "W")]
    biases = [rearrange(b.detach(), "head d_head -> (head d_head)") for b in _qkv(attention, "b")]
    cfg = model.cfg
    local = cfg.use_local_attn and cfg.attn_types is not None and cfg.attn_types[number] == "local"
    dtype = model.W_E.dtype
    return Layer(
        norm_attention=norm_weights(block.ln1, dtype),
        norm_mlp=norm_weights(block.ln2, dtype),
        w_qkv=torch.cat(weights, -1),
        b_qkv=torch.cat(biases),
        w_o=rearrange(attention.W_O.detach(), "head d_head d_model -> (head d_head) d_model"),
        b_o=attention.b_O.detach(),
        w_in=mlp.W_in.detach(),
        b_in=mlp.b_in.detach(),
        w_out=mlp.W_out.detach(),
        b_out=mlp.b_out.detach(),
        scale=_scale(cfg, number),
        window=cfg.window_size if local else None,
    )


def _qkv(attention: torch.nn.Module, kind: str) -> list[Tensor]:
    return [getattr(attention, f"{kind}_{name}") for name in "QKV"]


def norm_weights(norm: torch.nn.Module, dtype: torch.dtype) -> Affine:
    """A norm's weight and bias, or None where it only centres and scales."""
    weight, bias = getattr(norm, "w", None), getattr(norm, "b", None)
    if weight is None or bias is None:
        return None
    return weight.detach().to(dtype), bias.detach().to(dtype)


def _scale(cfg: HookedTransformerConfig, number: int) -> float:
    scale = 1 / cfg.attn_scale if cfg.use_attn_scale else 1.0
    return scale / (number + 1) if cfg.scale_attn_by_inverse_layer_idx else scale
