"""What a lean model computes on the way, and how to go on from the middle of it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechmem.model.lean.attention import attend
from mechmem.model.lean.model import LeanModel

HEAD_SITES = ("q", "k", "v", "z", "pattern")
STREAM_SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
NEURON_SITES = ("mlp_post",)
SITES = (*STREAM_SITES, *HEAD_SITES, *NEURON_SITES)
# TransformerLens' hook points, and which axis of theirs is the head's.
HOOKS = {
    **{site: f"hook_{site}" for site in STREAM_SITES},
    **{site: f"attn.hook_{site}" for site in HEAD_SITES},
    "mlp_post": "mlp.hook_post",
}


@dataclass(frozen=True)
class Trace:
    """Activations of one run, by site; every tensor's first axis is the layer.

    Attributes:
        sites: streams [layer, pair, pos, d_model]; q, k, v, z [layer, pair, head, pos, d_head] (q and k rotated where
            the model does); pattern [layer, pair, head, query_pos, key_pos]; mlp_post [layer, pair, pos, d_mlp].
        final: the normalized end of the body, [pair, pos, d_model].
    """

    sites: dict[str, Tensor]
    final: Float[Tensor, "pair pos d_model"]

    def __getitem__(self, site: str) -> Tensor:
        return self.sites[site]


@torch.no_grad()
def trace(lean: LeanModel, tokens: Int[Tensor, "pair pos"], sites: Collection[str]) -> Trace:
    """Run some paragraphs and keep what the given sites see."""
    kept: dict[str, list[Tensor]] = {site: [] for site in sites}

    def keep(**values: Tensor) -> None:
        for site, value in values.items():
            if site in kept:
                kept[site].append(value)

    residual = lean.embed(tokens)
    length = tokens.shape[1]
    rotation = lean.rotation(0, length, lean.dtype)
    for layer in lean.layers:
        query, key, value = lean.queries_keys_values(layer, residual, rotation)
        seen = lean.visible(0, length, layer.window)
        if "pattern" in kept:
            scores = (query @ key.mT * layer.scale).masked_fill(~seen, -torch.inf)
            keep(pattern=scores.softmax(-1))
        z = attend(query, key, value, seen, layer.scale)
        attention = lean.attention_out(layer, z)
        middle = residual if lean.parallel else residual + attention
        neurons = lean.neurons(layer, middle)
        written = lean.mlp_out(layer, neurons)
        after = residual + attention + written
        keep(resid_pre=residual, resid_mid=middle, resid_post=after, attn_out=attention, mlp_out=written)
        keep(q=query, k=key, v=value, z=z, mlp_post=neurons)
        residual = after
    return Trace({site: torch.stack(values) for site, values in kept.items()}, lean.final_norm(residual))


@torch.no_grad()
def resume(
    lean: LeanModel,
    residual: Float[Tensor, "row pos d_model"],
    first: int,
    start: int,
    base: Trace,
    pair: Tensor,
    needed: int = 0,
) -> Float[Tensor, "row needed_pos d_model"]:
    """Run rows from layer `first` to the normalized end, from position `start` on.

    Args:
        lean: the model.
        residual: what enters layer `first` at positions `start` and later.
        first: a layer; n_layers gives the final norm alone.
        start: positions before it are those of the base run: only their keys and values are used.
        base: the unpatched run, with sites k and v.
        pair: which pair of the base run each row belongs to, [row].
        needed: positions before this one are neither returned nor run through the last layer.
    """
    length = residual.shape[1]
    rotation = lean.rotation(start, length, lean.dtype)
    for number in range(first, len(lean.layers)):
        layer = lean.layers[number]
        query, key, value = lean.queries_keys_values(layer, residual, rotation)
        if start:
            key = torch.cat([base["k"][number, pair, :, :start], key], 2)
            value = torch.cat([base["v"][number, pair, :, :start], value], 2)
        if number == len(lean.layers) - 1 and needed > start:
            query, residual, start = query[:, :, needed - start :], residual[:, needed - start :], needed
        z = attend(query, key, value, lean.visible(start, key.shape[2], layer.window), layer.scale)
        residual = lean.after_attention(layer, residual, lean.attention_out(layer, z))
    return lean.final_norm(residual[:, max(needed - start, 0) :])
