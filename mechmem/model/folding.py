"""Folded weights, as TransformerLens' `from_pretrained` makes them by default, one part of the model at a time.

LayerNorm's weights move into the matrices that read from it, matrices that write to the residual stream and the
unembedding are centred, value biases move into the output bias. Log-probabilities stay as they are; logits shift by a
constant a position. TransformerLens processes all weights at once and needs several copies of them.
"""

from __future__ import annotations

import copy

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import HookedTransformerConfig
from transformer_lens.weight_processing import ProcessWeights


def fold_input(tensors: dict[str, Float[Tensor, " ..."]]) -> dict[str, Float[Tensor, " ..."]]:
    """Centre embeddings over d_model, in place."""
    for tensor in tensors.values():
        tensor -= tensor.mean(-1, keepdim=True)
    return tensors


def fold_output(tensors: dict[str, Float[Tensor, " ..."]]) -> dict[str, Float[Tensor, " ..."]]:
    """Fold `ln_final.w`, `ln_final.b` into `unembed.W_U` [d_model, d_vocab], in place, and `unembed.b_U`; centre both.

    The unembedding is the largest tensor: nothing of its size is allocated here.
    """
    W_U, weight, bias = tensors["unembed.W_U"], tensors["ln_final.w"], tensors["ln_final.b"]
    b_U = bias @ W_U
    W_U *= weight[:, None]
    W_U -= W_U.mean(0, keepdim=True)
    W_U -= W_U.mean(1, keepdim=True)
    return {"unembed.W_U": W_U, "unembed.b_U": b_U - b_U.mean()}


def fold_layer(
    tensors: dict[str, Float[Tensor, " ..."]], cfg: HookedTransformerConfig
) -> dict[str, Float[Tensor, " ..."]]:
    """TransformerLens' own processing of one layer, given and returned under names of layer 0."""
    one = copy.copy(cfg)
    one.n_layers = 1
    # ProcessWeights expects embeddings to centre; these are placeholders.
    embeddings = {"embed.W_E": torch.zeros(1, cfg.d_model), "pos_embed.W_pos": torch.zeros(1, cfg.d_model)}
    processed = ProcessWeights.fold_layer_norm({**tensors, **embeddings}, one)
    processed = ProcessWeights.center_writing_weights(processed, one)
    processed = ProcessWeights.fold_value_biases(processed, one)
    # Folded value biases are not centred, although the matrix that they pass through is, up to rounding.
    processed["blocks.0.attn.b_O"] -= processed["blocks.0.attn.b_O"].mean()
    return {name: tensor for name, tensor in processed.items() if name in tensors and ".ln" not in name}
