"""What a lean model computes on the way, and how to go on from the middle of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechmem.model.lean.attention import Heads
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

    def watch(_: int, heads: Heads, seen: Mapping[str, Tensor]) -> None:
        found = {"q": heads.query, "k": heads.key, "v": heads.value, **seen}
        for site, values in kept.items():
            values.append(heads.pattern if site == "pattern" else found[site])

    residual = lean.run(lean.embed(tokens), watch=watch)
    if not bool(residual.isfinite().all()):
        lean.forward(tokens)  # names the layer
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

    def extend(number: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        before = (base[site][number, pair, :, :start] for site in ("k", "v"))
        key, value = (torch.cat(both, 2) for both in zip(before, (key, value), strict=True))
        return key, value

    residual = lean.run(residual, first=first, start=start, needed=needed, extend=extend if start else None)
    # Through layer `first` = n_layers nothing runs, and nothing is cut.
    return lean.final_norm(residual[:, max(needed - start, 0) :] if first == len(lean.layers) else residual)
