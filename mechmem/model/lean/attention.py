"""Attention as plain products, in blocks that fit the cache."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

# Attention scores held at once: 2 MB of float32.
SCORES_AT_ONCE = 2**19
# With more keys than this the fused kernel is as fast, and needs less memory.
LONG = 512


def attend(
    query: Float[Tensor, "paragraph head query_pos d_head"],
    key: Float[Tensor, "paragraph head key_pos d_head"],
    value: Float[Tensor, "paragraph head key_pos d_head"],
    seen: Bool[Tensor, "query_pos key_pos"],
    scale: float,
) -> Float[Tensor, "paragraph head query_pos d_head"]:
    """Attention of the queries to the keys they see.

    On a CPU torch's fused kernel takes two to seven times as long as plain products, where the scores of some heads fit
    the cache together (docs/benchmarks/attention.md). Scores and their softmax are never of sixteen bits, as in the
    fused kernel.
    """
    if query.device.type != "cpu" or key.shape[2] > LONG:
        return functional.scaled_dot_product_attention(query, key, value, seen, scale=scale)
    wide = torch.promote_types(query.dtype, torch.float32)
    flat = [rearrange(x, "paragraph head pos d_head -> (paragraph head) pos d_head") for x in (query, key, value)]
    hidden = torch.zeros(seen.shape, dtype=wide).masked_fill_(~seen, -torch.inf)
    z = torch.empty_like(flat[0])
    step = max(1, SCORES_AT_ONCE // seen.numel())
    for start in range(0, len(z), step):
        q, k, v = (x[start : start + step] for x in flat)
        weights = torch.baddbmm(hidden, q.to(wide), k.to(wide).mT, alpha=scale).softmax(-1)
        torch.bmm(weights.to(v.dtype), v, out=z[start : start + step])
    return rearrange(z, "(paragraph head) pos d_head -> paragraph head pos d_head", head=query.shape[1])
