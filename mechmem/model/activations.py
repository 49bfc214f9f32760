"""Activations of chosen sites and layers, one layer at a time: by the lean forward, or by the model with its hooks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from einops import einsum, rearrange
from jaxtyping import Int
from torch import Tensor

from mechmem.model.activation_sites import CaptureSite
from mechmem.model.forward import residual_before
from mechmem.model.hooks import recording
from mechmem.model.lean.attention import Heads
from mechmem.model.lean.model import LeanModel, fast_float32, runs_lean
from mechmem.model.lean.trace import HOOKS
from mechmem.model.load import HookedTransformer

# Called with (site, layer, activation). Streams: [paragraph, pos, d_model]; q, k, v, z: [paragraph, head, pos, d_head];
# result: [paragraph, head, pos, d_model]; pattern, scores: [paragraph, head, query_pos, key_pos]; mlp_post: [paragraph,
# pos, neuron].
Receive = Callable[[str, int, Tensor], None]
# Called with tokens [paragraph, pos]; hands over each site of each layer once, from the first layer to the last.
Activations = Callable[[Int[Tensor, "paragraph pos"], Receive], None]
# Known before the layer's MLP runs.
BEFORE_MLP = {"resid_pre", "q", "k", "v", "z", "pattern", "scores", "result"}
POINTS = HOOKS | {"scores": "attn.hook_attn_scores", "result": "attn.hook_z"}


def activation_reader(model: HookedTransformer, sites: Collection[CaptureSite], layers: Sequence[int]) -> Activations:
    """The fastest way to the activations of some sites of some layers, without gradients.

    A model with hooks, or of an architecture that the forward without hooks does not know, runs as it is. Layers after
    the last one asked for do not run.
    """
    if not runs_lean(model):
        return lambda tokens, receive: _hooked(model, tokens, sites, layers, receive)
    lean = LeanModel(model)
    return lambda tokens, receive: _lean(lean, tokens, sites, layers, receive)


@torch.no_grad()
def _lean(lean: LeanModel, tokens: Tensor, sites: Collection[str], layers: Sequence[int], receive: Receive) -> None:
    asked, last = set(layers), max(layers)

    def watch(number: int, heads: Heads, seen: Mapping[str, Tensor]) -> None:
        if number not in asked:
            return
        # The pattern first: z is a product with it.
        for site in sorted(sites, key="pattern".__ne__):
            receive(site, number, _of_heads(lean, number, heads, site, seen))

    def before_mlp(number: int, heads: Heads, residual: Tensor) -> None:
        watch(number, heads, {"resid_pre": residual})

    def pattern_first(number: int, heads: Heads, _: Tensor) -> None:
        if number in asked and "pattern" in sites:
            _ = heads.pattern

    with fast_float32(lean.device):
        residual = lean.embed(tokens)
        if BEFORE_MLP.issuperset(sites):
            # MLPs run in place, and that of the last layer not at all.
            residual = lean.run(residual, stop=last, watch_heads=before_mlp)
            rotation = lean.rotation(0, tokens.shape[1], lean.dtype)
            before_mlp(last, lean.heads(last, lean.layers[last], residual, rotation), residual)
        else:
            residual = lean.run(residual, stop=last + 1, watch=watch, watch_heads=pattern_first)
    if not bool(residual.isfinite().all()):
        lean.forward(tokens)  # names the layer


def _of_heads(lean: LeanModel, number: int, heads: Heads, site: str, seen: Mapping[str, Tensor]) -> Tensor:
    if site in seen:
        return seen[site]
    if site in ("q", "k") and lean.rotates:
        # TransformerLens' hook_q and hook_k hold what is not rotated yet.
        query, key, _ = lean.queries_keys_values(lean.layers[number], seen["resid_pre"], None)
        return query if site == "q" else key
    if site == "result":
        return _result(heads.output, lean.layers[number].w_o)
    return {
        "q": lambda: heads.query,
        "k": lambda: heads.key,
        "v": lambda: heads.value,
        "z": lambda: heads.output,
        "pattern": lambda: heads.pattern,
        "scores": heads.scores,
    }[site]()


def _result(z: Tensor, w_o: Tensor) -> Tensor:
    """What each head writes to the residual stream, without the bias that they share."""
    by_head = rearrange(w_o, "(head d_head) d_model -> head d_head d_model", head=z.shape[1])
    return einsum(z, by_head, "paragraph head pos d_head, head d_head d_model -> paragraph head pos d_model")


@torch.no_grad()
def _hooked(
    model: HookedTransformer, tokens: Tensor, sites: Collection[str], layers: Sequence[int], receive: Receive
) -> None:
    names = {point_of(site, layer): None for layer in layers for site in sites}
    with recording(model, names) as recorded:
        residual_before(model, tokens.to(model.cfg.device), max(layers) + 1)
    for layer in layers:
        for site in sites:
            receive(site, layer, arranged(model, site, layer, recorded[point_of(site, layer)]))


def point_of(site: str, layer: int) -> str:
    """TransformerLens' hook point from which a site is read."""
    return f"blocks.{layer}.{POINTS[site]}"


def arranged(model: HookedTransformer, site: str, layer: int, value: Tensor) -> Tensor:
    """What a hook point holds, with the axes that `Receive` names."""
    if site in ("q", "k", "v", "z", "result"):
        value = rearrange(value, "paragraph pos head d -> paragraph head pos d")
    if site == "result":
        w_o = model.blocks[layer].attn.W_O
        value = einsum(value, w_o, "paragraph head pos d_head, head d_head d_model -> paragraph head pos d_model")
    return value
