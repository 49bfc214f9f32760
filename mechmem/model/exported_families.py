"""TransformerLens' weights and settings under transformers' names and in its shapes: what `architectures` undoes.

Every tensor is only cut, joined, transposed or reordered, so each number keeps its bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from mechmem.model.architectures import ARCHITECTURES
from mechmem.model.load import HookedTransformer

Tensors = dict[str, Float[Tensor, " ..."]]


@dataclass(frozen=True)
class ExportedFamily:
    """How a family is written.

    Attributes:
        family: transformers' `model_type`, a key of `ARCHITECTURES`.
        title: its name in sentences.
        outer: transformers' names outside the layers -> TransformerLens'; the unembedding is not among them.
        unembedding: the name that checkpoints have for it.
        norms: transformers' names of a layer's norms -> TransformerLens'.
        layer: TransformerLens' tensors of a layer, by their names in it -> transformers' other tensors of the layer.
        settings: model -> the entries of transformers' configuration that decide what the family computes.
        replaced: entries of older configurations that `settings` says in its own way.
        absent: TransformerLens' biases of a layer that the family does not have.
    """

    family: str
    title: str
    outer: Mapping[str, str]
    unembedding: str
    norms: Mapping[str, str]
    layer: Callable[[Tensors], Tensors]
    settings: Callable[[HookedTransformer, Mapping[str, Any]], dict[str, Any]]
    replaced: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()

    def tensors(self, model: HookedTransformer) -> Tensors:
        """Every tensor of the checkpoint as float32; the unembedding only where it differs from the embedding."""
        state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
        found = {theirs: state[ours] for theirs, ours in self.outer.items()}
        if not torch.equal(state["unembed.W_U"].T, state["embed.W_E"]):
            found[self.unembedding] = state["unembed.W_U"].T
        for layer in range(model.cfg.n_layers):
            start = f"blocks.{layer}."
            block = {name.removeprefix(start): tensor for name, tensor in state.items() if name.startswith(start)}
            written = self.layer(block)
            for theirs, ours in self.norms.items():
                written |= {f"{theirs}.weight": block[f"{ours}.w"], f"{theirs}.bias": block[f"{ours}.b"]}
            prefix = f"{ARCHITECTURES[self.family].layers}{layer}."
            found |= {f"{prefix}{name}": tensor for name, tensor in written.items()}
        return {name: tensor.to("cpu", torch.float32).contiguous() for name, tensor in found.items()}


def _neo_layer(block: Tensors) -> Tensors:
    tensors = {
        f"attn.attention.{letter.lower()}_proj.weight": rearrange(
            block[f"attn.W_{letter}"], "head d_model d_head -> (head d_head) d_model"
        )
        for letter in "QKV"
    }
    tensors["attn.attention.out_proj.weight"] = rearrange(
        block["attn.W_O"], "head d_head d_model -> d_model (head d_head)"
    )
    tensors["attn.attention.out_proj.bias"] = block["attn.b_O"]
    for theirs, ours in {"c_fc": "in", "c_proj": "out"}.items():
        tensors |= {f"mlp.{theirs}.weight": block[f"mlp.W_{ours}"].T, f"mlp.{theirs}.bias": block[f"mlp.b_{ours}"]}
    return tensors


def _gpt2_layer(block: Tensors) -> Tensors:
    """A Conv1D of transformers holds [input, output]; one gives all queries, then all keys, then all values."""
    joined = [rearrange(block[f"attn.W_{letter}"], "head d_model d_head -> d_model (head d_head)") for letter in "QKV"]
    tensors = {
        "attn.c_attn.weight": torch.cat(joined, dim=1),
        "attn.c_attn.bias": torch.cat([block[f"attn.b_{letter}"].flatten() for letter in "QKV"]),
        "attn.c_proj.weight": rearrange(block["attn.W_O"], "head d_head d_model -> (head d_head) d_model"),
        "attn.c_proj.bias": block["attn.b_O"],
    }
    for theirs, ours in {"c_fc": "in", "c_proj": "out"}.items():
        tensors |= {f"mlp.{theirs}.weight": block[f"mlp.W_{ours}"], f"mlp.{theirs}.bias": block[f"mlp.b_{ours}"]}
    return tensors


def _neox_layer(block: Tensors) -> Tensors:
    """One matrix gives query, key and value of the first head, then those of the second."""
    weights = torch.stack([block[f"attn.W_{letter}"] for letter in "QKV"])
    biases = torch.stack([block[f"attn.b_{letter}"] for letter in "QKV"])
    tensors = {
        "attention.query_key_value.weight": rearrange(weights, "qkv head d_model d_head -> (head qkv d_head) d_model"),
        "attention.query_key_value.bias": rearrange(biases, "qkv head d_head -> (head qkv d_head)"),
        "attention.dense.weight": rearrange(block["attn.W_O"], "head d_head d_model -> d_model (head d_head)"),
        "attention.dense.bias": block["attn.b_O"],
    }
    for theirs, ours in {"dense_h_to_4h": "in", "dense_4h_to_h": "out"}.items():
        tensors |= {f"mlp.{theirs}.weight": block[f"mlp.W_{ours}"].T, f"mlp.{theirs}.bias": block[f"mlp.b_{ours}"]}
    return tensors


def _neo_settings(model: HookedTransformer, _: Mapping[str, Any]) -> dict[str, Any]:
    cfg = model.cfg
    return {
        "max_position_embeddings": cfg.n_ctx,
        "hidden_size": cfg.d_model,
        "num_layers": cfg.n_layers,
        "num_heads": cfg.n_heads,
        "intermediate_size": cfg.d_mlp,
        "attention_types": [[list(cfg.attn_types or []), 1]],
        "attention_layers": list(cfg.attn_types or []),
        "window_size": cfg.window_size,
        "activation_function": cfg.act_fn,
        "layer_norm_epsilon": cfg.eps,
    }


def _gpt2_settings(model: HookedTransformer, _: Mapping[str, Any]) -> dict[str, Any]:
    cfg = model.cfg
    return {
        "n_positions": cfg.n_ctx,
        "n_embd": cfg.d_model,
        "n_layer": cfg.n_layers,
        "n_head": cfg.n_heads,
        "n_inner": cfg.d_mlp,
        "activation_function": cfg.act_fn,
        "layer_norm_epsilon": cfg.eps,
        "scale_attn_weights": cfg.use_attn_scale,
        "scale_attn_by_inverse_layer_idx": cfg.scale_attn_by_inverse_layer_idx,
        "add_cross_attention": False,
    }


def _neox_settings(model: HookedTransformer, source: Mapping[str, Any]) -> dict[str, Any]:
    cfg = model.cfg
    known = source.get("rope_parameters") or {}
    share = known.get("partial_rotary_factor", source.get("rotary_pct", source.get("partial_rotary_factor")))
    return {
        "max_position_embeddings": cfg.n_ctx,
        "hidden_size": cfg.d_model,
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.n_heads,
        "intermediate_size": cfg.d_mlp,
        "hidden_act": cfg.act_fn,
        "layer_norm_eps": cfg.eps,
        "use_parallel_residual": cfg.parallel_attn_mlp,
        "attention_bias": True,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": cfg.rotary_base,
            "partial_rotary_factor": _rotary_share(cfg.rotary_dim or 0, cfg.d_head, share),
        },
    }


def _rotary_share(rotary_dim: int, d_head: int, known: float | None) -> float:
    """The share of a head's dimensions that are rotated, such that transformers, which rounds down, finds as many."""
    share = rotary_dim / d_head if known is None or int(d_head * known) != rotary_dim else known
    return share if int(d_head * share) == rotary_dim else math.nextafter(share, 1.0)


_OUTER = {
    "transformer.wte.weight": "embed.W_E",
    "transformer.wpe.weight": "pos_embed.W_pos",
    "transformer.ln_f.weight": "ln_final.w",
    "transformer.ln_f.bias": "ln_final.b",
}
_NEOX_OUTER = {
    "gpt_neox.embed_in.weight": "embed.W_E",
    "gpt_neox.final_layer_norm.weight": "ln_final.w",
    "gpt_neox.final_layer_norm.bias": "ln_final.b",
}
_NORMS = {"ln_1": "ln1", "ln_2": "ln2"}
_NEOX_NORMS = {"input_layernorm": "ln1", "post_attention_layernorm": "ln2"}
_ROTARY = ("rotary_pct", "rotary_emb_base", "rope_theta", "rope_scaling", "partial_rotary_factor")
_FAMILIES = (
    ExportedFamily(
        *("gpt_neo", "GPT-Neo", _OUTER, "lm_head.weight", _NORMS, _neo_layer, _neo_settings),
        absent=("attn.b_Q", "attn.b_K", "attn.b_V"),
    ),
    ExportedFamily("gpt2", "GPT-2", _OUTER, "lm_head.weight", _NORMS, _gpt2_layer, _gpt2_settings),
    # transformers of before 5.14 reads this name alone, and later ones read and write it too.
    ExportedFamily(
        *("gpt_neox", "GPT-NeoX", _NEOX_OUTER, "embed_out.weight", _NEOX_NORMS, _neox_layer, _neox_settings),
        replaced=_ROTARY,
    ),
)
# By the name of transformers' language model, which TransformerLens calls the original architecture.
EXPORTED = {ARCHITECTURES[one.family].causal_class: one for one in _FAMILIES}
